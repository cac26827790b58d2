"""What a device could do at most: the number that a model's arithmetic is a share of (MFU)."""

import time

import torch

_PEAKS = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.5e12,
    "GH200": 989.5e12,
    "H100 PCIe": 756.5e12,
    "H100 NVL": 835.5e12,
    "H100": 989.5e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
}
"""FLOP/s of dense bf16 products with sums in fp32, by a part of the name that CUDA gives; the first
that fits. Of NVIDIA's data sheets of each product (those that print a figure with sparsity only:
half of it); A10G: of AWS; RTX: of the white papers of the Ada and Blackwell architectures.
"""
_LESS = {"Laptop", "Max-Q", "D", "MIG"}
"""Words in the names of slower products, and of parts of one."""
_MOST_S = 0.2
"""Seconds of a measurement."""
_SIDE = 512


def published_peak(name: str) -> float | None:
    """FLOP/s in bf16 of a GPU by the name that CUDA gives it; None: not in the table."""
    if _LESS & set(name.split()):
        return None
    words = set(name.replace("-", " ").split())
    for known, peak in _PEAKS.items():
        if set(known.split()) <= words:
            return peak
    return None


def peak_of(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device at most: the published one of a known GPU, else that of square products
    in `dtype`, which takes below 0.3 s.
    """
    if device.type == "cuda":
        published = published_peak(torch.cuda.get_device_name(device))
        if published is not None:
            return published
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of many products, on as many threads as the process has."""
    # A GPU without a place in the table is still faster than a CPU.
    side = _SIDE if device.type == "cpu" else 8 * _SIDE
    some = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(some)
    end = time.perf_counter() + _MOST_S
    best = float("inf")
    with torch.no_grad():
        while True:
            begin = time.perf_counter()
            torch.mm(some, some, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            best = min(best, now - begin)
            if now > end:
                return 2.0 * side**3 / best

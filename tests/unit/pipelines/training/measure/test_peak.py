"""The most that devices can do, by the names that CUDA gives them."""

import pytest
import torch

from pipelines.training.measure.peak import measured_peak, peak_of, published_peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA GH200 480GB", 989.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA A1000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert published_peak(name) == peak


def test_a_cpu_is_measured_in_the_number_format_that_is_asked_for() -> None:
    cpu = torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        assert peak_of(cpu, dtype) > 1e8
    # Twice the same machine: no other order of magnitude.
    some, other = (measured_peak(cpu, torch.float32) for _ in range(2))
    assert 0.1 < some / other < 10

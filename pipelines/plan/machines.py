"""The GPUs that plans know, and what a plan takes for granted of machines."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gwp.errors import GwpError


@dataclass(frozen=True)
class Gpu:
    """As its maker states it.

    bf16: peak of dense bf16 products with sums in fp32, FLOP/s; memory_gb: 1e9 bytes; memory_rate:
    of that memory, bytes/s; link: to the other GPUs of a machine, in one direction, bytes/s
    """

    bf16: float
    memory_gb: float
    memory_rate: float
    link: float


GPUS: dict[str, Gpu] = {
    "l4": Gpu(121e12, 24, 300e9, 32e9),
    "rtx4090": Gpu(165e12, 24, 1008e9, 32e9),
    "l40s": Gpu(362e12, 48, 864e9, 32e9),
    "a100": Gpu(312e12, 80, 2039e9, 300e9),
    "h100": Gpu(989e12, 80, 3350e9, 450e9),
    "h200": Gpu(989e12, 141, 4800e9, 450e9),
}
CARDS = {24: "rtx4090", 48: "l40s", 80: "h100", 141: "h200"}
"""Size of a GPU, GB -> whose speed a plan takes for that size, where none is named."""
UTILISATION = (0.14, 0.33)
"""Share of the peak that training steps reach. Not measured here: 0.14 is RLinf's 4.44 samples a
second of an H100 for DreamZero at 5 B (our arithmetic of what they published), 0.33 the 326
TFLOP/s of an H100 that NeMo DFM publishes for Wan 2.1 at 14 B.
"""
FRAMES_PER_CORE = 525.0
"""Pictures that a decoding process gives a second: docs/benchmarks.md, "The stream of samples",
210 samples of 5 pictures with 2 processes; AV1 of 640x480 with key frames 2 apart.
"""
UPLOAD_MB = 200.0
"""MB/s of a worker to storage. Not measured: ask your own."""
NETWORK_GB = 50.0
"""GB/s of a machine to the others, in one direction: a port of 400 Gbit/s. Not measured: ask your
own.
"""
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Assumed:
    """What a plan takes for granted; all of it can be told otherwise.

    utilisation: least and most; decode_rate: pictures a second of a core; upload_mb: MB/s of a
    worker; network_gb: GB/s of a machine; gpus_per_node: of a machine; prices: name of a GPU, or
    `core` -> price of an hour
    """

    gpu: str = "h100"
    workers: int | None = None
    utilisation: tuple[float, float] = UTILISATION
    decode_rate: float = FRAMES_PER_CORE
    upload_mb: float = UPLOAD_MB
    network_gb: float = NETWORK_GB
    gpus_per_node: int = GPUS_PER_NODE
    prices: Mapping[str, float] | None = None

    @property
    def peak(self) -> float:
        """FLOP/s of a GPU. GwpError of an unknown one."""
        return self.found.bf16

    @property
    def found(self) -> Gpu:
        """The GPU. GwpError of an unknown one."""
        if self.gpu not in GPUS:
            raise GwpError(f"--gpu {self.gpu}: not known; choose one of {', '.join(GPUS)}")
        return GPUS[self.gpu]

    def speeds_of(self, gpu_gb: float) -> str:
        """Whose speed to take for GPUs of so many GB: of the one in question, where it has as many,
        else of the nearest below, or of the smallest.
        """
        if self.found.memory_gb == gpu_gb:
            return self.gpu
        sizes = [gb for gb in CARDS if gb <= gpu_gb]
        return CARDS[max(sizes, default=min(CARDS))]

    @property
    def shares(self) -> tuple[float, float]:
        """Of the peak, least and most. GwpError of what is no share."""
        low, high = sorted(self.utilisation)
        if not 0 < low <= high <= 1:
            raise GwpError(
                "--utilisation: give a least and a most between 0 and 1, such as 0.25,0.45"
            )
        return low, high

    def machines(self, workers: int) -> int:
        """On which so many workers run."""
        return math.ceil(workers / self.gpus_per_node)

    def link(self, gpu: Gpu, workers: int) -> float:
        """Bytes/s of the narrowest part of a ring through so many workers. Between machines that
        is the network of one: it has to take in the ring once, whatever the GPUs beside it.
        """
        if self.machines(workers) == 1:
            return gpu.link
        return min(gpu.link, self.network_gb * 1e9)

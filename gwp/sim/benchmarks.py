"""The benchmarks by name. None is imported before it is asked for: each has an extra of its own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gwp.errors import GwpError

if TYPE_CHECKING:
    from gwp.sim.interface import Benchmark


def _metaworld() -> "Benchmark":
    from gwp.sim.metaworld import BENCHMARK

    return BENCHMARK


def _metaworld_wide() -> "Benchmark":
    from gwp.sim.metaworld import BENCHMARK_WIDE

    return BENCHMARK_WIDE


def _ogbench() -> "Benchmark":
    from gwp.sim.ogbench import BENCHMARK

    return BENCHMARK


def _aloha() -> "Benchmark":
    from gwp.sim.aloha.env import BENCHMARK

    return BENCHMARK


def _libero_object() -> "Benchmark":
    from gwp.sim.libero.env import BENCHMARK_OBJECT

    return BENCHMARK_OBJECT


def _libero_spatial() -> "Benchmark":
    from gwp.sim.libero.env import BENCHMARK_SPATIAL

    return BENCHMARK_SPATIAL


BENCHMARKS: "dict[str, Callable[[], Benchmark]]" = {
    "metaworld": _metaworld,
    "metaworld-wide": _metaworld_wide,
    "ogbench": _ogbench,
    "aloha": _aloha,
    "libero-object": _libero_object,
    "libero-spatial": _libero_spatial,
}
"""Name -> what gives the benchmark."""
DEFAULT = "metaworld"


def find(name: str) -> "Benchmark":
    """The benchmark of that name. GwpError when there is none."""
    if name not in BENCHMARKS:
        raise GwpError(f"benchmark {name}: choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]()

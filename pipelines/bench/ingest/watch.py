"""Memory of this process and of everything it started, looked at now and then while something
runs.
"""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psutil

from pipelines.compat import object_store_bytes

_MB = 1 << 20


def memory() -> dict[str, float]:
    """MiB by kind of process: this one (`driver`), Ray's servers (`ray`), all others that it
    started (`workers`).

    Without shared pages, so that the object store is not counted once for each process that
    maps it.
    """
    me = psutil.Process()
    mb = {"driver": _private(me), "ray": 0.0, "workers": 0.0}
    for child in me.children(recursive=True):
        try:
            mb["workers" if _works(child) else "ray"] += _private(child)
        except psutil.NoSuchProcess:
            # It ended since it was listed.
            continue
    return mb


def _works(process: psutil.Process) -> bool:
    """Whether it is a worker of Ray or of torch, and not one of Ray's servers: the agents of a
    node are Python too, and only their command line says so.
    """
    # `pt_`: what torch calls the processes of a DataLoader.
    if not process.name().startswith(("ray::", "python", "pt_")):
        return False
    return "agent" not in " ".join(process.cmdline())


def _private(process: psutil.Process) -> float:
    info = process.memory_info()
    return (info.rss - info.shared) / _MB


@dataclass
class Watch:
    """Use as a context manager. `seen`: seconds since the start and what `memory` said then."""

    every_s: float = 0.5
    seen: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        begin = time.monotonic()
        while True:
            # At once and again at the end of each wait, so that a short run has a figure too.
            self.seen.append((time.monotonic() - begin, memory()))
            if self._ended.wait(self.every_s):
                return

    @property
    def peak_mb(self) -> float:
        """Largest sum."""
        return max(sum(parts.values()) for _, parts in self.seen)


def store() -> dict[str, Any]:
    """Of Ray's object store on this node: MiB in use now, and MiB that were ever spilled to
    disk.
    """
    used, spilled = object_store_bytes()
    return {"used_mb": used / _MB, "spilled_mb": spilled / _MB}

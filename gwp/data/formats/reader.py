"""What has been read of data files, owned by whoever reads them."""

from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class FileReader:
    """Reads files once: indices, row groups and columns stay for as long as it lives.

    Whoever reads makes one and hands it down: a decoding process has its own, and so has the
    preparation of a run. Two of them share nothing, so a new one sees files that were written
    again. Threads may share one; it does not travel to other processes.
    """

    def __init__(self) -> None:
        self._kept: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._lock = Lock()

    def once(self, most: int, read: Callable[[*Ts], T], *args: *Ts) -> T:
        """`read(*args)`, called once for equal arguments; nobody may change what it returns.

        read: a function of a module, which reads something of a file. Its `most` results that
        were used last stay. What it raises is not kept: the next call tries again.
        """
        # Or two threads would keep the results of one function apart.
        with self._lock:
            if read not in self._kept:
                self._kept[read] = lru_cache(most)(read)
            kept = self._kept[read]
        # Unlocked, because reading may take a while. Two threads may read the same.
        result: T = kept(*args)
        return result

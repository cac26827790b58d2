"""What has been read of data files, owned by whoever reads them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
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
        self._results: dict[Callable[..., Any], OrderedDict[Hashable, Any]] = {}
        self._lock = Lock()

    def once(self, most: int, read: Callable[[*Ts], T], *args: *Ts) -> T:
        """`read(*args)`, called once for equal arguments; nobody may change what it returns.

        read: a function of a module, which reads something of a file. Its `most` results that
        were used last stay. What it raises is not kept: the next call tries again.
        """
        with self._lock:
            results = self._results.setdefault(read, OrderedDict())
            if args in results:
                results.move_to_end(args)
                return results[args]
        # Unlocked, because reading may take a while. Two threads may read the same.
        result = read(*args)
        with self._lock:
            results[args] = result
            results.move_to_end(args)
            while len(results) > most:
                results.popitem(last=False)
        return result

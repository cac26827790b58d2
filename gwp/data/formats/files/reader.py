"""What has been read of data files, owned by whoever reads them."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar, TypeVarTuple

from gwp import storage
from gwp.data.formats.files.numbers import Numbers
from gwp.data.formats.files.spool import Spool
from gwp.data.video.probe import Kinds
from gwp.errors import DataError, MissingError

WHOLE = 8 << 20
"""Remote files up to this many bytes are fetched in one request, and kept."""
_AT_ONCE = 64
"""Files that are asked for at a time where storage is far away."""
T = TypeVar("T")
S = TypeVar("S")
Ts = TypeVarTuple("Ts")


def several(
    uri: str, work: Callable[[S], T], items: Iterable[S], at_once: int | None = None
) -> Iterator[T]:
    """`work` of each item, in their order; several at a time where `uri` is far away and most of
    the time is spent on waiting.

    at_once: so many; None: as many as storage is asked for at a time
    """
    if not storage.is_remote(uri):
        yield from map(work, items)
        return
    waiting: deque[Future[T]] = deque()
    threads = at_once or _AT_ONCE
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                # Enough that nobody waits for one that is slow.
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Nobody wants them after an error.
            for future in waiting:
                future.cancel()


class FileReader:
    """Reads files once: indices, row groups and columns stay for as long as it lives.

    Whoever reads makes one and hands it down: a decoding process has its own, and so has the
    preparation of a run. Two of them share nothing, so a new one sees files that were written
    again. Threads may share one; it does not travel to other processes.

    numbers: of files that were looked at, for whoever asks for rows later; kinds: of videos, by
    their headers
    """

    def __init__(self) -> None:
        self._kept: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._lock = Lock()
        # Key -> threads that want it, and whose turn it is.
        self._turns: dict[Any, list[Any]] = {}
        self._spool = Spool()
        self.numbers = Numbers(self._spool)
        self.kinds: Kinds = {}
        # URI -> both ends of a file that is going to be opened.
        self._fetched: dict[str, tuple[bytes, bytes]] = {}
        self._asked: set[str] = set()

    def fetch(self, uri: str, size: int, whole: int = WHOLE) -> None:
        """Get what `open` will need of a remote file: all of it up to `whole` bytes, else both
        ends. From any thread; it waits in memory until the file is opened. Only the first time:
        what is looked at again has been kept.
        """
        if not storage.is_remote(uri) or uri in self._asked:
            return
        self._asked.add(uri)
        # What is wrong with a file is told when it is opened.
        with suppress(DataError, MissingError):
            self._fetched[uri] = self._ends(uri, size, whole)

    @staticmethod
    def _ends(uri: str, size: int, whole: int) -> tuple[bytes, bytes]:
        return storage.read_ends(uri, size, size if size <= whole else storage.ENDS)

    def read(self, uri: str, size: int) -> bytes:
        """All of a file, as `open` gives it."""
        if not storage.is_remote(uri):
            return storage.read_bytes(uri)
        with self.open(uri, size) as handle:
            data: bytes = handle.read()
            return data

    @contextmanager
    def open(
        self,
        uri: str,
        size: int | None = None,
        whole: int = WHOLE,
        keep: bool = True,
        native: bool = False,
        ahead: int | None = None,
    ) -> Iterator[Any]:
        """A seekable binary handle. A remote file whose `size` is given is fetched whole where
        it has up to `whole` bytes; of a larger one both ends come first.

        keep: whether a small one is opened again, and then costs no further request; native: as
        `storage.open_native`. ahead: bytes that are fetched at a time between the ends
        """
        if not storage.is_remote(uri):
            with storage.open_read(uri) as handle:
                yield handle
            return
        data = self._spool.get(uri)
        if data is not None:
            yield io.BytesIO(data)
        elif size is not None:
            ends = self._fetched.pop(uri, None) or self._ends(uri, size, whole)
            if len(ends[0]) == size:
                if keep:
                    self._spool.put(uri, ends[0])
                yield io.BytesIO(ends[0])
            else:
                with storage.open_ends(uri, size, ends, ahead or storage.ENDS, native) as handle:
                    yield handle
        elif native:
            with storage.open_native(uri, ahead or storage.ENDS) as handle:
                yield handle
        else:
            with storage.open_read(uri, ahead) as handle:
                yield handle

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
        # Reading may take a while: who wants the same waits for it, everybody else does not.
        with self._turn((read, args)):
            result: T = kept(*args)
        return result

    @contextmanager
    def _turn(self, key: Any) -> Iterator[None]:
        """One thread at a time, of those with equal keys."""
        with self._lock:
            turn = self._turns.setdefault(key, [0, Lock()])
            turn[0] += 1
        try:
            with turn[1]:
                yield
        finally:
            with self._lock:
                turn[0] -= 1
                if not turn[0]:
                    del self._turns[key]

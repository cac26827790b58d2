"""Open files of storage that outlive a bad moment of it."""

import io
from collections.abc import Callable
from typing import Any

import fsspec

from gwp.errors import DataError
from gwp.storage.door import call, filesystem, version_of


def read_ranges(uris: list[str], starts: list[int], ends: list[int]) -> list[bytes]:
    """Bytes `starts[i]` to `ends[i]` of each object, all of one file system, asked for at once;
    short where an object ends before.
    """
    if not uris:
        return []
    paths = [filesystem(uri)[1] for uri in uris]
    return call(
        uris[0],
        lambda fs, _: [
            bytes(part) for part in fs.cat_ranges(paths, starts, ends, on_error="raise")
        ],
    )


class Ranges(io.RawIOBase):
    """A remote file whose reads survive what passes: after a failure it is opened anew where it
    stood.
    """

    def __init__(self, uri: str, ahead: int | None) -> None:
        self._uri = uri
        self._options = {"block_size": ahead} if ahead else {}
        self._file = call(uri, self._open)
        self._broken = False
        self._ready: dict[int, bytes] = {}

    def _open(self, fs: fsspec.AbstractFileSystem, path: str) -> Any:
        return fs.open(path, "rb", **self._options)

    def fetch(self, ranges: list[tuple[int, int]]) -> None:
        """Ask for these bytes (begin, end; ascending, apart) at once; reads inside them cost
        nothing then, in place of earlier ones.
        """
        begins = [begin for begin, _ in ranges]
        ends = [end for _, end in ranges]
        blocks = read_ranges([self._uri] * len(ranges), begins, ends)
        self._ready = dict(zip(begins, blocks, strict=True))

    def read(self, size: int | None = -1) -> bytes:
        position = self._file.tell()
        for begin, ready in self._ready.items():
            if size and begin <= position < begin + len(ready):
                offset = position - begin
                part = ready[offset : offset + size if size > 0 else None]
                self._file.seek(position + len(part))
                # A short answer, as files may give; but not where all that is left was asked for.
                return part if size > 0 else part + self.read()

        def attempt(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
            # A handle that failed once may hold half a block: it is not asked again.
            if self._broken:
                before = self._file
                self._file = self._open(fs, path)
                old, new = (getattr(file, "details", {}) for file in (before, self._file))
                if version_of(new) != version_of(old):
                    raise DataError(f"{self._uri}: changed while it was read; read it again")
                self._file.seek(position)
            # Until it is known to have gone well.
            self._broken = True
            data = bytes(self._file.read(-1 if size is None else size))
            self._broken = False
            return data

        return call(self._uri, attempt)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Ends(io.RawIOBase):
    """A remote file of which the first and the last bytes are at hand, where formats keep their
    indices; another handle is opened at the first read between them.
    """

    def __init__(self, size: int, head: bytes, tail: bytes, rest: Callable[[], Any]) -> None:
        self._size, self._head, self._tail = size, head, tail
        self._rest = rest
        self._between: Any = None
        self._at = 0

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, wanted: int) -> bytes:
        """Up to so many bytes from here; fewer at a seam."""
        if self._at < len(self._head):
            return self._head[self._at : self._at + wanted]
        behind = self._size - len(self._tail)
        if self._at >= behind:
            return self._tail[self._at - behind : self._at - behind + wanted]
        if self._between is None:
            self._between = self._rest()
        self._between.seek(self._at)
        data: bytes = self._between.read(min(wanted, behind - self._at))
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

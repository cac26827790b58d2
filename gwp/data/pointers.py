"""Git LFS pointers: texts of three lines that stand for files which were not fetched."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gwp import storage
from gwp.errors import DataError, MissingError
from gwp.storage.names import shown_all

HEAD = b"version https://git-lfs"
ADVICE = "run `git lfs pull` where it came from"
_LARGEST = 1024
"""Bytes below which a file may be a pointer, says their specification."""
_LOOKED_AT = 64
"""Small files that are looked at for the sake of a better message."""


def pointers(uri: str, files: dict[str, int], names: Iterable[str]) -> list[str]:
    """Which of these files below `uri` are pointers. files: sizes."""
    small = (n for n in names if len(HEAD) <= files.get(n, _LARGEST) < _LARGEST)
    return [n for n in small if _is_pointer(uri, n)]


def _is_pointer(uri: str, name: str) -> bool:
    try:
        with storage.open_read(storage.join(uri, name)) as handle:
            return bytes(handle.read(len(HEAD))) == HEAD
    except MissingError:
        return False


@contextmanager
def told_of_pointers(uri: str, files: dict[str, int]) -> Iterator[None]:
    """Where there are pointers among the files of what cannot be read, its DataError says so."""
    try:
        yield
    except DataError as error:
        small = [name for name, size in files.items() if size < _LARGEST][:_LOOKED_AT]
        if found := pointers(uri, files, small):
            raise DataError(
                f"{uri}: Git LFS pointers in place of files ({shown_all(found)}), {ADVICE}; as it "
                f"is: {error}"
            ) from error
        raise

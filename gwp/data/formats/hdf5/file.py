"""HDF5 files: opened with care, and never a way to another file elsewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.errors import DataError, GwpError
from gwp.storage.names import relative_name, shown

_AHEAD = 64 << 10
"""Bytes that are fetched at a time: metadata lie scattered in small pieces, often beside one
another.
"""
_CHUNKS = 32 << 20
"""Bytes of decompressed chunks that stay while a camera is read: a compressed chunk often holds
many pictures.
"""
# What h5py raises of a damaged file: sizes and types in it may be anything.
DAMAGE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
)
# Of which the text is that of the library, and no word of Python's own.
_SAYING = (OSError, RuntimeError, KeyError)


@contextmanager
def opened(uri: str, reader: FileReader, size: int | None = None) -> Iterator[Any]:
    """The file as h5py has it; `size`, `reader`: as for `FileReader.open`. DataError when it is
    none, or damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise GwpError(f"{uri}: reading HDF5 needs h5py; run `pip install 'gwp[model]'`") from error
    try:
        if storage.is_remote(uri):
            # h5py holds a lock while it reads, and the garbage of another thread may wait for
            # it: no Python thread may do the reading.
            with (
                reader.open(uri, size, native=True, ahead=_AHEAD) as handle,
                h5py.File(handle, "r", rdcc_nbytes=_CHUNKS) as file,
            ):
                yield file
        else:
            # For the error of storage where it is not there. HDF5 would lock the file to read
            # it, too, which some network file systems refuse.
            with storage.open_read(uri) as handle:
                path = handle.name
            with h5py.File(path, "r", locking=False, rdcc_nbytes=_CHUNKS) as file:
                yield file
    except DataError as error:
        raise error if uri in str(error) else DataError(f"{uri}: {error}") from error
    except DAMAGE as error:
        raise DataError(f"{uri}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Why something of a file cannot be used, of what h5py raised or a DataError."""
    if isinstance(error, DataError):
        return str(error)
    # The text of a KeyError would come in quotes. As text: a name for the error would keep
    # it, and with it what h5py holds, for the collector of any thread.
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    why = f" ({' '.join(said.split())})" if isinstance(error, _SAYING) and said else ""
    return f"cannot be read as HDF5{why}; it is truncated or damaged"


def member_at(file: Any, path: str) -> Any:
    """What lies at a path of a file, every link on the way looked at as by `member_of`."""
    member = file
    for name in path.split("/"):
        if not hasattr(member, "keys") or name not in member:
            raise DataError(f"there is no {shown(path)} in it; name what it has, or write it again")
        member = member_of(member, name)
    return member


def member_of(group: Any, name: str) -> Any:
    """What is called so in a group.

    DataError when it lies in another file that is not in or below the folder of this one.
    """
    import h5py

    file, what = str(group.file.filename), f"{group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        _check_other_file(file, link.filename, what)
    member = group[name]
    # A link within the file may end in one that leaves it.
    if (other := str(member.file.filename)) != file:
        _check_other_file(file, os.path.relpath(other, Path(file).parent), what)
    if hasattr(member, "shape"):
        if member.external:
            # Which HDF5 looks for where this program runs.
            raise DataError(f"{what} has its numbers in another file; copy them into this one")
        for source in member.virtual_sources() if member.is_virtual else ():
            # HDF5's name for the file itself.
            if source.file_name != ".":
                _check_other_file(file, source.file_name, what)
    return member


def _check_other_file(file: str, other: str, what: str) -> None:
    """DataError unless `other` is beside or below `file`.

    What is not there, HDF5 looks for where this program runs.
    """
    relative_name(other, f"{what} lies in another file", DataError)
    if not (Path(file).parent / other).is_file():
        raise DataError(
            f"{what} lies in another file, {shown(other)}, which is not there; "
            "copy it beside this one on a local disk"
        )

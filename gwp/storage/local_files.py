"""Files of a local disk that are there whole or not at all, whoever is killed when."""

import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.gwp-[0-9a-f]{32}\.part")
# Nobody writes this long without the file's time of change moving on.
_LEFT_OVER_S = 3600.0
_SWEEP_EVERY_S = 600.0
# What file systems without hard links answer (FAT, SMB, most of FUSE).
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
# What those answer that cannot write a folder to disk by itself.
_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)

_swept: dict[Path, float] = {}


def is_temporary(name: str) -> bool:
    """Whether a path is a file in the making, or what a killed writer left of one: part of no
    bundle and no checkpoint.
    """
    return _TEMPORARY.fullmatch(name.rpartition("/")[2]) is not None


def create(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet, and have it on the disk; FileExistsError when it
    is.

    A hard link is the one call that gives a whole file its name only if nobody else has it.
    """
    with _temporary(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            # Over a network the link may have been made and its answer lost.
            if not temporary.samefile(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _claim(temporary, path)
        sync(path.parent)


def _claim(temporary: Path, path: Path) -> None:
    """As a link, where there are none: the name is taken empty, then filled by renaming. A kill
    between the two leaves it empty.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        os.replace(temporary, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to; what is there when the block ends well takes the place of `path` at
    once, else nothing changes.

    durable: it is on the disk then, under its name.
    """
    with _temporary(path) as temporary:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)


NOWHERE = -1
"""Stands for the size of a link that leads to nothing."""


def sizes_below(folder: Path, broken_links: bool = False) -> dict[str, int]:
    """Path relative to `folder` -> bytes, of every whole file below it, in order of their
    names. Links count as what they lead to: snapshots of the Hub are folders of links. A folder
    that lies in itself that way is not entered again. Those that lead to nothing are there with
    `broken_links` alone, as `NOWHERE`.

    Empty when there is no such folder. OSError when one may not be looked into: that is no
    absence.
    """
    found = sorted(_sizes(folder, "", frozenset()))
    return {name: size for name, size in found if broken_links or size != NOWHERE}


def _sizes(folder: Path, name: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    """name: of the folder, below where the walk began; above: the folders that it was reached
    by, as their file system numbers them
    """
    # Somebody may remove it meanwhile.
    try:
        state = folder.stat()
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    number = state.st_dev, state.st_ino
    for entry in entries if number not in above else ():
        yield from _sizes_of(entry, name + entry.name, above | {number})


def _sizes_of(
    entry: os.DirEntry[str], name: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    try:
        state = entry.stat()
    except (FileNotFoundError, NotADirectoryError):
        if entry.is_symlink():
            yield name, NOWHERE
        return
    except OSError as error:
        # A link that leads to itself leads nowhere.
        if error.errno != errno.ELOOP:
            raise
        yield name, NOWHERE
        return
    if stat.S_ISDIR(state.st_mode):
        yield from _sizes(Path(entry.path), f"{name}/", above)
    elif stat.S_ISREG(state.st_mode) and not is_temporary(name):
        yield name, state.st_size


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    _make_folder(path.parent)
    _sweep(path.parent)
    # Of its own for every call: threads and processes may write the same file.
    temporary = path.parent / f".gwp-{uuid.uuid4().hex}.part"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    # A file is on the disk only if every folder above it is.
    sync(folder.parent)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder, now and then."""
    now = time.monotonic()
    if now - _swept.get(folder, -_SWEEP_EVERY_S) < _SWEEP_EVERY_S:
        return
    _swept[folder] = now
    # Others may sweep too, or own the files.
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name) and time.time() - entry.stat().st_mtime > _LEFT_OVER_S:
                Path(entry.path).unlink()

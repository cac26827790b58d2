"""One way to reach files: local paths and `s3://` behave alike.

Addresses and credentials come from the standard environment (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`), never from URIs or configuration
files, so they cannot leak into logs.

Throttling, server errors, resets and timeouts are tried again for a while
(`gwp.storage.retry`); credentials that expired are read anew. Every call below goes through one
door (`gwp.storage.door`); nothing outside this module asks a file system itself.
"""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from gwp.errors import DataError, GwpError
from gwp.storage import local_files, multipart
from gwp.storage.door import absolute as absolute
from gwp.storage.door import arrow_filesystem as arrow_filesystem
from gwp.storage.door import call, info_of, version_of
from gwp.storage.door import filesystem as filesystem
from gwp.storage.door import is_remote as is_remote
from gwp.storage.errors import explained
from gwp.storage.handles import Ends, Ranges
from gwp.storage.handles import read_ranges as read_ranges
from gwp.storage.local_files import NOWHERE as NOWHERE
from gwp.storage.names import relative_names
from gwp.storage.native import native, read_parts
from gwp.storage.retry import answer_of

ENDS = 256 << 10
"""Bytes of either end of a file that are fetched to look at it: indices lie there."""


def join(uri: str, *parts: str) -> str:
    """`uri` and parts below it, one slash between each."""
    return "/".join([uri.rstrip("/"), *(p.strip("/") for p in parts)])


def exists(uri: str) -> bool:
    """Whether there is a file or a folder; whatever else goes wrong is raised."""
    return call(uri, lambda fs, path: info_of(fs, path) is not None)


def read_bytes(uri: str, size: int | None = None) -> bytes:
    """All of one file, in one request where its `size` is known. MissingError when there is
    none, DataError when it is of another size.
    """
    if size is None or size == 0 or not is_remote(uri):
        return call(uri, lambda fs, path: bytes(fs.cat_file(path)))
    return _read_parts(uri, size, [(0, size)])[0]


def _read_parts(uri: str, size: int, parts: Sequence[tuple[int, int]]) -> list[bytes]:
    """Bytes `begin` to `end` of a remote file of `size` bytes, for each part."""
    if uri.startswith("s3://"):
        return read_parts(uri, size, parts)
    found = read_ranges([uri] * len(parts), [a for a, _ in parts], [b for _, b in parts])
    if [len(part) for part in found] != [b - a for a, b in parts]:
        raise DataError(f"{uri}: changed while it was read; read it again")
    return found


def size_of(uri: str) -> int | None:
    """Bytes of the file at `uri`; None when there is none."""

    def work(fs: fsspec.AbstractFileSystem, path: str) -> int | None:
        info = info_of(fs, path)
        return int(info["size"]) if info and info["type"] == "file" else None

    return call(uri, work)


def write_bytes(uri: str, data: bytes, create_only: bool = False) -> None:
    """Write one object, whole or not at all. With `create_only`, FileExistsError when it is
    there already (`If-None-Match: *` on S3).
    """
    if uri.startswith("s3://"):
        # In parts of our own, each with a patience of its own.
        multipart.put(
            uri, partial(call, uri), lambda start, end: data[start:end], len(data), create_only
        )
    elif is_remote(uri):
        mode = "create" if create_only else "overwrite"
        call(uri, lambda fs, path: fs.pipe_file(path, data, mode=mode))
    elif create_only:
        call(uri, lambda _, path: local_files.create(Path(path), data))
    else:
        call(uri, lambda _, path: _replace(path, data))


def _replace(path: str, data: bytes) -> None:
    with local_files.replacing(Path(path), durable=False) as temporary:
        temporary.write_bytes(data)
        # So that a power cut leaves the old file or the new one whole; which of them is all the
        # same.
        local_files.sync(temporary)


def put_file(file: str | Path, uri: str) -> None:
    """Copy a local file to `uri`, whole or not at all."""
    # What is wrong with the file is not to be told of the URI.
    with explained(str(file)):
        size = Path(file).stat().st_size
    if uri.startswith("s3://"):
        multipart.put(uri, partial(call, uri), partial(_read_part, file), size)
    elif is_remote(uri):
        call(uri, lambda fs, path: fs.put_file(str(file), path))
    else:
        call(uri, lambda _, path: _copy(file, Path(path), durable=True))


def get_file(uri: str, file: str | Path) -> None:
    """Copy the file at `uri` to a local path, whole or not at all: what breaks off leaves
    nothing there.

    MissingError when there is none, DataError when it changes meanwhile.
    """
    if not is_remote(uri):
        call(uri, lambda _, path: _copy(path, Path(file), durable=False))
        return
    before = call(uri, lambda fs, path: fs.info(path))
    with explained(str(file)), local_files.replacing(Path(file), durable=False) as temporary:
        # Servers of plain HTTP need not say how long a file is.
        if before["size"] is None:
            call(uri, lambda fs, path: fs.get_file(path, str(temporary)))
            return
        if before["size"] <= multipart.PART:
            # One request, so one version of the object.
            once = {"max_concurrency": 1} if uri.startswith("s3://") else {}
            temporary.write_bytes(call(uri, lambda fs, path: fs.cat_file(path, **once)))
            return
        # Parts of two versions would make a file that never was.
        _get_parts(uri, before["size"], temporary)
        if version_of(call(uri, lambda fs, path: fs.info(path))) != version_of(before):
            raise DataError(f"{uri}: changed while it was read; read it again")


def _get_parts(uri: str, size: int, file: Path) -> None:
    def get(start: int) -> None:
        end = min(start + multipart.PART, size)
        data = call(uri, lambda fs, path: fs.cat_file(path, start=start, end=end))
        if len(data) != end - start:
            raise DataError(f"{uri}: changed while it was read; read it again")
        # At a position of its own: parts come in any order, from several threads.
        os.pwrite(handle, data, start)

    handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with ThreadPoolExecutor(multipart.PARALLEL) as pool:
            list(pool.map(get, range(0, size, multipart.PART)))
    finally:
        os.close(handle)


def _read_part(file: str | Path, start: int, end: int) -> bytes:
    with explained(str(file)), open(file, "rb") as handle:
        handle.seek(start)
        return handle.read(end - start)


def _copy(source: str | Path, target: Path, durable: bool) -> None:
    with local_files.replacing(target, durable) as temporary:
        shutil.copyfile(source, temporary)


def remove(uri: str) -> None:
    """Remove one file if it is there."""

    def work(fs: fsspec.AbstractFileSystem, path: str) -> None:
        info = info_of(fs, path)
        if info and info["type"] == "file":
            # Somebody else may be faster.
            with suppress(FileNotFoundError):
                fs.rm_file(path)

    call(uri, work)


def remove_tree(uri: str) -> None:
    """Remove every file below `uri`, and the folder. What breaks off can be called again."""
    if not is_remote(uri):
        call(uri, lambda _, path: _remove_folder(path))
        return

    def remove_one(name: str) -> None:
        call(join(uri, name), lambda fs, path: fs.rm_file(path))

    # One by one: S3 answers the removal of many with success whatever became of each.
    with ThreadPoolExecutor(multipart.PARALLEL) as pool:
        # The list raises what one of them raised.
        list(pool.map(remove_one, list_files(uri)))


def _remove_folder(path: str) -> None:
    # Again when somebody else removes the same files.
    while Path(path).is_dir():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def open_read(uri: str, ahead: int | None = None) -> Any:
    """A seekable binary handle that fetches ranges, not the whole object. `ahead`: bytes behind
    a range that are fetched with it.
    """
    if is_remote(uri):
        return Ranges(uri, ahead)
    return call(uri, lambda fs, path: fs.open(path, "rb"))


@contextmanager
def open_native(uri: str, ahead: int) -> Iterator[Any]:
    """As `open_read`, but from S3 reads wait for no Python thread: for libraries that hold a
    lock of their own meanwhile.

    A read that fails, whatever the library made of it, leaves the block as the error of storage
    that it was.
    """
    with native(uri, ahead) if uri.startswith("s3://") else open_read(uri, ahead) as handle:
        yield handle


def read_ends(uri: str, size: int, ahead: int) -> tuple[bytes, bytes]:
    """The first and the last `ahead` bytes of a remote file of `size`, the second empty where
    the first are all.
    """
    begin, end = min(ahead, size), max(ahead, size - ahead)
    # No store gives an empty range.
    edges = [edge for edge in ((0, begin), (end, size)) if edge[0] < edge[1]]
    head, tail = [*_read_parts(uri, size, edges), b"", b""][:2]
    return head, tail


@contextmanager
def open_ends(
    uri: str, size: int, ends: tuple[bytes, bytes], ahead: int, for_native: bool = False
) -> Iterator[Any]:
    """As `open_read`, of a remote file of `size` bytes whose ends were read. `for_native`: what
    lies between is read as by `open_native`.
    """
    with ExitStack() as opened:

        def rest() -> Any:
            if for_native:
                return opened.enter_context(open_native(uri, ahead))
            return opened.enter_context(open_read(uri, ahead))

        yield io.BufferedReader(Ends(size, *ends, rest))


def list_files(uri: str, broken_links: bool = False) -> dict[str, int]:
    """Every file below `uri`: path relative to it -> size in bytes. Empty when there is none.
    Links count as the files they lead to; those that lead to nothing are there with
    `broken_links` alone, as `NOWHERE`.
    """

    def work(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, int]:
        if not is_remote(uri):
            return local_files.sizes_below(Path(path), broken_links)
        try:
            infos = fs.find(path, detail=True)
        except FileNotFoundError as error:
            # A prefix without keys is empty; a bucket that is not there is a mistake.
            answer = answer_of(error)
            if answer is not None and answer.code == "NoSuchBucket":
                raise
            return {}
        sizes: dict[str, int] = {}
        for key, info in infos.items():
            # Snapshots of the Hub are folders of links to files; fsspec counts a link as
            # neither file nor folder.
            is_file = info["type"] == "file" or (info.get("islink") and Path(key).is_file())
            name = key[len(path) :].lstrip("/")
            # Some writers leave empty objects that stand for folders.
            if is_file and name and not name.endswith("/"):
                sizes[name] = int(info["size"])
        return sizes

    return call(uri, work)


def upload(folder: str | Path, uri: str) -> None:
    """Copy every file below a local folder to `uri`, keeping relative paths; links as what they
    lead to. GwpError for a name that `download` would refuse.
    """
    # All of them are looked at before the first is copied.
    for name in relative_names(local_files.sizes_below(Path(folder)), str(folder)):
        put_file(Path(folder) / name, join(uri, name))


def download(uri: str, folder: str | Path) -> Path:
    """Copy every file below `uri` into a local folder, keeping relative paths.

    GwpError, and nothing is copied, when one of the names is not plain and relative: keys of a
    bucket may hold `..`.
    """
    # All of them are looked at before the first is copied.
    names = relative_names(list_files(uri), uri)
    if not names:
        raise GwpError(f"{uri}: nothing there; check the URI")
    for name in names:
        get_file(join(uri, name), Path(folder) / name)
    return Path(folder)

"""One way to reach files: local paths and `s3://` behave alike.

Addresses and credentials come from the standard environment (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`), never from URIs or configuration
files, so they cannot leak into logs.

Throttling, server errors, resets and timeouts are tried again for a while
(`gwp.storage.retry`); credentials that expired are read anew.
"""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import fsspec

from gwp.errors import GwpError, MissingError
from gwp.storage.retry import PATIENCE, expired, passing, patience_s, patiently

T = TypeVar("T")

_MISSING_BUCKET = ("nosuchbucket", "bucket does not exist", "specified bucket")
_DENIED = (
    "forbidden",
    "accessdenied",
    "access denied",
    "access_denied",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "unable to locate credentials",
    "no credentials",
    "nocredentialserror",
    "403",
)


# Attempts of botocore, s3fs and ours would multiply; ours have jitter, and know expired
# credentials. Seconds.
_ONE_ATTEMPT = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 30}


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(p.strip("/") for p in parts)])


def absolute(uri: str) -> str:
    """`uri` from wherever it is used: a local path from the root."""
    return uri if is_remote(uri) else os.path.abspath(uri.removeprefix("file://"))


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system behind `uri` and the path inside it."""
    if uri.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        kwargs: dict[str, Any] = {
            "client_kwargs": {"endpoint_url": endpoint} if endpoint else {},
            # A mini S3 resolves no bucket.host names.
            "config_kwargs": _ONE_ATTEMPT
            | ({"s3": {"addressing_style": "path"}} if endpoint else {}),
            "default_block_size": 4 << 20,
            "default_fill_cache": False,
            # Another process may write between two looks.
            "use_listings_cache": False,
        }
        remote = fsspec.filesystem("s3", **kwargs)
        remote.retries = 1
        return remote, uri.removeprefix("s3://").rstrip("/")
    fs, path = fsspec.core.url_to_fs(
        uri if is_remote(uri) else os.path.abspath(uri.removeprefix("file://"))
    )
    return fs, path


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow file system behind `uri` (for Ray Train and Parquet) and the path inside it."""
    import pyarrow.fs as pafs

    if uri.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        # Each wait is about twice as long as the one before, from half a second on: together
        # they come near our patience.
        attempts = 2 + int(math.log2(max(1.0, patience_s())))
        kwargs: dict[str, Any] = {
            "region": os.environ.get("AWS_REGION", "us-east-1"),
            "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        }
        if endpoint:
            parsed = urlparse(endpoint)
            kwargs |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
        return pafs.S3FileSystem(**kwargs), uri.removeprefix("s3://").rstrip("/")
    return pafs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))


def _patiently(uri: str, work: Callable[[fsspec.AbstractFileSystem, str], T]) -> T:
    """`work` with the file system and path of `uri`, tried again where that may help."""

    def renew() -> None:
        type(filesystem(uri)[0]).clear_instance_cache()

    with explained(uri):
        return patiently(
            lambda: work(*filesystem(uri)), renew if uri.startswith("s3://") else lambda: None
        )


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what storage libraries raise about a bucket, a key or credentials into one line with
    the fix.
    """
    try:
        yield
    except GwpError:
        raise
    except Exception as error:
        text = f"{type(error).__name__} {error}".lower()
        if any(word in text for word in _MISSING_BUCKET):
            bucket = urlparse(uri).netloc
            raise GwpError(
                f"{uri}: bucket '{bucket}' does not exist; create it or correct the URI"
            ) from error
        if expired(error):
            raise GwpError(
                f"{uri}: credentials have expired or are wrong; renew them where the AWS_* "
                "environment finds them"
            ) from error
        if isinstance(error, PermissionError) or any(word in text for word in _DENIED):
            raise GwpError(
                f"{uri}: access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
                "AWS_ENDPOINT_URL"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise MissingError(
                f"{uri}: not found; check the URI"
                + (" and AWS_ENDPOINT_URL" if uri.startswith("s3://") else "")
            ) from error
        if (
            isinstance(error, (ConnectionError, TimeoutError))
            or "could not connect" in text
            or "endpointconnectionerror" in text
        ):
            raise GwpError(
                f"{uri}: storage does not answer ({error}); check AWS_ENDPOINT_URL and the network"
            ) from error
        if passing(error):
            raise GwpError(
                f"{uri}: storage keeps failing ({type(error).__name__}: {error}); try later, "
                f"or raise {PATIENCE}"
            ) from error
        raise


def exists(uri: str) -> bool:
    return _patiently(uri, lambda fs, path: bool(fs.exists(path)))


def read_bytes(uri: str) -> bytes:
    return _patiently(uri, lambda fs, path: bytes(fs.cat_file(path)))


def size_of(uri: str) -> int | None:
    """Bytes of the file at `uri`; None when there is none."""
    return _patiently(uri, lambda fs, path: int(fs.size(path)) if fs.isfile(path) else None)


def read_ranges(uris: list[str], starts: list[int], ends: list[int]) -> list[bytes]:
    """Bytes `starts[i]` to `ends[i]` of each object, all of one file system, asked for at once;
    short where an object ends before.
    """
    if not uris:
        return []
    paths = [filesystem(uri)[1] for uri in uris]
    return _patiently(
        uris[0],
        lambda fs, _: [
            bytes(part) for part in fs.cat_ranges(paths, starts, ends, on_error="raise")
        ],
    )


def write_bytes(uri: str, data: bytes, create_only: bool = False) -> None:
    """Write one object. With `create_only`, FileExistsError when it is there already
    (`If-None-Match: *` on S3).
    """
    if not uri.startswith("s3://"):
        path = filesystem(uri)[1]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not create_only:
            scratch = f"{path}.part-{os.getpid()}"
            Path(scratch).write_bytes(data)
            os.replace(scratch, path)
            return
        with open(path, "xb") as file:
            file.write(data)
        return
    attempts = 0

    def put(fs: fsspec.AbstractFileSystem, path: str) -> None:
        nonlocal attempts
        attempts += 1
        fs.pipe_file(path, data, mode="create" if create_only else "overwrite")

    try:
        _patiently(uri, put)
    except FileExistsError:
        # An attempt whose answer was lost may have written it.
        if attempts == 1 or read_bytes(uri) != data:
            raise
    except Exception as error:
        if not (create_only and "PreconditionFailed" in f"{type(error).__name__} {error}"):
            raise
        if attempts == 1 or read_bytes(uri) != data:
            raise FileExistsError(uri) from error


def remove(uri: str) -> None:
    """Remove one file if it is there."""
    _patiently(uri, lambda fs, path: fs.rm_file(path) if fs.isfile(path) else None)


def open_read(uri: str, ahead: int | None = None) -> Any:
    """A seekable binary handle that fetches ranges, not the whole object. `ahead`: bytes behind
    a range that are fetched with it.
    """
    if is_remote(uri):
        return _Ranges(uri, ahead)
    return _patiently(uri, lambda fs, path: fs.open(path, "rb"))


class _Ranges(io.RawIOBase):
    """A remote file whose reads survive what passes: after a failure it is opened anew where it
    stood.
    """

    def __init__(self, uri: str, ahead: int | None) -> None:
        self._uri = uri
        self._options = {"block_size": ahead} if ahead else {}
        self._file = _patiently(uri, self._open)
        self._broken = False
        self._ready: dict[int, bytes] = {}

    def _open(self, fs: fsspec.AbstractFileSystem, path: str) -> Any:
        return fs.open(path, "rb", **self._options)

    def fetch(self, ranges: list[tuple[int, int]]) -> None:
        """Ask for these bytes (begin, end; ascending, apart) at once; reads inside them cost
        nothing then, in place of earlier ones.
        """
        found = read_ranges(
            [self._uri] * len(ranges), [a for a, _ in ranges], [b for _, b in ranges]
        )
        self._ready = {begin: data for (begin, _), data in zip(ranges, found, strict=True)}

    def read(self, size: int | None = -1) -> bytes:
        at = self._file.tell()
        for begin, ready in self._ready.items():
            if size and begin <= at < begin + len(ready):
                part = ready[at - begin : at - begin + size if size > 0 else None]
                self._file.seek(at + len(part))
                # A short answer, as files may give; but not where all that is left was asked for.
                return part if size > 0 else part + self.read()

        def attempt(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
            if self._broken:
                self._file = self._open(fs, path)
                self._file.seek(at)
            # Until it is known to have gone well.
            self._broken = True
            data = bytes(self._file.read(-1 if size is None else size))
            self._broken = False
            return data

        return _patiently(self._uri, attempt)

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


@contextmanager
def open_native(uri: str, ahead: int) -> Iterator[Any]:
    """As `open_read`, but from S3 reads wait for no Python thread: for libraries that hold a
    lock of their own meanwhile.
    """
    if not uri.startswith("s3://"):
        with open_read(uri, ahead) as handle:
            yield handle
        return
    with explained(uri):
        fs, path = arrow_filesystem(uri)
        raw = fs.open_input_file(path)
    with raw:
        yield io.BufferedReader(raw, ahead)


def list_files(uri: str) -> dict[str, int]:
    """Every file below `uri`: path relative to it -> size in bytes. Empty when there is none."""

    def work(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, int]:
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError as error:
            if any(word in str(error).lower() for word in _MISSING_BUCKET):
                raise
            return {}
        files = {
            n[len(path) :].lstrip("/"): int(i["size"])
            for n, i in found.items()
            if i["type"] == "file"
        }
        # Some writers leave empty objects that stand for folders.
        return {name: size for name, size in files.items() if name and not name.endswith("/")}

    return _patiently(uri, work)


def upload(folder: str | Path, uri: str) -> None:
    """Copy every file below a local folder to `uri`, keeping relative paths."""
    root = filesystem(uri)[1]
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            target = join(root, file.relative_to(folder).as_posix())
            if not is_remote(uri):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            _patiently(uri, partial(_put, str(file), target))


def download(uri: str, folder: str | Path) -> Path:
    """Copy every file below `uri` into a local folder, keeping relative paths."""
    names = list_files(uri)
    root = filesystem(uri)[1]
    if not names:
        raise GwpError(f"{uri}: nothing there; check the URI")
    for name in names:
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _patiently(uri, partial(_get, join(root, name), str(target)))
    return Path(folder)


def _put(file: str, target: str, fs: fsspec.AbstractFileSystem, _: str) -> None:
    fs.put_file(file, target)


def _get(source: str, file: str, fs: fsspec.AbstractFileSystem, _: str) -> None:
    fs.get_file(source, file)

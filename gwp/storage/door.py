"""The one door to storage: file systems, and calls of them that are patient and explain what
fails.

Nothing but the modules of storage goes through it by itself; everybody else calls
`gwp.storage`.
"""

import math
import os
import re
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

import fsspec
from fsspec.implementations.local import LocalFileSystem

from gwp.errors import GwpError
from gwp.storage.errors import explained
from gwp.storage.retry import answer_of, passing, patience_s, patiently

T = TypeVar("T")

CONNECTIONS = 64
"""Requests of a process that S3 answers at a time."""
_OTHERS = ("http", "https", "memory")
"""Of the file systems of fsspec, beside S3 and local files, those that are read."""
# HTTP states that an answer to HEAD gives without the reason.
_UNNAMED = (301, 400, 401, 403)


def is_remote(uri: str) -> bool:
    """Whether a URI names anything but a file of this machine."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """`uri` from wherever it is used: a local path from the root; `~` is the user's home."""
    return (
        uri if is_remote(uri) else os.path.abspath(Path(uri.removeprefix("file://")).expanduser())
    )


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system behind `uri` and the path inside it."""
    if uri.startswith("s3://"):
        if not uri.removeprefix("s3://").strip("/"):
            raise GwpError(f"{uri}: names no bucket; write s3://bucket/prefix")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        kwargs: dict[str, Any] = {
            "client_kwargs": {"endpoint_url": endpoint} if endpoint else {},
            # A mini S3 resolves no bucket.host names.
            "config_kwargs": _client_patience()
            | ({"s3": {"addressing_style": "path"}} if endpoint else {}),
            "default_block_size": 4 << 20,
            "default_fill_cache": False,
            # Another process may write between two looks.
            "use_listings_cache": False,
        }
        remote = fsspec.filesystem("s3", **kwargs)
        # Those of s3fs would multiply with the client's and with ours, which cover all that
        # they do.
        remote.retries = 1
        return remote, _in_bucket(uri)
    if not is_remote(uri):
        return _local(), absolute(uri)
    if uri.partition("://")[0] not in _OTHERS:
        raise GwpError(
            f"{uri}: is of no kind that is read; copy it to a local folder or to s3:// (in small "
            "letters), and name that"
        )
    fs, path = fsspec.core.url_to_fs(uri)
    return fs, path


def _in_bucket(uri: str) -> str:
    """Bucket and key of `s3://...`: one slash between each part, as a path has, for a key with an
    empty part is a slip nearly always.
    """
    path = uri.removeprefix("s3://").rstrip("/")
    return re.sub("/+", "/", path).lstrip("/") if path.startswith("/") or "//" in path else path


@lru_cache(1)
def _local() -> fsspec.AbstractFileSystem:
    # Asking fsspec each time costs more than opening a file.
    return LocalFileSystem()


def _client_patience() -> dict[str, Any]:
    """Three attempts of botocore for each request: a floor also where one takes longer than our
    patience. Its waits are about a second; its timeouts are such that three silent attempts
    take about half as long again as the patience.
    """
    timeout = min(30.0, max(5.0, patience_s() / 2))
    return {
        # Its ten would be all that a store far away answers at a time.
        "max_pool_connections": CONNECTIONS,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": 5,
        "read_timeout": timeout,
    }


def arrow_filesystem(uri: str, patient: bool = True) -> tuple[Any, str]:
    """The pyarrow file system behind `uri` (for Ray Train and Parquet) and the path inside it.
    `patient`: whether what fails is tried again.
    """
    import pyarrow.fs as pafs

    if uri.startswith("s3://"):
        # Each wait is about twice as long as the one before, from half a second on: together
        # they come near our patience.
        attempts = 2 + int(math.log2(max(1.0, patience_s()))) if patient else 1
        settings = tuple(os.environ.get(name) for name in _SETTINGS)
        return _arrow_s3(attempts, settings), _in_bucket(uri)
    return pafs.LocalFileSystem(), absolute(uri)


_SETTINGS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
)
"""Of the environment, on which a client depends."""


@lru_cache(16)
def _arrow_s3(attempts: int, settings: tuple[str | None, ...]) -> Any:
    """A client costs some 30 ms. settings: values of `_SETTINGS`"""
    import pyarrow as pa
    import pyarrow.fs as pafs

    endpoint = settings[0] or settings[1]
    kwargs: dict[str, Any] = {
        "region": settings[2] or "us-east-1",
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    }
    if endpoint:
        parsed = urlparse(endpoint)
        kwargs |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    # A client has as many connections as Arrow has threads when it is made.
    threads = pa.io_thread_count()
    pa.set_io_thread_count(max(threads, CONNECTIONS))
    try:
        return pafs.S3FileSystem(**kwargs)
    finally:
        pa.set_io_thread_count(threads)


def call(uri: str, work: Callable[[fsspec.AbstractFileSystem, str], T], patient: bool = True) -> T:
    """`work` with the file system and path of `uri`, tried again where that may help."""

    def attempt() -> T:
        fs, path = filesystem(uri)
        try:
            return work(fs, path)
        except Exception as error:
            _ask_reason(uri, fs, path, error)
            raise

    def renew() -> None:
        # fsspec keeps one client per set of arguments, with the credentials that it once read.
        type(filesystem(uri)[0]).clear_instance_cache()

    with explained(uri):
        if not patient:
            return attempt()
        return patiently(attempt, renew if uri.startswith("s3://") else lambda: None)


def _ask_reason(uri: str, fs: fsspec.AbstractFileSystem, path: str, error: Exception) -> None:
    """Raise the reason of a refusal that names none: answers to HEAD have no body, those to GET
    do.
    """
    refusal = answer_of(error)
    if (
        not uri.startswith("s3://")
        or refusal is None
        or not refusal.code.isdigit()
        or refusal.status not in _UNNAMED
    ):
        return
    bucket, key, _ = fs.split_path(path)
    try:
        # The least that is a GET: one byte, or one key of a bucket.
        if key:
            fs.cat_file(path, start=0, end=1)
        else:
            fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except Exception as named:
        # Of the same refusal, or of a bad moment; anything else is another matter.
        reason = answer_of(named)
        if passing(named) or (reason is not None and reason.status == refusal.status):
            raise


def info_of(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """`size` and `type` of what is at a path; None when nothing is. Any other failure is
    raised: fsspec's own `exists` and `isfile` take it for an absence.
    """
    try:
        # fsspec gives the type of a link itself, not of what it leads to.
        if isinstance(fs, LocalFileSystem):
            state = Path(path).stat()
            kind = "file" if stat.S_ISREG(state.st_mode) else "directory"
            return {"size": state.st_size, "type": kind}
        info: dict[str, Any] = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info


def version_of(info: dict[str, Any]) -> tuple[Any, ...]:
    """What differs when a file was replaced, as far as its file system tells."""
    return info.get("size"), info.get("ETag"), info.get("LastModified")

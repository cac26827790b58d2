"""One way to reach files: local paths and `s3://` behave alike.

Addresses and credentials come from the standard environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION`), never from URIs or configuration files, so they cannot leak into logs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import fsspec

from gwp.errors import GwpError

_MISSING_BUCKET = ("nosuchbucket", "bucket does not exist", "specified bucket")
_DENIED = ("forbidden", "accessdenied", "access denied", "invalidaccesskeyid", "signaturedoesnotmatch", "unable to locate credentials",
           "no credentials", "nocredentialserror", "403")


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(p.strip("/") for p in parts)])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system behind `uri` and the path inside it."""
    if uri.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        kwargs: dict[str, Any] = {
            "client_kwargs": {"endpoint_url": endpoint} if endpoint else {},
            # A mini S3 resolves no bucket.host names.
            "config_kwargs": {"s3": {"addressing_style": "path"}} if endpoint else {},
            "default_block_size": 4 << 20,
            "default_fill_cache": False,
            # Another process may write between two looks.
            "use_listings_cache": False,
        }
        return fsspec.filesystem("s3", **kwargs), uri.removeprefix("s3://").rstrip("/")
    fs, path = fsspec.core.url_to_fs(uri if is_remote(uri) else os.path.abspath(uri.removeprefix("file://")))
    return fs, path


def arrow_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow file system behind `uri` (for Ray Train and Parquet) and the path inside it."""
    import pyarrow.fs as pafs

    if uri.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        kwargs: dict[str, Any] = {"region": os.environ.get("AWS_REGION", "us-east-1")}
        if endpoint:
            parsed = urlparse(endpoint)
            kwargs |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
        return pafs.S3FileSystem(**kwargs), uri.removeprefix("s3://").rstrip("/")
    return pafs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what storage libraries raise about a bucket, a key or credentials into one line with the fix."""
    try:
        yield
    except GwpError:
        raise
    except Exception as error:
        text = f"{type(error).__name__} {error}".lower()
        if any(word in text for word in _MISSING_BUCKET):
            bucket = urlparse(uri).netloc
            raise GwpError(f"{uri}: bucket '{bucket}' does not exist; create it or correct the URI") from error
        if isinstance(error, PermissionError) or any(word in text for word in _DENIED):
            raise GwpError(f"{uri}: access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL") from error
        if isinstance(error, FileNotFoundError):
            raise GwpError(f"{uri}: not found; check the URI" + (" and AWS_ENDPOINT_URL" if uri.startswith("s3://") else "")) from error
        if isinstance(error, (ConnectionError, TimeoutError)) or "could not connect" in text or "endpointconnectionerror" in text:
            raise GwpError(f"{uri}: storage does not answer ({error}); check AWS_ENDPOINT_URL and the network") from error
        raise


def exists(uri: str) -> bool:
    with explained(uri):
        fs, path = filesystem(uri)
        return bool(fs.exists(path))


def read_bytes(uri: str) -> bytes:
    with explained(uri):
        fs, path = filesystem(uri)
        return bytes(fs.cat_file(path))


def write_bytes(uri: str, data: bytes, create_only: bool = False) -> None:
    """Write one object. With `create_only`, FileExistsError when it is there already (`If-None-Match: *` on S3)."""
    fs, path = filesystem(uri)
    if not uri.startswith("s3://"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not create_only:
            scratch = f"{path}.part-{os.getpid()}"
            Path(scratch).write_bytes(data)
            os.replace(scratch, path)
            return
        with open(path, "xb") as file:
            file.write(data)
        return
    with explained(uri):
        try:
            fs.pipe_file(path, data, mode="create" if create_only else "overwrite")
        except FileExistsError:
            raise
        except Exception as error:
            if create_only and "PreconditionFailed" in f"{type(error).__name__} {error}":
                raise FileExistsError(uri) from error
            raise


def open_read(uri: str) -> Any:
    """A seekable binary handle that fetches ranges, not the whole object."""
    with explained(uri):
        fs, path = filesystem(uri)
        return fs.open(path, "rb")


def list_files(uri: str) -> dict[str, int]:
    """Every file below `uri`: path relative to it -> size in bytes. Empty when there is none."""
    with explained(uri):
        fs, path = filesystem(uri)
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError as error:
            if any(word in str(error).lower() for word in _MISSING_BUCKET):
                raise
            return {}
        files = {n[len(path):].lstrip("/"): int(i["size"]) for n, i in found.items() if i["type"] == "file"}
        # Some writers leave empty objects that stand for folders.
        return {name: size for name, size in files.items() if name and not name.endswith("/")}


def upload(folder: str | Path, uri: str) -> None:
    """Copy every file below a local folder to `uri`, keeping relative paths."""
    fs, root = filesystem(uri)
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file():
            target = join(root, file.relative_to(folder).as_posix())
            if not is_remote(uri):
                Path(target).parent.mkdir(parents=True, exist_ok=True)
            with explained(uri):
                fs.put_file(str(file), target)


def download(uri: str, folder: str | Path) -> Path:
    """Copy every file below `uri` into a local folder, keeping relative paths."""
    names = list_files(uri)
    fs, root = filesystem(uri)
    if not names:
        raise GwpError(f"{uri}: nothing there; check the URI")
    for name in names:
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with explained(uri):
            fs.get_file(join(root, name), str(target))
    return Path(folder)

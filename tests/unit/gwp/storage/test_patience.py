"""No public call of storage or of checkpoints fails for two refusals and a broken connection on
each of its requests.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gwp import storage
from gwp.errors import GwpError
from gwp.storage import multipart, retry
from tests.support.faults import Fault, FaultyProxy, faulty_s3

BUCKET = "s3://bad-day"
# The large object has three parts.
PART = 64 << 10
LARGE = random.Random(0).randbytes(2 * PART + 1000)
SMALL = b"small" * 100
# s3fs asks for ranges of what is larger than 4 MiB.
HUGE = random.Random(1).randbytes((4 << 20) + 1000)

# Neither ask a server anything.
PURE = {
    "join",
    "absolute",
    "is_remote",
    "filesystem",
    "explained",
    "call",
    "info_of",
    "version_of",
    "native",
}
PURE_CHECKPOINTS = {
    "best",
    "installed_versions",
    "checkpoint_uri",
    "place_of",
    "sha256_file",
    "step_of",
}


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_s3("bad-day") as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr(multipart, "PART", PART)
        # S3 takes no parts below 5 MiB; these are smaller, so that the tests are fast.
        patch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
        patch.setattr(retry, "_FIRST_S", 0.01)
        storage.write_bytes(f"{BUCKET}/patience/small", SMALL)
        storage.write_bytes(f"{BUCKET}/patience/deep/large", LARGE)
        storage.write_bytes(f"{BUCKET}/huge", HUGE)
        yield running


@pytest.fixture(autouse=True)
def _calm(proxy: FaultyProxy) -> Iterator[None]:
    yield
    proxy.fault = lambda *_: None


def plan(last: Fault) -> Callable[[str, str, str], Fault | None]:
    """Each request is refused twice, then its connection breaks, then it is answered."""
    times: Counter[tuple[str, str]] = Counter()

    def decide(method: str, path: str, _: str) -> Fault | None:
        # Each upload has a number of its own; what is asked of it is the same.
        request = method, re.sub(r"uploadId=[^&]+", "uploadId", path)
        times[request] += 1
        return {1: "slow down", 2: "slow down", 3: last}.get(times[request])

    return decide


def read_through(handle: object) -> bytes:
    return b"".join(iter(lambda: handle.read(1 << 20), b""))  # type: ignore[attr-defined]


def opened(uri: str) -> bytes:
    with storage.open_read(uri) as handle:
        return read_through(handle)


def opened_by_ends(uri: str) -> bytes:
    size, ends = len(LARGE), (LARGE[:1000], LARGE[-1000:])
    with (
        storage.open_ends(uri, size, ends, 1 << 20) as handle,
        storage.open_ends(uri, size, ends, 1 << 20, for_native=True) as natively,
    ):
        first, second = read_through(handle), read_through(natively)
        assert first == second
        return first


def opened_natively(uri: str) -> bytes:
    with storage.open_native(uri, 1 << 20) as handle:
        return read_through(handle)


def through_arrow(uri: str) -> bytes:
    fs, path = storage.arrow_filesystem(uri)
    with fs.open_output_stream(path) as stream:
        stream.write(LARGE)
    with fs.open_input_stream(path) as stream:
        return bytes(stream.read())


def written(write: Callable[[str], None], uri: str) -> bytes:
    write(uri)
    return storage.read_bytes(uri)


def put(data: bytes, folder: Path, uri: str) -> bytes:
    (folder / "file").write_bytes(data)
    storage.put_file(folder / "file", uri)
    return storage.read_bytes(uri)


def got(uri: str, folder: Path) -> bytes:
    storage.get_file(uri, folder / "file")
    return (folder / "file").read_bytes()


def uploaded(folder: Path, uri: str) -> dict[str, int]:
    (folder / "deep").mkdir()
    (folder / "small").write_bytes(SMALL)
    (folder / "deep/large").write_bytes(LARGE)
    storage.upload(folder, uri)
    return storage.list_files(uri)


def downloaded(uri: str, folder: Path) -> dict[str, bytes]:
    storage.download(uri, folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def removed(remove: Callable[[str], None], uri: str) -> dict[str, int]:
    for name in ("a", "b/c"):
        storage.write_bytes(storage.join(uri, name), SMALL)
    remove(uri)
    return storage.list_files(uri)


SIZES = {"small": len(SMALL), "deep/large": len(LARGE)}
SET, AWAY = f"{BUCKET}/patience", f"{BUCKET}/away"
# Call -> what it gives, and what it should.
CALLS: dict[str, tuple[Callable[[str, Path], object], object]] = {
    "exists": (
        lambda uri, _: (
            storage.exists(f"{SET}/small"),
            storage.exists(SET),
            storage.exists(BUCKET),
        ),
        (True, True, True),
    ),
    "exists, not": (lambda uri, _: storage.exists(f"{SET}/nothing"), False),
    "size_of": (lambda uri, _: storage.size_of(f"{SET}/small"), len(SMALL)),
    "size_of, none": (lambda uri, _: storage.size_of(f"{SET}/nothing"), None),
    "read_bytes": (lambda uri, _: storage.read_bytes(f"{SET}/small"), SMALL),
    "read_bytes, huge": (lambda uri, _: storage.read_bytes(f"{BUCKET}/huge"), HUGE),
    "read_ranges": (
        lambda uri, _: storage.read_ranges([f"{SET}/small"] * 2, [1, 100], [3, 105]),
        [b"ma", b"small"],
    ),
    "write_bytes": (lambda uri, _: written(lambda u: storage.write_bytes(u, SMALL), uri), SMALL),
    "write_bytes, large": (
        lambda uri, _: written(lambda u: storage.write_bytes(u, LARGE), uri),
        LARGE,
    ),
    "write_bytes, new": (
        lambda uri, _: written(lambda u: storage.write_bytes(u, SMALL, True), uri),
        SMALL,
    ),
    "write_bytes, new and large": (
        lambda uri, _: written(lambda u: storage.write_bytes(u, LARGE, True), uri),
        LARGE,
    ),
    "put_file": (lambda uri, folder: put(SMALL, folder, uri), SMALL),
    "put_file, large": (lambda uri, folder: put(LARGE, folder, uri), LARGE),
    "put_file, empty": (lambda uri, folder: put(b"", folder, uri), b""),
    "get_file": (lambda uri, folder: got(f"{SET}/small", folder), SMALL),
    "get_file, large": (lambda uri, folder: got(f"{SET}/deep/large", folder), LARGE),
    "remove": (
        lambda uri, _: removed(lambda u: storage.remove(storage.join(u, "a")), uri),
        {"b/c": len(SMALL)},
    ),
    "remove_tree": (lambda uri, _: removed(storage.remove_tree, uri), {}),
    "read_bytes, of known size": (
        lambda uri, _: storage.read_bytes(f"{SET}/deep/large", len(LARGE)),
        LARGE,
    ),
    "read_ends": (
        lambda uri, _: storage.read_ends(f"{SET}/deep/large", len(LARGE), 1000),
        (LARGE[:1000], LARGE[-1000:]),
    ),
    "open_ends": (lambda uri, _: opened_by_ends(f"{SET}/deep/large"), LARGE),
    "open_read": (lambda uri, _: opened(f"{SET}/deep/large"), LARGE),
    "open_native": (lambda uri, _: opened_natively(f"{SET}/deep/large"), LARGE),
    "arrow_filesystem": (lambda uri, _: through_arrow(uri), LARGE),
    "list_files": (lambda uri, _: storage.list_files(SET), SIZES),
    "upload": (lambda uri, folder: uploaded(folder, uri), SIZES),
    "download": (
        lambda uri, folder: downloaded(SET, folder),
        {"small": SMALL, "deep/large": LARGE},
    ),
}


# Every call loses an answer; where answers are long, they also break off midway.
BROKEN: list[tuple[str, Fault]] = [(name, "lost") for name in CALLS]
BROKEN += [
    (name, "reset")
    for name in (
        "read_bytes, huge",
        "read_ranges",
        "get_file, large",
        "open_read",
        "open_native",
        "list_files",
    )
]


@pytest.mark.parametrize(("name", "last"), BROKEN)
def test_calls_of_storage_outlast_refusals_and_a_broken_connection(
    proxy: FaultyProxy, tmp_path: Path, name: str, last: Fault
) -> None:
    call, right = CALLS[name]
    before = proxy.faults
    proxy.fault = plan(last)
    assert call(f"{AWAY}/{tmp_path.name}", tmp_path) == right
    assert proxy.faults - before >= 3


def test_patience_bounds_the_time_of_a_call(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").write_bytes(LARGE)
    monkeypatch.setenv(retry.PATIENCE, "0.2")
    clock, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    proxy.fault = lambda *_: "slow down"
    for call in (
        lambda: storage.put_file(tmp_path / "file", f"{AWAY}/never"),
        lambda: storage.get_file(f"{SET}/deep/large", tmp_path / "b"),
    ):
        waits.clear()
        with pytest.raises(GwpError, match="keeps failing"):
            call()
        # Once before the failure, and for the request that clears up after an upload not at all.
        assert sum(waits) <= 0.2
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_download_that_breaks_off_leaves_nothing(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch, data: bytes
) -> None:
    uri = f"{SET}/small" if data is SMALL else f"{SET}/deep/large"
    monkeypatch.setenv(retry.PATIENCE, "0.05")
    served: list[str] = []

    def cut(method: str, *_: str) -> Fault | None:
        if method == "GET":
            served.append(method)
        # Of three parts the first arrives.
        return "short" if method == "GET" and (data is SMALL or len(served) > 1) else None

    proxy.fault = cut
    with pytest.raises(GwpError):
        storage.get_file(uri, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_replaced_while_it_is_fetched_is_not_a_mixture(
    proxy: FaultyProxy, tmp_path: Path
) -> None:
    uri = f"{AWAY}/{tmp_path.name}"
    storage.write_bytes(uri, LARGE)
    asked: list[str] = []

    def replace(method: str, path: str, _: str) -> None:
        if method == "GET" and "list-type" not in path and not asked:
            asked.append(path)
            storage_put(uri, bytes(len(LARGE)))

    def storage_put(target: str, data: bytes) -> None:
        # From another machine, as it were: this one's loop is waiting.
        import boto3

        bucket, _, key = target.removeprefix("s3://").partition("/")
        boto3.client("s3", endpoint_url=proxy.target).put_object(Bucket=bucket, Key=key, Body=data)

    proxy.fault = replace
    with pytest.raises(GwpError, match="changed while it was read"):
        storage.get_file(uri, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_failed_upload_leaves_no_parts_and_the_object_as_it_was(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch
) -> None:
    import boto3

    uri = f"{AWAY}/{tmp_path.name}"
    storage.write_bytes(uri, b"before")
    monkeypatch.setenv(retry.PATIENCE, "0.05")
    proxy.fault = lambda method, path, _: (
        "error" if method == "PUT" and "partNumber=2" in path else None
    )
    with pytest.raises(GwpError, match="keeps failing"):
        storage.write_bytes(uri, LARGE)
    assert storage.read_bytes(uri) == b"before"
    uploads = (
        boto3.client("s3", endpoint_url=proxy.target)
        .list_multipart_uploads(Bucket="bad-day")
        .get("Uploads", [])
    )
    assert [upload for upload in uploads if f"{BUCKET}/{upload['Key']}" == uri] == []


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_of_the_same_bytes_too_only_the_first_creator_wins(
    proxy: FaultyProxy, tmp_path: Path, data: bytes
) -> None:
    uri = f"{AWAY}/{tmp_path.name}"
    proxy.fault = plan("lost")
    storage.write_bytes(uri, data, create_only=True)
    with pytest.raises(FileExistsError):
        storage.write_bytes(uri, data, create_only=True)

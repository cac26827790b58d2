"""Paths and `s3://` behave alike; errors of storage say what to do."""

import logging
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from gwp import storage
from gwp.errors import GwpError
from gwp.storage.retry import PATIENCE


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1"
        ).create_bucket(Bucket="bucket")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["path", "s3"])
def root(request, tmp_path):
    if request.param == "path":
        return str(tmp_path / "root")
    request.getfixturevalue("endpoint")
    return f"s3://bucket/{tmp_path.name}"


def test_the_same_calls_work_on_paths_and_buckets(root, tmp_path):
    place = storage.join(root, "a", "b.txt")
    assert not storage.exists(place)
    assert storage.list_files(root) == {}
    storage.write_bytes(place, b"one")
    storage.write_bytes(place, b"four")
    assert storage.read_bytes(place) == b"four"
    with storage.open_read(place) as handle:
        handle.seek(1)
        assert handle.read() == b"our"
    assert storage.list_files(root) == {"a/b.txt": 4}
    folder = storage.download(root, tmp_path / "copy")
    assert (folder / "a" / "b.txt").read_bytes() == b"four"
    storage.upload(folder, storage.join(root, "again"))
    assert storage.read_bytes(storage.join(root, "again/a/b.txt")) == b"four"


def test_create_only_never_overwrites(root):
    place = storage.join(root, "once")
    storage.write_bytes(place, b"first", create_only=True)
    with pytest.raises(FileExistsError):
        storage.write_bytes(place, b"second", create_only=True)
    assert storage.read_bytes(place) == b"first"


def test_pyarrow_reaches_the_same_objects(root):
    storage.write_bytes(storage.join(root, "x"), b"data")
    fs, path = storage.arrow_filesystem(root)
    with fs.open_input_stream(f"{path}/x") as stream:
        assert stream.read() == b"data"


def test_what_is_not_there_is_said(root):
    with pytest.raises(GwpError, match="not found; check the URI"):
        storage.read_bytes(storage.join(root, "nothing"))
    with pytest.raises(GwpError, match="nothing there"):
        storage.download(storage.join(root, "nowhere"), "/tmp/unused")


def test_a_missing_bucket_is_named(endpoint):
    for call in (storage.list_files, storage.read_bytes):
        with pytest.raises(GwpError, match=r"'no-such-bucket' does not exist|not found"):
            call("s3://no-such-bucket/set")
    with pytest.raises(GwpError, match="'no-such-bucket' does not exist"):
        storage.write_bytes("s3://no-such-bucket/x", b"")


def _actions_without_auth(endpoint, count):
    request = Request(
        f"{endpoint}/moto-api/reset-auth",
        data=count,
        headers={"Content-Type": "text/plain"},
        method="POST",
    )
    urlopen(request, timeout=10).read()


def test_wrong_credentials_are_named(endpoint, monkeypatch):
    storage.write_bytes("s3://bucket/secret", b"x")
    _actions_without_auth(endpoint, b"0")
    try:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYKNOWSTHIS0")
        # File systems are cached by their arguments, and credentials are none of them.
        storage.filesystem("s3://bucket")[0].clear_instance_cache()
        with pytest.raises(GwpError, match="access denied; check AWS_ACCESS_KEY_ID"):
            storage.read_bytes("s3://bucket/secret")
    finally:
        _actions_without_auth(endpoint, b"inf")
        storage.filesystem("s3://bucket")[0].clear_instance_cache()


def test_storage_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(PATIENCE, "0.2")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(GwpError, match="storage does not answer"):
        storage.read_bytes("s3://bucket/x")

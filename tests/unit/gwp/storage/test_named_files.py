"""Bundles and checkpoints are what their manifests name: nothing elsewhere, and no more bytes."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import boto3
import pytest

from gwp import storage
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.source import Source
from gwp.errors import BundleError, GwpError
from gwp.model.weights import load_model, weight_files
from gwp.policy.bundle import MANIFEST, read_bundle, read_id, seal
from gwp.policy.contract import PolicyContract
from gwp.storage import named_files
from pipelines.training.checkpoint import checkpoints
from tests.support.sets import TOP, write_v30
from tests.support.tiny import make_tiny_bundle
from tests.unit.gwp.storage.test_names import LEADING_OUT, checkpoint_naming, tree


def as_hub_snapshot(folder: Path) -> Path:
    """The files of a folder as the Hub's cache keeps them: links to blobs that lie beside it."""
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        blob = folder.parent / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        file.replace(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    return folder


def test_data_and_weights_may_be_links(tmp_path: Path) -> None:
    root = as_hub_snapshot(write_v30(tmp_path / "data/set"))
    source = Source(uri=str(root))
    data = robots_at(source)
    assert data is not None
    good, bad = usable_episodes(data, source, [TOP])
    assert (len(good), bad) == (2, [])
    model = as_hub_snapshot(make_tiny_bundle(tmp_path / "weights/bundle")) / "model"
    assert weight_files(model)[0].is_symlink()
    load_model(model)


def test_a_bundle_of_links_is_refused(tmp_path: Path) -> None:
    bundle = as_hub_snapshot(make_tiny_bundle(tmp_path / "bundle"))
    with pytest.raises(BundleError, match="is a link out of this folder"):
        read_bundle(bundle)
    with pytest.raises(BundleError, match="is a link out of this folder"):
        seal(bundle)


@pytest.mark.parametrize("part", ["codec", "policy.json", MANIFEST])
def test_no_part_of_a_bundle_lies_elsewhere(tmp_path: Path, part: str) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    (bundle / part).rename(tmp_path / "elsewhere")
    (bundle / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link out of this folder"):
        read_bundle(bundle)


def test_a_link_that_nothing_names_is_refused(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle")
    (bundle / "more").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="files that the manifest does not name: more"):
        read_bundle(bundle)


def test_links_that_stay_inside_and_a_link_to_the_whole_are_followed(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "bundle-1")
    (bundle / "stats.json").rename(bundle / "numbers.json")
    (bundle / "stats.json").symlink_to("numbers.json")
    policy_id = seal(bundle)
    (tmp_path / "current").symlink_to(bundle)
    assert read_bundle(tmp_path / "current").id == policy_id


def test_a_checkpoint_whose_file_is_a_link_is_refused(tmp_path: Path) -> None:
    uri, manifest = checkpoint_naming(tmp_path, "0.pt")
    assert checkpoints.latest_committed(str(tmp_path / "run")) is not None
    (Path(uri) / "0.pt").rename(tmp_path / "elsewhere")
    (Path(uri) / "0.pt").symlink_to(tmp_path / "elsewhere")
    for work in (
        lambda: checkpoints.fetch(uri, manifest, tmp_path / "fetched"),
        lambda: checkpoints.verify(uri, manifest),
    ):
        with pytest.raises(GwpError, match="is a link out of this folder"):
            work()
    assert checkpoints.latest_committed(str(tmp_path / "run")) is None


@pytest.fixture
def remote(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bundle in a bucket, and an empty cache."""
    monkeypatch.setenv("GWP_CACHE", str(tmp_path / "own/cache"))
    make_tiny_bundle(tmp_path / "made")
    uri = f"{bucket}/{tmp_path.name}/bundle"
    storage.upload(tmp_path / "made", uri)
    return uri


def put(uri: str, name: str, data: bytes) -> None:
    """One object under exactly this key; botocore and the server leave `..` as it is."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "own/cache/bundles").iterdir())


@pytest.mark.parametrize("name", ["x/../../../OWNED", "../OWNED", "x\\..\\OWNED"])
def test_a_key_in_a_bucket_leads_nowhere(remote: str, tmp_path: Path, name: str) -> None:
    read_bundle(remote)
    put(remote, name, b"owned")
    assert name in storage.list_files(remote)
    with pytest.raises(GwpError, match="only plain relative names"):
        storage.download(remote, tmp_path / "own/copy")
    assert not (tmp_path / "own/copy").exists()
    # Fetched anew, the key is told as any other file that does not belong there.
    shutil.rmtree(tmp_path / "own/cache")
    with pytest.raises(BundleError, match="files that the manifest does not name") as caught:
        read_bundle(remote)
    assert str(caught.value).isprintable()
    assert kept(tmp_path) == []
    assert not [p for p in tmp_path.rglob("*") if p.name == "OWNED"]


def test_a_key_that_is_a_folder_too_is_told(remote: str, tmp_path: Path) -> None:
    put(remote, "policy.json/more", b"")
    with pytest.raises(GwpError, match=r"policy\.json is both a file and a folder"):
        storage.download(remote, tmp_path / "copy")


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_manifest_in_a_bucket_names_nothing_outside(
    remote: str, tmp_path: Path, name: str
) -> None:
    about = json.loads(storage.read_bytes(f"{remote}/{MANIFEST}"))
    about["files"][name] = {"size": 5, "sha256": hashlib.sha256(b"owned").hexdigest()}
    storage.write_bytes(f"{remote}/{MANIFEST}", json.dumps(about).encode())
    put(remote, name, b"owned")
    with pytest.raises(BundleError, match="only plain relative names"):
        read_bundle(remote)
    assert kept(tmp_path) == []
    assert not [p for p in tmp_path.rglob("*") if p.name == "OWNED"]


def test_a_bundle_is_fetched_by_its_manifest_and_once(remote: str, tmp_path: Path) -> None:
    found = read_bundle(remote)
    assert found.id == read_id(remote) == read_id(tmp_path / "made")
    assert tree(found.folder) == tree(tmp_path / "made")
    assert kept(tmp_path) == [found.id]
    storage.remove(f"{remote}/policy.json")
    assert read_bundle(remote) == found


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_file_of_another_size_is_not_fetched(remote: str, tmp_path: Path, size: int) -> None:
    storage.write_bytes(f"{remote}/policy.json", bytes(size))
    with pytest.raises(
        BundleError, match=f"policy.json was altered .it has {size} bytes instead of"
    ):
        read_bundle(remote)
    assert kept(tmp_path) == []


def test_another_policy_in_the_place_of_one_that_is_kept_is_refused(
    remote: str, tmp_path: Path
) -> None:
    found = read_bundle(remote)
    lineage = json.loads((found.folder / "lineage.json").read_text())
    (found.folder / "lineage.json").write_text(json.dumps(lineage | {"made_by": "somebody else"}))
    seal(found.folder)
    with pytest.raises(BundleError, match="holds another policy"):
        read_bundle(remote)


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_no_more_is_read_than_was_promised(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(named_files, "_BLOCK", block)
    data = bytes(range(100))
    uri = f"{bucket}/{tmp_path.name}"
    storage.write_bytes(f"{uri}/a/b", data)
    for size in (0, 1, 3, 12, 13, 99, 100):
        named_files.fetch_files(uri, {"a/b": size}, tmp_path / str(size))
        assert (tmp_path / str(size) / "a/b").read_bytes() == data[:size]
    with pytest.raises(GwpError, match="ends after 100 of 101 bytes"):
        named_files.fetch_files(uri, {"a/b": 101}, tmp_path / "more")


def test_an_endless_manifest_is_not_read(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = storage.read_bytes(f"{remote}/{MANIFEST}")
    monkeypatch.setattr(named_files, "MANIFEST_BYTES", len(whole))
    read_bundle(remote)
    storage.write_bytes(f"{remote}/{MANIFEST}", whole + b" ")
    (tmp_path / "made" / MANIFEST).write_bytes(whole + b" ")
    for read in (read_bundle, read_id, PolicyContract.read):
        for uri in (remote, str(tmp_path / "made")):
            with pytest.raises(BundleError, match="which no manifest is"):
                read(uri)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"format": 1}',
        b'{"format": 1, "files": []}',
        b"[" * 100_000,
        b'{"format": 1, "files": {"a": {"size": -1, "sha256": ""}}}',
        b'{"format": 1, "files": {"a": {}}}',
    ],
)
def test_what_is_no_manifest_is_told(remote: str, tmp_path: Path, raw: bytes) -> None:
    storage.write_bytes(f"{remote}/{MANIFEST}", raw)
    (tmp_path / "made" / MANIFEST).write_bytes(raw)
    for uri in (remote, str(tmp_path / "made")):
        with pytest.raises(BundleError, match=r"MANIFEST.json cannot be read|bundle format None"):
            read_bundle(uri)


@pytest.mark.parametrize("name", ["x\\..\\OWNED", "x\ny", "C:x"])
def test_what_could_not_be_fetched_is_not_uploaded(tmp_path: Path, name: str) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / name).write_bytes(b"")
    with pytest.raises(GwpError, match="only plain relative names"):
        storage.upload(tmp_path / "from", str(tmp_path / "to"))

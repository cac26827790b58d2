"""A bundle in a bucket is somebody's word until it is verified: names, then sizes, then room, then
hashes, then what is in it; and nothing is kept that failed one of them.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gwp import storage
from gwp.errors import BundleError, GwpError
from gwp.policy import bundle as bundles
from gwp.policy.bundle import MANIFEST, read_bundle, seal
from gwp.policy.contract import PolicyContract
from gwp.policy.finite import check_finite
from gwp.policy.policy import Policy
from gwp.storage import named_files
from tests.support.tiny import make_tiny_bundle, tiny_model

PARTS = ("policy.json", "embodiments.json", "stats.json", "lineage.json")


@pytest.fixture
def remote(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bundle in a bucket, and an empty cache."""
    monkeypatch.setenv("GWP_CACHE", str(tmp_path / "own/cache"))
    make_tiny_bundle(tmp_path / "made")
    uri = f"{bucket}/{tmp_path.name}/untrusted"
    storage.upload(tmp_path / "made", uri)
    return uri


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files whose content was asked for, in order."""
    names: list[str] = []
    real = storage.read_ranges

    def read_ranges(uris: Any, *more: Any) -> Any:
        names.extend(uri.rpartition("/untrusted/")[2] for uri in uris)
        return real(uris, *more)

    monkeypatch.setattr(storage, "read_ranges", read_ranges)
    return names


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "own/cache/bundles").iterdir())


def rewrite(uri: str, **entries: Any) -> None:
    """Change what the manifest says of files."""
    about = json.loads(storage.read_bytes(f"{uri}/{MANIFEST}"))
    for name, changes in entries.items():
        about["files"][name] = about["files"].get(name, {}) | changes
    storage.write_bytes(f"{uri}/{MANIFEST}", json.dumps(about).encode())


def test_nothing_is_fetched_of_what_cannot_be_whole(
    remote: str, tmp_path: Path, asked: list[str]
) -> None:
    for entries, words in [
        # In the order of the checks: the later mistakes are there as well.
        ({"../x": {"size": 5, "sha256": "0" * 64}}, "only plain relative names"),
        ({"lineage.json": {"size": 7}}, "lineage.json was altered"),
    ]:
        rewrite(remote, **entries, **{"policy.json": {"sha256": "0" * 64}})
        with pytest.raises(BundleError, match=words):
            read_bundle(remote)
        about = json.loads((tmp_path / "made" / MANIFEST).read_text())
        storage.write_bytes(f"{remote}/{MANIFEST}", json.dumps(about).encode())
    assert asked == []
    assert kept(tmp_path) == []


def test_what_does_not_fit_onto_the_disk_is_not_begun(
    remote: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(named_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BundleError, match=r"GB by its manifest, .* has room for 1e-06; make room"):
        read_bundle(remote)
    assert asked == []
    assert kept(tmp_path) == []


def test_a_part_larger_than_any_is_not_begun(
    remote: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_files, "PART_BYTES", 10)
    for read in (read_bundle, PolicyContract.read):
        with pytest.raises(BundleError, match="by its manifest, up to"):
            read(remote)
    assert asked == []


@pytest.mark.parametrize("name", [*PARTS, "model/config.json"])
def test_what_has_another_hash_is_never_kept(
    remote: str, tmp_path: Path, name: str, asked: list[str]
) -> None:
    content = bytearray(storage.read_bytes(f"{remote}/{name}"))
    content[-1] ^= 1
    storage.write_bytes(f"{remote}/{name}", bytes(content))
    with pytest.raises(BundleError, match=f"{name} was altered .its sha256"):
        read_bundle(remote)
    # What comes after it in the manifest was not fetched any more.
    assert asked[-1] == name
    assert kept(tmp_path) == []


@pytest.mark.parametrize("name", PARTS)
def test_the_contract_reads_nothing_that_its_manifest_does_not_vouch_for(
    remote: str, tmp_path: Path, name: str
) -> None:
    whole = storage.read_bytes(f"{remote}/{name}")
    for other in (whole + b" ", whole[:-1] + b" ", b""):
        storage.write_bytes(f"{remote}/{name}", other)
        with pytest.raises(BundleError, match=f"{name} was altered"):
            PolicyContract.read(remote)
    storage.write_bytes(f"{remote}/{name}", whole)
    assert PolicyContract.read(remote).seen["tiny-arm"].lower == (-1.0,) * 4


def test_hashes_come_before_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    (folder / "embodiments.json").write_text("{" * 10)

    def parsed(*_: object) -> None:
        raise AssertionError("parsed before it was verified")

    monkeypatch.setattr(bundles.PolicyConfig, "model_validate_json", parsed)
    monkeypatch.setattr(bundles, "_mapping", parsed)
    with pytest.raises(BundleError, match=r"embodiments\.json was altered"):
        read_bundle(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    (path,) = (folder / "model").glob("*.safetensors")
    weights = load_file(path)
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = value
    save_file(weights, path)
    seal(folder)
    with pytest.raises(BundleError, match=r"NaN or infinity in model/.*; the run diverged"):
        Policy.load(folder)


def test_a_codec_that_is_no_numbers_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    (path,) = (folder / "codec").glob("*.safetensors")
    weights = load_file(path)
    weights["first.basis"][0, 0] = float("nan")
    save_file(weights, path)
    seal(folder)
    with pytest.raises(GwpError, match=r"NaN or infinity in codec/first\.basis"):
        Policy.load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_finite_weights_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.finfo(dtype).max)
    check_finite(tmp_path, {"model": model, "codec": object(), "text": np.zeros(3)})


def test_the_id_is_the_hash_of_what_was_checked(remote: str, tmp_path: Path) -> None:
    raw = storage.read_bytes(f"{remote}/{MANIFEST}")
    wanted = hashlib.sha256(raw).hexdigest()
    assert read_bundle(remote).id == PolicyContract.read(remote).policy_id == wanted

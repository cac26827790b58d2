"""What lies below a source and is of no set: links, hidden files, pointers to what was not fetched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gwp import storage
from gwp.data.formats.files.listing import is_stray
from gwp.data.formats.find import robots_at
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.other_sets import write_aloha, write_rlds, write_tars
from tests.support.sets import FPS, write_v21, write_v30, write_video
from tests.unit.gwp.data.formats.test_lerobot import build as labelled
from tests.unit.gwp.data.formats.test_lerobot import robot

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
STRAYS = (
    "$RECYCLE.BIN/{}",
    "lost+found/{}",
    "#recycle/{}",
    "._{}",
    ".ipynb_checkpoints/{}",
    "__MACOSX/._{}",
    ".cache/huggingface/{}",
    ".DS_Store",
)


def write_clips(root: Path) -> Path:
    for name in "ab":
        write_video(root / f"{name}.mp4", range(12))
    return root


FORMATS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "v2.1": (lambda r: write_v21(r, lengths=(6, 6)), {}),
    "v3.0": (lambda r: write_v30(r, lengths=(6, 6)), {}),
    "hdf5": (lambda r: write_aloha(r, lengths=(6, 6)), {"fps": FPS}),
    "rlds": (lambda r: write_rlds(r, lengths=(6, 6)), {"fps": FPS}),
    "clips": (write_clips, {}),
    "tars": (lambda r: write_tars(r, lengths=(9, 9, 9)), {}),
}


def build(uri: Path | str, name: str, **fields: Any) -> Manifest:
    source = Source(uri=str(uri), **FORMATS[name][1], **fields)
    return build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_what_file_systems_and_editors_leave_changes_nothing(
    bucket: str, tmp_path: Path, name: str, remote: bool
) -> None:
    root = tmp_path / "set"
    FORMATS[name][0](root)
    calm = build(root, name)
    for file in [f for f in root.rglob("*") if f.is_file()]:
        for stray in STRAYS:
            place = file.parent / stray.format(file.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"\0\5\26\7" * 1000)
        (file.parent / "Thumbs.db").write_bytes(b"x")
    if remote:
        storage.upload(root, f"{bucket}/strays-{name}")
    found = build(f"{bucket}/strays-{name}" if remote else root, name)
    assert found.skipped == calm.skipped
    assert found.samples["sample_id"].to_pylist() == calm.samples["sample_id"].to_pylist()


def test_names_that_are_of_a_set() -> None:
    for name in ("meta/info.json", "a.b/c..d.mp4", "thumbs.db.mp4"):
        assert not is_stray(name)


@pytest.mark.parametrize("name", FORMATS)
def test_linked_folders_are_part_of_a_set(tmp_path: Path, name: str) -> None:
    FORMATS[name][0](tmp_path / "real/set")
    calm = build(tmp_path / "real/set", name)
    # Each file and each folder a link, as in snapshots of the Hub and on shared disks.
    linked = tmp_path / "linked"
    linked.mkdir()
    for item in (tmp_path / "real/set").iterdir():
        (linked / item.name).symlink_to(item)
    (linked / "again").symlink_to(linked)
    found = build(linked, name)
    assert found.fingerprint == calm.fingerprint


@pytest.mark.parametrize("target", ["gone", "itself"])
@pytest.mark.parametrize("name", ["v2.1", "hdf5", "clips", "tars"])
def test_a_link_that_leads_nowhere_costs_what_it_stands_for(
    tmp_path: Path, name: str, target: str
) -> None:
    root = tmp_path / "set"
    FORMATS[name][0](root)
    file = sorted(f for f in root.rglob("*") if f.suffix in (".mp4", ".hdf5", ".tar"))[1]
    file.unlink()
    file.symlink_to(tmp_path / "gone" if target == "gone" else file)
    manifest = build(root, name)
    (found,) = manifest.skipped
    assert file.name in found["item"] + found["reason"]
    assert found["broken"]
    assert len(manifest)


@pytest.mark.parametrize("name", FORMATS)
def test_pointers_in_place_of_all_files_are_told(tmp_path: Path, name: str) -> None:
    root = tmp_path / "set"
    FORMATS[name][0](root)
    for file in root.rglob("*"):
        if file.is_file() and file.suffix not in (".json", ".jsonl"):
            file.write_text(POINTER)
    with pytest.raises(DataError, match="git lfs pull"):
        build(root, name)


@pytest.mark.parametrize("name", ["v2.1", "hdf5", "clips", "tars"])
def test_a_pointer_costs_what_it_stands_for(tmp_path: Path, name: str) -> None:
    root = tmp_path / "set"
    FORMATS[name][0](root)
    file = sorted(f for f in root.rglob("*") if f.suffix in (".mp4", ".hdf5", ".tar"))[1]
    file.write_text(POINTER)
    (found,) = build(root, name).skipped
    assert "is a Git LFS pointer and not the file; run `git lfs pull`" in found["reason"]


def test_a_pointer_in_place_of_rows_is_told(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 6))
    (root / "data/chunk-000/episode_000001.parquet").write_text(POINTER)

    (found,) = labelled(root, robot(root)).skipped
    assert "episode_000001.parquet is a Git LFS pointer" in found["reason"]


def test_metadata_that_are_pointers_are_told(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    (root / "meta/info.json").write_text(POINTER)
    with pytest.raises(DataError, match=r"Git LFS pointers in place of files \(meta/info.json\)"):
        robots_at(Source(uri=str(root)))

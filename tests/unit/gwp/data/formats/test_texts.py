"""Texts with half of a surrogate pair, which JSON may hold and no other file can."""

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.files.texts import read_json, whole_text
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_libero
from tests.support.sets import write_v21, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
HALF = "pick \\ud83d up"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("a", "a"),
        ("\U0001f600", "\U0001f600"),
        ("\ud83d", "\ufffd"),
        ("\ude00b", "\ufffdb"),
        ("a\ud83d\ud83d\u00e9", "a\ufffd\ufffd\u00e9"),
    ],
)
def test_halves_alone_are_replaced(text: str, whole: str) -> None:
    assert whole_text(text) == whole
    assert read_json(json.dumps({text: [text, 1.5, None]})) == {whole: [whole, 1.5, None]}
    assert read_json(json.dumps([text]).encode()) == [whole]


def of_lerobot(root: Path) -> dict[str, Any]:
    write_v21(root, tasks=("TEXT",))
    for name in ("tasks", "episodes"):
        file = root / f"meta/{name}.jsonl"
        file.write_text(file.read_text().replace("TEXT", HALF))
    return {}


def of_hdf5(root: Path) -> dict[str, Any]:
    root.mkdir()
    with h5py.File(write_libero(root / "a.hdf5"), "a") as handle:
        handle["data"].attrs["problem_info"] = f'{{"language_instruction": "{HALF}"}}'
    return {"fps": 10}


@pytest.mark.parametrize("write", [of_lerobot, of_hdf5])
def test_instructions_are_read_and_told(tmp_path: Path, write: Any) -> None:
    root = tmp_path / "set"
    source = Source(uri=str(root), embodiment="arm", **write(root))
    found = describe(source)
    told = [f["what"] for f in found["findings"] if f["item"] == "instruction"]
    assert told == ["has what is no character, in episodes 0, 1"]
    json.dumps(found, ensure_ascii=False).encode()
    data = robots_at(source, FileReader())
    assert data is not None
    arm = embodiment_of(data, "arm", 4, 2, None, None, 0)
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    assert set(manifest.texts().values()) >= {"pick \ufffd up"}


@pytest.mark.parametrize("beside", ["a.json", "metadata.jsonl"])
def test_captions_are_told_and_not_taken(tmp_path: Path, beside: str) -> None:
    root = tmp_path / "clips"
    write_video(root / "a.mp4", range(12), fps=5)
    (root / beside).write_text(f'{{"file_name": "a.mp4", "caption": "{HALF}"}}\n')
    found = describe(Source(uri=str(root)))
    assert any("no text in UTF-8" in f["what"] for f in found["findings"])
    manifest = build_manifest([Source(uri=str(root))], embodiments={}, window=WINDOW, clip=CLIP)
    assert set(manifest.texts().values()) <= {""}

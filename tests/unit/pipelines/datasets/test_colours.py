"""Exchanged colours are suspected in pictures and in videos, alone or beside another camera."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.datasets.colours import seen, suspected
from tests.support.other_sets import write_stills
from tests.support.sets import TOP, WRIST, write_pictures, write_v21

H, W = 48, 64


def table_top() -> np.ndarray:
    """A wooden table, skin, a green and a little blue thing; noise in the brightness."""
    scene = np.zeros((H, W, 3), np.float64)
    scene[:] = (170, 120, 70)
    scene[:20, :30] = (220, 170, 140)
    scene[40:, 50:] = (60, 90, 200)
    scene[30:36, 5:25] = (60, 160, 70)
    return shaded(scene)


def close_up() -> np.ndarray:
    """The same table from a wrist: more of the green thing, a grey finger, no skin."""
    scene = np.zeros((H, W, 3), np.float64)
    scene[:] = (150, 104, 58)
    scene[10:30, 10:40] = (50, 150, 62)
    scene[:, 58:] = (90, 92, 95)
    return shaded(scene)


def blue_table() -> np.ndarray:
    scene = np.zeros((H, W, 3), np.float64)
    scene[:] = (40, 90, 190)
    scene[10:30, 10:40] = (50, 150, 62)
    return shaded(scene)


def shaded(scene: np.ndarray) -> np.ndarray:
    light = 0.8 + 0.3 * np.random.default_rng(0).random((H, W, 1))
    return np.clip(scene * light, 0, 255).astype(np.uint8)


def write_set(root: Path, pictures: dict[str, np.ndarray]) -> Path:
    write_stills(root, "v3.0")
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for camera, picture in pictures.items():
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG")
        rows = [{"bytes": out.getvalue(), "path": ""}] * len(table)
        column = pa.array(rows, table[camera].type)
        table = table.set_column(table.column_names.index(camera), camera, column)
    pq.write_table(table, file)
    return root


def told(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["data", "inspect", str(root), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("wrist", "exchanged", "wanted"),
    [
        (close_up, (), []),
        (close_up, (TOP,), [TOP]),
        (close_up, (WRIST,), [WRIST]),
        (close_up, (TOP, WRIST), [TOP, WRIST]),
        (table_top, (), []),
    ],
)
def test_cameras_of_one_scene_are_compared(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrist: Callable[[], np.ndarray],
    exchanged: tuple[str, ...],
    wanted: list[str],
) -> None:
    pictures = {TOP: table_top(), WRIST: wrist()}
    for camera in exchanged:
        pictures[camera] = pictures[camera][..., ::-1]
    root = write_set(tmp_path / "set", pictures)
    page = tmp_path / "x.html"
    found = told(root, capsys, "--html", str(page))
    assert found["exchanged"] == wanted
    # Both ways beside each other, of those alone.
    text = page.read_text()
    assert text.count("red and blue exchanged") == len(wanted)
    assert text.count("data:image/png;base64,") == 4 + 2 * len(wanted)
    advice = [f["advice"] for f in found["findings"] if f["item"] in wanted]
    named = "bgr" if len(wanted) == 2 else "{" + "".join(wanted) + ": bgr}"
    assert all(f"`colours: {named}` exchanges" in a for a in advice if "colours" in a)
    # What the advice says sets them right, and no other camera wrong.
    some = ",".join(f"{camera}=bgr" for camera in wanted)
    assert not wanted or told(root, capsys, "--colours", some)["exchanged"] == []


def test_a_little_wood_beside_blue_is_not_enough() -> None:
    # What is blue in one camera is not what is brown in the other: another depth of colour.
    both = {"a": seen([table_top()]), "b": seen([blue_table()])}
    found = [
        f.item for f in suspected(both, {"a": "bgr", "b": "bgr"}) if "other way round" in f.what
    ]
    assert found == []


@pytest.mark.parametrize("exchanged", [False, True])
def test_videos_are_looked_at_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exchanged: bool
) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    picture = table_top()[..., :: -1 if exchanged else 1]
    write_pictures(root / f"videos/chunk-000/{TOP}/episode_000000.mp4", [picture] * 5)
    assert told(root, capsys)["exchanged"] == ([TOP] if exchanged else [])
    assert told(root, capsys, "--colours", "bgr")["exchanged"] == ([] if exchanged else [TOP])


@pytest.mark.parametrize("colours", ["rgb", "bgr"])
def test_one_camera_is_suspected_for_itself_never_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], colours: str
) -> None:
    grey = np.full((H, W, 3), 90, np.uint8)
    root = write_set(tmp_path / "set", {TOP: table_top()[..., ::-1], WRIST: grey})
    found = told(root, capsys, "--colours", colours)
    suspicions = [f for f in found["findings"] if "red and blue" in f["what"]]
    if colours == "bgr":
        assert suspicions == []
    else:
        (finding,) = suspicions
        assert (finding["item"], finding["consequence"]) == (TOP, "ignored")
        assert finding["advice"].endswith(f"on the source `colours: {{{TOP}: bgr}}` exchanges them")
        assert "one sign of two" in finding["what"]

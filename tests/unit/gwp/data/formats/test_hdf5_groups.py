"""HDF5 files of strange forms: what is no episode costs none, and is told."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from gwp.errors import DataError
from tests.support.other_sets import LENGTHS, write_aloha
from tests.support.sets import FPS, TOP
from tests.unit.gwp.data.formats.test_formats import prepare, robots, skipped
from tests.unit.gwp.data.formats.test_hdf5 import said, write_demos


@pytest.mark.parametrize("where", ["demo_1", "action", "episodes/episode_3"])
def test_two_places_of_episodes_are_refused(tmp_path: Path, where: str) -> None:
    """One of them would be lost without a word."""
    path = write_demos(tmp_path / "a.h5", "data/demo_{}")
    with h5py.File(path, "a") as file:
        file[where if where == "action" else f"{where}/action"] = np.zeros((9, 2))
    with pytest.raises(DataError, match="which of them is an episode cannot be told"):
        robots(path, fps=FPS)


@pytest.mark.parametrize("where", ["data/demo_5", "data/stats", "data", "data/a/b"])
def test_empty_groups_cost_nothing(tmp_path: Path, where: str) -> None:
    for form in ("demo_{}", "data/demo_{}", "data/task/demo_{}"):
        path = write_demos(tmp_path / f"{form.count('/')}.h5", form)
        with h5py.File(path, "a") as file:
            file.require_group(where)
        assert [e.length for e in robots(path, fps=FPS).episodes] == list(LENGTHS)
    root = write_aloha(tmp_path / "set", lengths=(5,), cameras=(TOP,))
    with h5py.File(root / "episode_0.hdf5", "a") as file:
        file.require_group(where)
    assert not skipped(root, fps=FPS)


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        ("data/task/demo_{}", ["data/task/"]),
        ("data/{}/demo_0", ["data/0/", "data/1/"]),
        ("split{}/deeper/demo_0", ["split0/deeper/", "split1/deeper/"]),
    ],
)
def test_episodes_that_lie_deeper_are_never_one(
    tmp_path: Path, form: str, parts: list[str]
) -> None:
    path = write_demos(tmp_path / "a.h5", form)
    data = robots(path, fps=FPS)
    assert [e.length for e in data.episodes] == list(LENGTHS)
    assert {e.prefix.rpartition("demo_")[0] for e in data.episodes} == set(parts)
    told = [text for text in said(path) if "lie in several groups" in text]
    assert len(told) == len(parts) - 1


@pytest.mark.parametrize("place", ["", "data", "data/demo_0"])
def test_a_noted_rate_that_is_another_is_told(tmp_path: Path, place: str) -> None:
    path = write_demos(tmp_path / "a.h5", "data/demo_{}")
    for noted, count in ((FPS, 0), (3 * FPS, 1)):
        with h5py.File(path, "a") as file:
            file[f"/{place}"].attrs["fps"] = noted
        told = [text for text in said(path) if "note a rate" in text]
        assert (
            told == [f"the set: files note a rate of {noted} Hz, and are read at {FPS} Hz"] * count
        )


def test_a_file_that_breaks_off_is_named_and_costs_no_other(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set", lengths=(5, 6))
    whole = (root / "episode_1.hdf5").read_bytes()
    (root / "episode_1.hdf5").write_bytes(whole[:-100])
    (reason,) = skipped(root, fps=FPS).values()
    assert reason.startswith("episode_1.hdf5 cannot be read as HDF5")
    assert len(prepare(root, fps=FPS)[0].samples) == 5


def test_a_camera_that_starts_late_is_one(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.h5")
    shown = io.BytesIO()
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(shown, "PNG")
    with h5py.File(path, "a") as file:
        for demo in file.values():
            n = len(demo["actions"])
            rows = demo.create_dataset("obs/late", (n,), h5py.vlen_dtype(np.uint8))
            for k in range(2, n):
                rows[k] = np.frombuffer(shown.getvalue(), np.uint8)
    assert "late" in robots(path, fps=FPS).cameras


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros((1, 20, 30, 3), np.float32), "float32 [T, H, W, 3]"),
        (np.zeros((1, 20, 30, 3), np.uint16), "uint16 [T, H, W, 3]"),
        (np.zeros((1, 20, 30), np.uint8), "uint8 [T, H, W]"),
        (np.zeros((1, 20, 30), np.float32), ""),
        (np.zeros((1, 4, 4), np.uint8), ""),
    ],
)
def test_pictures_that_are_not_read_are_told(tmp_path: Path, values: np.ndarray, kind: str) -> None:
    path = write_demos(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for demo in file.values():
            shown = np.repeat(values, len(demo["actions"]), 0)
            demo["obs/side"], demo["obs/side_depth"] = shown, shown
    told = [text for text in said(path) if "looks like pictures" in text]
    wanted = f"obs/side: looks like pictures of {kind}, which are not read as such"
    assert told == ([wanted] if kind else [])


@pytest.mark.parametrize(
    ("kept", "others"),
    [
        ("demo_{}", ["run_0/", "run_1/"]),
        ("demo_{}", ["demo_1_retry/"]),
        ("data/demo_{}", ["demo_x/"]),
        ("episodes/ep_{}", ["episodes/x/"]),
        ("demo_{}", []),
    ],
)
def test_what_has_actions_and_is_no_episode_is_named(
    tmp_path: Path, kept: str, others: list[str]
) -> None:
    path = write_demos(tmp_path / "a.h5", kept)
    with h5py.File(path, "a") as file:
        for other in others:
            file[f"{other}actions"] = np.zeros((9, 2))
    assert [e.length for e in robots(path, fps=FPS).episodes] == list(LENGTHS)
    told = [text.rpartition(": ")[2] for text in said(path) if "no name of an episode" in text]
    assert told == ([", ".join(others)] if others else [])


@pytest.mark.parametrize("form", ["column", "one", "list", "file"])
def test_the_usual_instruction_wherever_it_stands(tmp_path: Path, form: str) -> None:
    path = write_demos(tmp_path / "a.h5", "data/demo_{}")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            n = len(demo["actions"])
            if form == "column":
                demo["language_instruction"] = ["lift"] * 3 + ["put"] * (n - 3)
            elif form == "one":
                demo["language_instruction"] = ["lift"]
            elif form == "list":
                demo.attrs["language_instruction"] = ["lift"]
        if form == "file":
            file.attrs["language_instruction"] = "lift"
    (first, _) = robots(path, fps=FPS).episodes
    assert [first.text_at(k) for k in (0, 5)] == ["lift", "put" if form == "column" else "lift"]
    assert not skipped(path, fps=FPS)


def test_a_column_of_the_usual_name_that_nobody_chose_costs_nothing(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        for demo in file.values():
            demo["language_instruction"] = ["lift", "put"]
    assert not skipped(path, fps=FPS)

"""Episodes by how they ended, where a set notes that of each and not row by row."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.errors import DataError
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_libero, write_rlds
from tests.support.sets import FPS, write_v21
from tests.unit.gwp.data.formats.test_formats import CLIP, WINDOW

ENDED = (True, False, True)
LENGTHS = (6, 5, 7)


def of_attributes(root: Path) -> None:
    of_values(root, lambda demo, value: demo.attrs.__setitem__("success", value))


def of_values(root: Path, note: Any = lambda demo, v: demo.__setitem__("success", v)) -> None:
    path = write_libero(root / "demo.hdf5", lengths=LENGTHS)
    with h5py.File(path, "a") as file:
        for episode, value in enumerate(ENDED):
            note(file[f"data/demo_{episode}"], value)


def of_arrays(root: Path) -> None:
    of_values(root, lambda demo, value: demo.__setitem__("success", np.array([value])))


def of_metadata(root: Path) -> None:
    def more(episode: int, rows: int) -> dict[str, Any]:
        return {"episode_metadata/success": np.array([ENDED[episode]])}

    write_rlds(root, lengths=LENGTHS, shards=(2, 1), more=more)


def of_list(root: Path) -> None:
    write_v21(root, lengths=LENGTHS)
    file = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    written = [row | {"success": ENDED[i]} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in written))


KINDS: dict[str, tuple[Callable[[Path], None], float | None, tuple[str, ...]]] = {
    "attribute": (of_attributes, None, ("success",)),
    "single value": (of_values, None, ("success",)),
    "array of one": (of_arrays, None, ("success",)),
    "episode_metadata": (of_metadata, FPS, ("success", "episode_metadata/success")),
    "list of episodes": (of_list, None, ("success",)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_those_that_ended_well_are_used(tmp_path: Path, kind: str) -> None:
    write, fps, names = KINDS[kind]
    write(tmp_path / "set")
    for name in names:
        source = Source(uri=str(tmp_path / "set"), fps=fps, only=name)
        found = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
        ids = {r["sample_id"].split("/")[1] for r in found.rows(range(found.table.num_rows))}
        assert ids == {f"{i:06d}" for i, ended in enumerate(ENDED) if ended}
        assert describe(source)["usable"] == sum(ENDED)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_nothing_has_is_refused(tmp_path: Path, kind: str) -> None:
    write, fps, _ = KINDS[kind]
    write(tmp_path / "set")
    source = Source(uri=str(tmp_path / "set"), fps=fps, only="sucess", embodiment="arm")
    data = robots_at(source)
    assert data is not None
    with pytest.raises(DataError, match=r"no column 'sucess' for `only`; the set has .*"):
        usable_episodes(data, source, [])


def test_an_episode_of_which_it_is_not_noted_is_left_out(tmp_path: Path) -> None:
    of_attributes(tmp_path)
    with h5py.File(tmp_path / "demo.hdf5", "a") as file:
        del file["data/demo_2"].attrs["success"]
    source = Source(uri=str(tmp_path), only="success", embodiment="arm")
    data = robots_at(source)
    assert data is not None
    good, bad = usable_episodes(data, source, [])
    assert [e.index for e, _ in good] == [0]
    assert [(e.index, why) for e, why in bad] == [(2, "'success' is not noted of it")]


def test_rows_tell_where_both_do(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "demo.hdf5", lengths=LENGTHS)
    with h5py.File(path, "a") as file:
        for episode, n in enumerate(LENGTHS):
            demo = file[f"data/demo_{episode}"]
            demo.attrs["success"] = 0
            demo["success"] = np.arange(n) == n - 1
    source = Source(uri=str(tmp_path), only="success", embodiment="arm")
    data = robots_at(source)
    assert data is not None
    assert len(usable_episodes(data, source, [])[0]) == len(LENGTHS)


def test_two_of_one_name_are_not_guessed(tmp_path: Path) -> None:
    path = write_libero(tmp_path / "demo.hdf5", lengths=LENGTHS)
    with h5py.File(path, "a") as file:
        for place in ("info/success", "judge/success"):
            file[f"data/demo_0/{place}"] = 1.0
    source = Source(uri=str(tmp_path), only="success", embodiment="arm")
    data = robots_at(source)
    assert data is not None
    with pytest.raises(DataError, match="'success' may be info/success, judge/success; name one"):
        usable_episodes(data, source, [])

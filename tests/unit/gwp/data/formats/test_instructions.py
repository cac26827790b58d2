"""What is done in the episodes of HDF5 and RLDS sets, as the column says that a source names."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gwp.data.formats.instructions import stretches
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.errors import DataError
from pipelines.datasets.inspect import describe
from tests.support.other_sets import TASK, write_libero, write_rlds
from tests.support.sets import FPS
from tests.unit.gwp.data.formats.test_formats import CLIP, WINDOW, robots

LENGTHS = (8, 6)


def parts(rows: int) -> list[str]:
    """Two texts, one behind the other, from row 3 on the second."""
    return ["reach"] * 3 + ["grasp"] * (rows - 3)


def rlds_of_parts(root: Path) -> dict[str, Any]:
    def more(episode: int, rows: int) -> dict[str, Any]:
        return {
            "steps/language_instruction_2": [text.encode() for text in parts(rows)],
            "steps/observation/note": [b"" if episode else b"look"] * rows,
            "episode_metadata/file_path": [f"{episode}.h5".encode()],
        }

    write_rlds(root, lengths=LENGTHS, more=more)
    return {"fps": FPS}


def hdf5_of_parts(root: Path) -> dict[str, Any]:
    path = write_libero(root / "demo.hdf5", lengths=LENGTHS)
    with h5py.File(path, "a") as file:
        for episode, n in enumerate(LENGTHS):
            demo = file[f"data/demo_{episode}"]
            write_texts(demo, parts(n))
            demo["observation/note"] = np.array([b"" if episode else b"look"] * n)
            demo.attrs["file_path"] = f"{episode}.h5"
            demo["about/file"] = f"{episode}.h5"
    return {}


def write_texts(demo: Any, texts: list[str]) -> None:
    demo.create_dataset("language_instruction_2", data=texts, dtype=h5py.string_dtype())


KINDS = {"rlds": rlds_of_parts, "hdf5": hdf5_of_parts}


def texts_by_sample(root: Path, **fields: Any) -> dict[str, str]:
    source = Source(uri=str(root), **fields)
    found = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
    rows = found.rows(range(found.table.num_rows))
    return {r["sample_id"].partition("/")[2]: found.texts()[r["text_key"]] for r in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_different_texts_have_their_own(tmp_path: Path, kind: str) -> None:
    fields = KINDS[kind](tmp_path)
    data = robots(tmp_path, instruction="language_instruction_2", **fields)
    assert [(e.text, e.texts) for e in data.episodes] == [
        ("reach", ((0, "reach"), (3, "grasp")))
    ] * len(LENGTHS)
    texts = texts_by_sample(tmp_path, instruction="language_instruction_2", **fields)
    assert texts == {
        f"{i:06d}/{k:06d}": parts(n)[k]
        for i, n in enumerate(LENGTHS)
        for k in range(n - WINDOW.chunk)
    }
    assert set(texts_by_sample(tmp_path, **fields).values()) == {TASK}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("rlds", "episode_metadata/file_path"),
        ("hdf5", "file_path"),
        ("hdf5", "about/file"),
    ],
)
def test_one_text_is_that_of_the_episode(tmp_path: Path, kind: str, name: str) -> None:
    fields = KINDS[kind](tmp_path)
    data = robots(tmp_path, instruction=name, **fields)
    assert [(e.text, e.texts) for e in data.episodes] == [("0.h5", ()), ("1.h5", ())]


@pytest.mark.parametrize("kind", KINDS)
def test_silent_rows_keep_the_usual_text_and_are_told(tmp_path: Path, kind: str) -> None:
    fields = KINDS[kind](tmp_path)
    source = Source(uri=str(tmp_path), instruction="observation/note", **fields)
    facts = describe(source)
    assert facts["tasks"] == {"look": 1, TASK: 1}
    told = [f["what"] for f in facts["findings"] if f["item"] == "observation/note"]
    assert told == ["rows without a text in episodes 1"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_text_of_the_set_is_refused_with_those_that_are(
    tmp_path: Path, kind: str
) -> None:
    fields = KINDS[kind](tmp_path)
    for name in ("language_instruction_3", "observation/state", "actions", "action"):
        with pytest.raises(DataError, match=r"for `instruction`; .*language_instruction_2"):
            robots(tmp_path, instruction=name, **fields)


def test_the_usual_column_of_rlds_may_change_within_an_episode(tmp_path: Path) -> None:
    def more(episode: int, rows: int) -> dict[str, Any]:
        # The last step of many sets says nothing.
        return {"steps/language_instruction": [t.encode() for t in [*parts(rows)[:-1], ""]]}

    write_rlds(tmp_path, lengths=LENGTHS, more=more)
    first = robots(tmp_path, fps=FPS).episodes[0]
    assert (first.text, first.texts) == ("reach", ((0, "reach"), (3, "grasp")))


@pytest.mark.parametrize("count", [0, 3, 9])
def test_texts_that_are_not_one_a_row_cost_their_episode(tmp_path: Path, count: int) -> None:
    hdf5_of_parts(tmp_path)
    with h5py.File(tmp_path / "demo.hdf5", "a") as file:
        del file["data/demo_1/language_instruction_2"]
        write_texts(file["data/demo_1"], (["a", "b"] * 5)[:count])
    found = robots(tmp_path, instruction="language_instruction_2").episodes[1]
    problem = f"{count} instructions in demo.hdf5 data/demo_1 for 6 rows"
    assert found.problem == (problem if count else "")


def test_stretches() -> None:
    assert stretches([], "x") == ("x", ())
    assert stretches(["", " "], "x") == ("x", ())
    assert stretches(["a", "a", "", "b"], "a") == ("a", ((0, "a"), (3, "b")))

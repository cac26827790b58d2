"""RLDS sets: which files are of which split, version and writing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.rlds.features import width_of
from gwp.data.source import Source
from gwp.errors import DataError
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_rlds
from tests.support.sets import FPS
from tests.unit.gwp.data.formats.test_formats import robots


def write_splits(root: Path) -> Path:
    """`train` and `val` in two files each, of 3 and 1, and of 2 and 2 episodes."""
    write_rlds(root, split="train", lengths=(12, 9, 7, 6), shards=(3, 1))
    about = json.loads((root / "dataset_info.json").read_text())
    write_rlds(root, split="val", lengths=(12, 9, 7, 6), shards=(2, 2))
    about["splits"] += json.loads((root / "dataset_info.json").read_text())["splits"]
    (root / "dataset_info.json").write_text(json.dumps(about))
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_lengths_are_those_of_the_chosen_split(tmp_path: Path, split: str) -> None:
    data = robots(write_splits(tmp_path), fps=FPS, split=split)
    assert [(e.index, e.length, e.problem) for e in data.episodes] == [
        (0, 12, ""),
        (1, 9, ""),
        (2, 7, ""),
        (3, 6, ""),
    ]


def test_a_missing_file_is_counted_by_its_own_split(tmp_path: Path) -> None:
    write_splits(tmp_path)
    (tmp_path / "tester-val.tfrecord-00000-of-00002").unlink()
    data = robots(tmp_path, fps=FPS, split="val")
    assert [(e.index, bool(e.problem)) for e in data.episodes] == [
        (0, True),
        (2, False),
        (3, False),
    ]
    assert "(2 episodes)" in data.episodes[0].problem


def test_more_records_than_are_stated_are_read_and_told(tmp_path: Path) -> None:
    write_rlds(tmp_path, lengths=(12, 9, 7, 6), shards=(3, 1))
    state_lengths(tmp_path, ["1", "1"])
    data = robots(tmp_path, fps=FPS)
    assert [(e.index, e.length, e.problem) for e in data.episodes] == [
        (i, n, "") for i, n in enumerate((12, 9, 7, 6))
    ]
    told = [f["what"] for f in describe(Source(uri=str(tmp_path), fps=FPS))["findings"]]
    assert "has 3 records, dataset_info.json says 1" in told


def test_other_files_than_are_stated_are_told(tmp_path: Path) -> None:
    write_rlds(tmp_path, lengths=(12, 9, 7), shards=(2, 1))
    about = json.loads((tmp_path / "dataset_info.json").read_text())
    about["splits"].append({"name": "val", "shardLengths": ["4"]})
    (tmp_path / "dataset_info.json").write_text(json.dumps(about))
    state_lengths(tmp_path, ["2", "1", "5"])
    facts = describe(Source(uri=str(tmp_path), fps=FPS))
    assert facts["usable"] == 3
    told = [f["what"] for f in facts["findings"] if f["item"] == "dataset_info.json"]
    files = "split train is said to lie in 3 files, their names say 2"
    lost = "whether episodes are missing cannot be told"
    assert told == [f"{files}: {lost}", "split val has no file"]


def state_lengths(root: Path, lengths: list[str]) -> None:
    about = json.loads((root / "dataset_info.json").read_text())
    about["splits"][0]["shardLengths"] = lengths
    (root / "dataset_info.json").write_text(json.dumps(about))


@pytest.mark.parametrize("sides", [["-1", "-2"], ["-1"], ["0"], ["2", "-1"]])
def test_a_width_that_is_not_stated_is_none(sides: list[str]) -> None:
    about = {"tensor": {"shape": {"dimensions": sides}, "dtype": "float32", "encoding": "none"}}
    assert width_of(about) == 0


def test_a_folder_that_begins_with_the_name_of_another_is_another(tmp_path: Path) -> None:
    write_rlds(tmp_path / "set/0.1.0")
    one = robots(tmp_path / "set", fps=FPS)
    shutil.copytree(tmp_path / "set/0.1.0", tmp_path / "set/0.1.0_backup")
    (tmp_path / "set/0.1.0_backup/features.json").unlink()
    again = robots(tmp_path / "set", fps=FPS)
    assert (again.files, again.fingerprint) == (one.files, one.fingerprint)
    for file in (tmp_path / "set/0.1.0").glob("*.tfrecord*"):
        file.unlink()
    with pytest.raises(DataError, match=r"not an RLDS set \(features.json beside"):
        robots(tmp_path / "set", fps=FPS, format="rlds")


def test_no_files_and_no_split_are_told_apart(tmp_path: Path) -> None:
    write_rlds(tmp_path)
    for file in tmp_path.glob("*.tfrecord*"):
        file.rename(file.with_name("x.tfrecord.part"))
    with pytest.raises(DataError, match=r"no \*\.tfrecord\* files .*name the splits train"):
        robots(tmp_path, fps=FPS)
    write_rlds(tmp_path)
    with pytest.raises(DataError, match="no split 'test'; the set has splits train"):
        robots(tmp_path, fps=FPS, split="test")


def test_two_writings_of_one_split_are_not_mixed(tmp_path: Path) -> None:
    write_rlds(tmp_path, lengths=(12, 9), shards=(1, 1))
    write_rlds(tmp_path, lengths=(12, 9, 7), shards=(1, 1, 1))
    with pytest.raises(DataError, match="written more than once, into 2, 3 files; keep one"):
        robots(tmp_path, fps=FPS)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("features.json", {"featuresDict": []}),
        ("features.json", [1]),
        ("features.json", {"featuresDict": {"features": {"steps": "x"}}}),
        ("dataset_info.json", {"splits": 3}),
        ("dataset_info.json", {"splits": [{"shardLengths": ["many"]}]}),
        ("dataset_info.json", {"splits": [{"name": "train", "shardLengths": ["-1", "1"]}]}),
        ("dataset_info.json", {"splits": [{"name": "train", "shardLengths": [10**30, 1]}]}),
        ("dataset_info.json", "text"),
    ],
)
def test_metadata_of_another_form_are_one_line(tmp_path: Path, name: str, change: Any) -> None:
    write_rlds(tmp_path)
    (tmp_path / name).write_text(json.dumps(change))
    with pytest.raises(DataError, match=f"{name} is not as TFDS writes it") as caught:
        robots(tmp_path, fps=FPS)
    assert "Error" not in str(caught.value)


def test_a_column_that_records_lack_is_named(tmp_path: Path) -> None:
    write_rlds(tmp_path)
    about = json.loads((tmp_path / "features.json").read_text())
    steps = about["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    features = steps["featuresDict"]["features"]
    features["observation"]["featuresDict"]["features"]["tactile"] = features["action"]
    (tmp_path / "features.json").write_text(json.dumps(about))
    source = Source(uri=str(tmp_path), fps=FPS, only="observation/tactile", embodiment="arm")
    data = robots_at(source)
    assert data is not None
    good, bad = usable_episodes(data, source, [])
    assert (len(good), len(bad)) == (0, 2)
    assert all("it has no steps/observation/tactile" in reason for _, reason in bad)

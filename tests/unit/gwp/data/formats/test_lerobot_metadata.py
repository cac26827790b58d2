"""Metadata of LeRobot sets that are damaged, spelled otherwise, or name splits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.vectors import episode_vectors
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_tars
from tests.support.sets import (
    TOP,
    episode_values,
    infer_embodiment,
    write_v21,
    write_v30,
    write_video,
)

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def problems(uri: Path | str) -> dict[int, str]:
    return {e.index: e.problem for e in read_set(str(uri)).episodes}


def lines(root: Path, change: Any) -> None:
    file = root / "meta/episodes.jsonl"
    file.write_text("\n".join(change(file.read_text().splitlines())))


def test_a_line_that_is_cut_costs_its_episode(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(5, 6, 7))
    lines(root, lambda found: [found[0], found[1][:30], found[2]])
    cut = "meta/episodes.jsonl, line 2: cut off or damaged; write it again"
    assert problems(root) == {0: "", 1: cut, 2: ""}
    found = describe(Source(uri=str(root)))
    assert (found["usable"], found["findings"][0]["item"]) == (2, "episode 1")
    # Also where nothing is left of its number.
    lines(root, lambda found: [found[0], found[1][:9], found[2]])
    assert problems(root) == {0: "", 1: cut, 2: ""}
    lines(root, lambda found: ["[]", '{"episode_index": 9}', found[2]])
    assert problems(root) == {
        0: "meta/episodes.jsonl, line 1: cut off or damaged; write it again",
        2: "",
        9: "meta/episodes.jsonl, line 2: no length; write it again",
    }


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("length", -3, "length -3 is no whole number from 0 on"),
        ("length", None, "length None is no whole number from 0 on"),
        ("length", 1e30, "length 1e+30 is no whole number from 0 on"),
        ("episode_index", True, "episode_index True is no whole number"),
        ("data/chunk_index", "x", "data/chunk_index 'x' is no whole number"),
        (f"videos/{TOP}/from_timestamp", float("nan"), "from_timestamp nan is no time in seconds"),
        (f"videos/{TOP}/to_timestamp", "late", "to_timestamp 'late' is no time in seconds"),
    ],
)
def test_a_number_that_is_none_costs_its_episode(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    root = write_v30(tmp_path / "set", lengths=(5, 6, 7))
    rows = pq.read_table(root / EPISODES).to_pylist()
    (root / EPISODES).unlink()
    for i, row in enumerate(rows):
        # A file each, for columns have one type.
        row |= {key: value} if i == 1 else {}
        pq.write_table(
            pa.Table.from_pylist([row]), root / EPISODES.replace("file-000", f"file-{i:03d}")
        )
    told = problems(root)
    assert said in told.pop(1)
    assert told == {0: "", 2: ""}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fps": None}, "fps is None, no rate in Hz"),
        ({"fps": True}, "fps is True, no rate in Hz"),
        ({"fps": "fast"}, "fps is 'fast', no rate in Hz"),
        ({"fps": 1e300}, "fps is 1e\\+300, no rate in Hz"),
        ({"features": [1]}, "no features, or not as an object"),
        ({"chunks_size": -5}, "chunks_size is -5, no number of episodes"),
        ({"data_path": "data/{episode_index"}, "meta/info.json has data_path data/{episode_index;"),
        ({"video_path": "v/{video_key:03d}.mp4"}, "meta/info.json has video_path v/{video_key:"),
    ],
)
def test_what_is_wrong_in_info_json_is_one_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    root = write_v21(tmp_path / "set", **change)
    with pytest.raises(DataError, match=said):
        read_set(str(root))


def test_a_feature_without_a_description_is_told_and_not_used(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    info = root / "meta/info.json"
    about = json.loads(info.read_text())
    about["features"] |= {"torque": 3, "touch": {"dtype": ["float32"], "shape": [1]}}
    info.write_text(json.dumps(about))
    found = describe(Source(uri=str(root)))
    told = {f["what"] for f in found["findings"] if f["item"] == "meta/info.json"}
    assert {
        "torque is not described as a feature is",
        "touch is not described as a feature is",
    } <= told
    assert found["usable"] == 2
    about["features"]["action"]["shape"] = [2, None]
    info.write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"action has shape \[2, None\], which is none of a vector"):
        read_set(str(root))


def test_a_task_with_two_texts_has_none(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", tasks=("Pick",))
    with (root / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 0, "task": "Place"}) + "\n")
    lines(root, lambda found: [json.dumps(json.loads(line) | {"tasks": [0]}) for line in found])
    found = describe(Source(uri=str(root)))
    assert found["tasks"] == {"": 2}
    told = {f["what"] for f in found["findings"]}
    assert "task 0 has several texts, of which none is taken" in told


@pytest.mark.parametrize("tasks", [{"a": 1}, [[]], [None], True, [3.7]])
def test_what_is_no_text_is_no_instruction(tmp_path: Path, tasks: Any) -> None:
    root = write_v21(tmp_path / "set", tasks=("Pick", "Place"))
    lines(root, lambda found: [json.dumps(json.loads(line) | {"tasks": tasks}) for line in found])
    assert {e.text for e in read_set(str(root)).episodes} == {""}


def test_an_episode_in_two_files_is_told(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(5, 6, 7))
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 8), file)
    pq.write_table(table.slice(8), file.with_name("file-001.parquet"))
    rows = pq.read_table(root / EPISODES).to_pylist()
    rows[2]["data/file_index"] = 1
    for stated in (0, 1):
        rows[1]["data/file_index"] = stated
        pq.write_table(pa.Table.from_pylist(rows), root / EPISODES)
        found = describe(Source(uri=str(root)))
        assert found["usable"] == 2
        (told,) = (f["what"] for f in found["findings"] if f["item"] == "episode 1")
        assert "3 in data/chunk-000/file-000.parquet and 3 in data/chunk-000/file-001" in told
        # Nor do its neighbours take its rows, whether columns say whose they are or not.
        data = read_set(str(root))
        source = Source(uri=str(root), embodiment="arm")
        for episode, first in usable_episodes(data, source, [])[0]:
            state, _ = episode_vectors(data, episode, first, FileReader())
            np.testing.assert_allclose(
                state, episode_values(episode.index, episode.length)[0], 1e-6
            )
    for part in (file, file.with_name("file-001.parquet")):
        pq.write_table(pq.read_table(part).drop_columns(["episode_index"]), part)
    assert describe(Source(uri=str(root)))["usable"] == 0


def test_a_damaged_file_of_episodes_costs_those_that_it_holds(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(5, 6, 7), total_episodes=3)
    table = pq.read_table(root / EPISODES)
    pq.write_table(table.slice(0, 2), root / EPISODES)
    second = root / EPISODES.replace("file-000", "file-001")
    pq.write_table(table.slice(2), second)
    assert problems(root) == {0: "", 1: "", 2: ""}
    second.write_bytes(second.read_bytes()[:-20])
    lost = "meta/episodes/chunk-000/file-001.parquet cannot be read as Parquet; it is truncated "
    assert problems(root) == {0: "", 1: "", 2: lost + "or damaged"}
    (root / EPISODES).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken metadata \(meta/episodes.*file-000"):
        read_set(str(root))


def test_damaged_tasks_are_told(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    tasks = root / "meta/tasks.jsonl"
    tasks.write_text(tasks.read_text()[:-9])
    assert {e.text for e in read_set(str(root)).episodes} == {"Push the &amp;amp; button"}
    told = [(f["item"], f["what"]) for f in describe(Source(uri=str(root)))["findings"]]
    assert ("meta/tasks.jsonl", "meta/tasks.jsonl, line 2 cannot be read") in told


def test_numbers_as_floats_and_texts(tmp_path: Path) -> None:
    old = write_v21(tmp_path / "old", chunks_size=1000.0, fps="10")
    lines(
        old,
        lambda found: [
            json.dumps(json.loads(line) | {"episode_index": f"{i}", "length": 1.0 * (12, 9)[i]})
            for i, line in enumerate(found)
        ],
    )
    new = write_v30(tmp_path / "new")
    table = pq.read_table(new / EPISODES)
    for name in ("episode_index", "length", "data/file_index", f"videos/{TOP}/file_index"):
        column = table[name].cast(pa.float64())
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, new / EPISODES)
    for root in (old, new):
        found = describe(Source(uri=str(root)))
        assert (found["usable"], found["frames"], found["fps"]) == (2, 21, 10.0)
    lines(old, lambda found: [found[0].replace('"0"', '"0.5"'), found[1]])
    assert "'0.5' is no whole number" in problems(old)[0]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("lie", ["as said", "as usual"])
def test_templates_of_the_other_version(tmp_path: Path, version: str, lie: str) -> None:
    write = write_v21 if version == "v2.1" else write_v30
    root = write(tmp_path / "set", lengths=(5,))
    other = {
        "v2.1": ("data/c-{chunk_index:03d}/f-{file_index:03d}", "v/{chunk_index}/{file_index}"),
        "v3.0": ("data/c-{episode_chunk:03d}/f-{episode_index:03d}", "v/{episode_chunk}/0"),
    }[version]
    info = root / "meta/info.json"
    paths = {"data_path": other[0] + ".parquet", "video_path": other[1] + ".mp4"}
    info.write_text(json.dumps(json.loads(info.read_text()) | paths))
    if lie == "as said":
        for ending, place in (("parquet", "data/c-000/f-000.parquet"), ("mp4", "v/0/0.mp4")):
            (file,) = (f for f in root.rglob(f"*.{ending}") if "meta" not in f.parts)
            (root / place).parent.mkdir(parents=True)
            file.rename(root / place)
    found = describe(Source(uri=str(root)))
    assert found["usable"] == 1
    told = [f["what"] for f in found["findings"]]
    assert any("no files where data_path says" in what for what in told) == (lie == "as usual")


SPLITS = {"train": "0:2", "val": "2:90", "test": "7:9", "odd": [0, 1]}


def split_set(root: Path) -> Path:
    return write_v30(root, lengths=(5, 6, 7), splits=SPLITS)


def test_a_split_is_honoured(tmp_path: Path) -> None:
    root = split_set(tmp_path / "set")
    arm = infer_embodiment(str(root), "arm", 4, 2)

    def chosen(**fields: Any) -> tuple[list[int], str]:
        source = Source(uri=str(root), embodiment="arm", **fields)
        found = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
        counted = compute_stats([source], arm, WINDOW).metadata["datasets"][0]["episodes"]
        ids = found.table["sample_id"].to_pylist()
        return sorted({int(i.split("/")[1]) for i in ids}), counted

    assert chosen() == ([0, 1, 2], "0:3")
    assert chosen(split="train") == ([0, 1], "0:2")
    # All episodes of a file are counted, whichever are read.
    assert chosen(split="val") == ([2], "2")
    assert chosen(split="train", episodes="1:3") == ([1], "1")
    assert describe(Source(uri=str(root), split="val"))["episodes"] == 1


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("dev", "no split 'dev'; the set has train, val, test, odd"),
        ("test", r"split 'test' \(7:9\) holds none of the 3 episodes"),
        ("odd", r"split 'odd' in meta/info.json is \[0, 1\]; it has to be as '0:90'"),
    ],
)
def test_a_split_that_is_not_there_is_named(tmp_path: Path, split: str, said: str) -> None:
    root = split_set(tmp_path / "set")
    with pytest.raises(DataError, match=said):
        robots_at(Source(uri=str(root), split=split))


def test_options_that_a_format_has_not_are_refused(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", lengths=(9,), shards=(1,))
    write_video(tmp_path / "clips/a.mp4", range(9))
    for name in ("tars", "clips"):
        source = Source(uri=str(tmp_path / name), instruction="task")
        with pytest.raises(DataError, match=r"`instruction` is for LeRobot, RLDS, HDF5, not for"):
            build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
    plain = write_v30(tmp_path / "plain")
    with pytest.raises(DataError, match="the set names no splits; remove `split`"):
        robots_at(Source(uri=str(plain), split="train"))
    source = Source(uri=str(tmp_path / "clips"), split="train")
    with pytest.raises(DataError, match=r"`split` is for .*, not for plain videos"):
        build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_version_that_is_not_stated_is_told_by_the_files(
    tmp_path: Path, version: str, stated: bool
) -> None:
    write = write_v21 if version == "v2.1" else write_v30
    root = write(tmp_path / "set", codebase_version=version[1:] if stated else None)
    assert read_set(str(root)).version == version
    found = describe(Source(uri=str(root)))
    assert found["usable"] == 2
    told = [f["what"] for f in found["findings"]]
    assert ("no codebase_version; read as " + version in told) == (not stated)

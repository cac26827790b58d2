"""What the robot was told: instructions of LeRobot sets follow their rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.formats.find import robots_at
from gwp.data.formats.lerobot.read import read_set
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.datasets.inspect import describe
from pipelines.evaluation.recordings import RecordedSet, Recording
from tests.support.sets import infer_embodiment, write_v21, write_v30

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def texts(root: Path, labelled: bool = True, **fields: Any) -> dict[int, list[str]]:
    """Instruction of each sample, by episode."""
    arm = infer_embodiment(str(root), "arm", 4, 2)
    source = Source(uri=str(root), embodiment="arm" if labelled else None, **fields)
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    found: dict[int, list[str]] = {}
    for row in manifest.table.to_pylist():
        found.setdefault(int(row["sample_id"].split("/")[1]), []).append(
            manifest.by_key[row["text_key"]]
        )
    return found


def put(file: Path, name: str, values: list[Any], kind: pa.DataType | None = None) -> None:
    table = pq.read_table(file)
    column = pa.array(values, kind)
    if name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        table = table.append_column(name, column)
    pq.write_table(table, file)


def declare(root: Path, name: str, dtype: str) -> None:
    file = root / "meta/info.json"
    about = json.loads(file.read_text())
    about["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    file.write_text(json.dumps(about))


def test_instructions_follow_the_rows(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", tasks=("reach", "grasp", "success"))
    put(root / DATA, "task_index", [0] * 5 + [1] * 4 + [2] * 3 + [1] * 9)
    # What judges an episode is no instruction: there the episode's first one stands.
    assert texts(root) == {0: ["reach"] * 5 + ["grasp"] * 4 + ["reach"] * 3, 1: ["grasp"] * 9}
    # Without labels too, where windows end with the episode.
    assert texts(root, labelled=False) == {
        0: ["reach"] * 5 + ["grasp"] * 3,
        1: ["grasp"] * 5,
    }
    assert set(map(tuple, texts(root, task="do it").values())) == {("do it",) * 12, ("do it",) * 9}


def test_instructions_follow_the_rows_at_another_rate(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(12,), tasks=("reach", "grasp"))
    put(root / "data/chunk-000/episode_000000.parquet", "task_index", [0] * 5 + [1] * 7)
    arm = infer_embodiment(str(root), "arm", 4, 2).model_copy(update={"fps": 5.0})
    source = Source(uri=str(root), embodiment="arm", resample=True)
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    told = [manifest.by_key[key] for key in manifest.table["text_key"].to_pylist()]
    # Steps lie at rows 0, 2, 4, 6, 8, 10.
    assert told == ["reach"] * 3 + ["grasp"] * 3
    recorded = RecordedSet.of({"arm": arm}, source)
    recording = Recording(recorded, *recorded.episodes[0])
    assert [o.prompt for _, o in recording.observed(range(6))] == told


def test_rows_alone_say_what_is_done(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", tasks=("reach", "grasp"))
    put(root / EPISODES, "tasks", [None, []], pa.list_(pa.string()))
    put(root / DATA, "task_index", [1] * 12 + [0] * 9)
    assert texts(root) == {0: ["grasp"] * 12, 1: ["reach"] * 9}


def test_rows_that_contradict_the_episode_are_told(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", tasks=("reach", "grasp"))
    put(root / EPISODES, "tasks", [["reach"], ["grasp"]], pa.list_(pa.string()))
    put(root / DATA, "task_index", [0] * 21)
    assert texts(root) == {0: ["reach"] * 12, 1: ["grasp"] * 9}
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert "rows of episodes 1 name another task than the metadata" in told
    # The user may say which is right.
    assert texts(root, instruction="task_index") == {0: ["reach"] * 12, 1: ["reach"] * 9}


def test_a_set_of_one_instruction_keeps_its_fingerprint(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set")
    arm = infer_embodiment(str(root), "arm", 4, 2)
    source = Source(uri=str(root), embodiment="arm")
    found = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    # A place per episode, and nothing new in what names a manifest.
    assert found.places.num_rows == 2
    assert "instruction" not in found.rule["sources"][0]


@pytest.mark.parametrize(
    "given", ["Push the button", "1", 1, 1.0, ["Push the button"], ["1"], [1.0]]
)
def test_tasks_of_an_episode_in_every_spelling(tmp_path: Path, given: Any) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,), tasks=("reach", "Push the button"))
    row = {"episode_index": "0", "tasks": given, "length": 5.0}
    (root / "meta/episodes.jsonl").write_text(json.dumps(row))
    assert read_set(str(root)).episodes[0].text == "Push the button"


def test_a_column_of_texts_is_chosen(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set")
    declare(root, "language_instruction", "string")
    put(root / DATA, "language_instruction", ["up"] * 4 + ["down"] * 8 + [None] * 9)
    own = "Push the & button"
    found = texts(root, instruction="language_instruction")
    assert found == {0: ["up"] * 4 + ["down"] * 8, 1: [own] * 9}
    source = Source(uri=str(root), instruction="language_instruction")
    told = [f["what"] for f in describe(source)["findings"]]
    assert "rows without a text in episodes 1" in told
    with pytest.raises(
        DataError, match=r"no column 'language_instructions' for `instruction`; did you mean"
    ):
        robots_at(source.model_copy(update={"instruction": "language_instructions"}))


def test_a_column_of_numbers_is_chosen(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", tasks=("reach", "grasp"))
    for name, values in (
        ("annotation.human.action", [[1]] * 12 + [[0]] * 9),
        ("subtask_index", [0] * 12 + [1] * 9),
    ):
        declare(root, name, "int64")
        put(root / DATA, name, values)
    found = texts(root, instruction="annotation.human.action")
    assert found == {0: ["grasp"] * 12, 1: ["reach"] * 9}
    pq.write_table(
        pa.table({"subtask_index": [0, 1], "subtask": ["lift", "put"]}),
        root / "meta/subtasks.parquet",
    )
    assert texts(root, instruction="subtask_index") == {0: ["lift"] * 12, 1: ["put"] * 9}


def test_a_chosen_column_that_a_file_lacks_costs_its_episodes(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 6))
    declare(root, "language_instruction", "string")
    put(root / "data/chunk-000/episode_000000.parquet", "language_instruction", ["up"] * 6)
    assert texts(root, instruction="language_instruction") == {0: ["up"] * 6}


@pytest.mark.parametrize("raw", [None, b"PAR1cut"])
def test_numbers_of_a_lost_table_are_none_of_tasks(tmp_path: Path, raw: bytes | None) -> None:
    root = write_v21(tmp_path / "set", tasks=("a", "b"))
    info = root / "meta/info.json"
    about = json.loads(info.read_text())
    about["features"]["subtask_index"] = {"dtype": "int64", "shape": [1]}
    info.write_text(json.dumps(about))
    if raw:
        (root / "meta/subtasks.parquet").write_bytes(raw)
    with pytest.raises(DataError, match=r"counts in meta/subtasks.*missing or damaged"):
        read_set(str(root), instruction="subtask_index")
    assert read_set(str(root), instruction="task_index").own.tasks == {0: "a", 1: "b"}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("label", ["valid", "Invalid", "success"])
def test_a_judgement_is_no_instruction(tmp_path: Path, version: str, label: str) -> None:
    write = write_v30 if version == "v3.0" else write_v21
    root = write(tmp_path / "set", lengths=(5,), tasks=(label, "pick the cup"))
    # As GR00T lists them; its rows count in columns of their own.
    if version == "v3.0":
        put(root / EPISODES, "tasks", [[label, "pick the cup"]], pa.list_(pa.string()))
    else:
        row = {"episode_index": 0, "tasks": [label, "pick the cup"], "length": 5}
        (root / "meta/episodes.jsonl").write_text(json.dumps(row))
    for file in (root / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["task_index"]), file)
    assert texts(root) == {0: ["pick the cup"] * 5}


def test_instructions_that_rows_alone_say_are_not_lacking(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", tasks=("reach", "grasp"))
    put(root / EPISODES, "tasks", [None, []], pa.list_(pa.string()))
    put(root / DATA, "task_index", [1] * 12 + [0] * 9)
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert not [what for what in told if "no instruction" in what]

"""LeRobot sets: every spelling of the format is read alike, and what is broken is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.formats.files.parquet import matrix
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import FilePart
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.vectors import read_vectors
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.sets import (
    SHARED,
    TOP,
    WRIST,
    columns,
    episode_values,
    infer_embodiment,
    write_v21,
    write_v30,
    write_video,
)

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


def build(uri: Path | str, embodiment: Embodiment | None = None, **fields: Any) -> Manifest:
    source = Source(uri=str(uri), embodiment=embodiment.name if embodiment else None, **fields)
    return build_manifest(
        [source],
        embodiments={embodiment.name: embodiment} if embodiment else {},
        window=WINDOW,
        clip=CLIP,
    )


def robot(uri: Path, **fields: Any) -> Embodiment:
    return infer_embodiment(str(uri), "arm", chunk=4, replan=2, **fields)


def episodes(manifest: Manifest) -> list[int]:
    return sorted({int(i.split("/")[1]) for i in manifest.table["sample_id"].to_pylist()})


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_metadata(tmp_path: Path, write: Any) -> None:
    data = read_set(str(write(tmp_path / "set", cameras=(TOP, WRIST))))
    assert data.state_names == ("x", "y", "grip")
    assert data.action_names == ("dx", "grip")
    assert [e.length for e in data.episodes] == [12, 9]
    # The quality label is no instruction.
    assert {e.text for e in data.episodes} == {"Push the &amp;amp; button"}
    assert list(data.cameras) == [TOP, WRIST]


def test_every_camera_has_its_own_file_and_start(tmp_path: Path) -> None:
    second = read_set(str(write_v30(tmp_path / "set", cameras=(TOP, WRIST)))).episodes[1]
    assert (second.videos[TOP].file[-12:], second.videos[TOP].start) == ("file-000.mp4", 1.2)
    assert (second.videos[WRIST].file[-12:], second.videos[WRIST].start) == ("file-001.mp4", 0.0)


@pytest.mark.parametrize("pandas_tasks", [False, True])
def test_tasks_by_number_and_both_names_of_the_text_column(
    tmp_path: Path, pandas_tasks: bool
) -> None:
    root = write_v30(tmp_path / "set", pandas_tasks=pandas_tasks, tasks=["reach", "push"])
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(
        table.set_column(table.column_names.index("tasks"), "tasks", pa.array([[1], [0]])), file
    )
    assert [e.text for e in read_set(str(root)).episodes] == ["push", "reach"]


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ({"motors": {"grip": 2, "dx": 0, "dy": 1}}, ("dx", "dy", "grip")),
        ({"arm": {"dx": 0, "dy": 1}, "hand": ["grip"]}, ("dx", "dy", "grip")),
        ([["a", "b", "c"]], ("a", "b", "c")),
        ({"motors": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"c": 2, "a": 0, "b": 1}, ("a", "b", "c")),
        (None, ("state_0", "state_1", "state_2")),
        (["a"], ("state_0", "state_1", "state_2")),
    ],
)
def test_names_in_every_spelling(tmp_path: Path, names: Any, read: tuple[str, ...]) -> None:
    root = write_v21(tmp_path / "set")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = names
    (root / "meta/info.json").write_text(json.dumps(info))
    assert read_set(str(root)).state_names == read


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_vectors_in_every_type(tmp_path: Path, fixed: bool, wide: bool) -> None:
    root = write_v21(tmp_path / "set", fixed=fixed, wide=wide)
    part = FilePart(str(root / "data/chunk-000/episode_000001.parquet"))
    state, action = read_vectors("lerobot", part, 2, 5, FileReader())
    for got, want in zip((state, action), episode_values(1, 9), strict=True):
        np.testing.assert_allclose(got, want[2:7], atol=1e-6)


def test_rows_across_row_groups(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set")
    part, reader = FilePart(str(root / "data/chunk-000/file-000.parquet")), FileReader()
    state, _ = read_vectors("lerobot", part, 12, 9, reader)
    np.testing.assert_allclose(state, episode_values(1, 9)[0], atol=1e-6)
    with pytest.raises(DataError, match="rows 15 to 25 are not there"):
        read_vectors("lerobot", part, 15, 10, reader)


def test_columns_that_are_no_matrix() -> None:
    np.testing.assert_array_equal(matrix(pa.chunked_array([[1.0, 2.0]]), "a"), [[1], [2]])
    for bad in ([[1.0], [1.0, 2.0]], [[1.0, 2.0], None], [[1.0], [1.0, 2.0, 3.0]]):
        with pytest.raises(DataError, match="different widths"):
            matrix(pa.chunked_array([bad]), "a")
    assert np.isnan(matrix(pa.chunked_array([[[1.0, None]]]), "a")[0, 1])


def test_the_robot_of_a_set(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", cameras=(TOP, WRIST))
    found = robot(root, delta_mask=(True, False), id=3)
    assert found.cameras == {"front": TOP, "left": WRIST}
    assert (found.id, found.fps, found.chunk, found.replan, found.delta) == (
        3,
        10,
        4,
        2,
        (True, False),
    )
    assert robot(root, cameras={"front": WRIST}).cameras == {"front": WRIST}
    with pytest.raises(DataError, match=r"delta_mask has 3 entries, action_names 2"):
        robot(root, delta_mask=(True,) * 3)


def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", cameras=(TOP, WRIST))
    with pytest.raises(
        DataError,
        match=r"no camera '.*tops'; did you mean 'observation.images.top'\? The set has .*wrist",
    ):
        robot(root, cameras={"front": "observation.images.tops"})
    with pytest.raises(DataError, match="no camera 'nose'; The set has"):
        build(root, cameras={"front": "nose"})
    stills = tmp_path / "set/meta/info.json"
    stills.write_text(stills.read_text().replace('"dtype": "video"', '"dtype": "image"'))
    with pytest.raises(
        DataError, match=r"episode_000000.parquet has no column observation.images.top"
    ):
        build(root, cameras={"front": TOP})
    many = write_v21(
        tmp_path / "many", cameras=[f"observation.images.{c}" for c in "abcd"], lengths=[5]
    )
    with pytest.raises(DataError, match="name up to 3 `cameras`"):
        robot(many)


def test_what_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a LeRobot set \(meta/info.json is missing\)"):
        build(tmp_path, format="lerobot")
    with pytest.raises(DataError, match=r"format v1\.6 is not read"):
        read_set(str(write_v21(tmp_path / "old", codebase_version="v1.6")))
    root = write_v21(tmp_path / "broken")
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length"')
    with pytest.raises(DataError, match="broken metadata"):
        read_set(str(root))


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_an_empty_set(tmp_path: Path, write: Any) -> None:
    if write is write_v30:
        root = write(tmp_path / "set")
        (root / "meta/episodes/chunk-000/file-000.parquet").unlink()
    else:
        root = write(tmp_path / "set", lengths=[])
    with pytest.raises(
        DataError, match=r"the set has no episodes|no file in meta/episodes/; bring"
    ):
        build(root)


@pytest.mark.parametrize("other", ["", "otherwise"])
def test_an_episode_that_is_listed_again(tmp_path: Path, other: str) -> None:
    """Once more it counts once; otherwise it costs itself alone."""
    root = write_v21(tmp_path / "set", lengths=(12, 9, 7))
    file = root / "meta/episodes.jsonl"
    line = file.read_text().splitlines()[1]
    file.write_text(file.read_text() + (line.replace("9", "8") if other else line) + "\n")
    data = read_set(str(root))
    assert [e.index for e in data.episodes] == [0, 1, 2]
    assert [bool(e.problem) for e in data.episodes] == [False, bool(other), False]
    told = [f.what for f in data.own.findings if f.item == "meta/episodes.jsonl, line 4"]
    assert told == [f"lists episode 1 {'again, and otherwise' if other else 'once more'}"]


@pytest.mark.parametrize("stated", ["v2.1", "v3.0"])
def test_a_list_of_episodes_that_is_not_there_is_one_line(tmp_path: Path, stated: str) -> None:
    root = (write_v30 if stated == "v2.1" else write_v21)(tmp_path / "set")
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"codebase_version": stated}))
    with pytest.raises(DataError, match=r"meta/episodes.*; bring it, or correct the version in"):
        build(root)


def skipped(manifest: Manifest) -> dict[str, str]:
    return {s["item"]: s["reason"] for s in manifest.skipped}


def test_an_episode_whose_video_is_short_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=[6, 7, 8])
    write_video(root / f"videos/chunk-000/{TOP}/episode_000001.mp4", range(5))
    manifest = build(root, robot(root))
    assert episodes(manifest) == [0, 2]
    assert skipped(manifest) == {"episode 1": f"{TOP} has 5 frames, the episode has 7 rows"}
    assert manifest.skipped[0]["uri"] == str(root)


def test_an_episode_whose_rows_are_short_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=[6, 7])
    pq.write_table(pa.table(columns(0, 4)), root / "data/chunk-000/episode_000000.parquet")
    assert skipped(build(root, robot(root))) == {
        "episode 0": "metadata say 6 rows, data/chunk-000/episode_000000.parquet has 4"
    }
    # Without labels the rows do not matter.
    assert not build(root).skipped


def test_a_long_video_that_ends_early_costs_only_the_episodes_it_lacks(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=[10, 8, 6])
    write_video(root / f"videos/{TOP}/chunk-000/file-000.mp4", range(20))
    manifest = build(root, robot(root))
    assert episodes(manifest) == [0, 1]
    assert "which has 20" in skipped(manifest)["episode 2"]


def test_a_span_of_another_length_than_the_rows(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=[10, 8])
    # More frames than rows: else counting would tell where they lie.
    write_video(root / f"videos/{TOP}/chunk-000/file-000.mp4", range(20))
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    table, name = pq.read_table(file), f"videos/{TOP}/to_timestamp"
    pq.write_table(
        table.set_column(table.column_names.index(name), name, pa.array([0.8, 1.8])), file
    )
    assert skipped(build(root, robot(root))) == {
        "episode 0": f"{TOP} has 8 frames, the episode has 10 rows"
    }


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=[6, 6, 6, 6, 6])
    videos = root / f"videos/chunk-000/{TOP}"
    raw = (videos / "episode_000001.mp4").read_bytes()
    (videos / "episode_000001.mp4").write_bytes(raw[: len(raw) // 2])
    (videos / "episode_000002.mp4").unlink()
    (root / "data/chunk-000/episode_000003.parquet").write_bytes(b"PAR1 not really")
    write_video(videos / "episode_000004.mp4", range(6), fps=20)
    manifest = build(root, robot(root))
    assert episodes(manifest) == [0]
    found = skipped(manifest)
    assert "truncated" in found["episode 1"]
    assert found["episode 2"].endswith("episode_000002.mp4 is missing")
    assert "cannot be read as Parquet" in found["episode 3"]
    assert "runs at 20 Hz, the set at 10 Hz" in found["episode 4"]


def test_nothing_usable_is_an_error_that_says_why(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=[6])
    (root / f"videos/chunk-000/{TOP}/episode_000000.mp4").unlink()
    with pytest.raises(
        DataError, match=r"nothing usable in 1 episodes or videos \(episode 0: .* is missing"
    ):
        build(root, robot(root))


def test_a_set_of_another_robot_is_refused(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    arm = robot(root)
    for change, message in (
        ({"fps": 20.0}, "is at 10 Hz, embodiment arm at 20 Hz"),
        ({"action_names": ("dx", "grip", "dz")}, "2 action dimensions, embodiment arm has 3"),
        ({"state_names": ("x", "z", "grip")}, "state 1 is 'y', embodiment arm has 'z'"),
    ):
        with pytest.raises(DataError, match=message):
            build(root, arm.model_copy(update=change))
    with pytest.raises(DataError, match="embodiment 'leg' is not described; known: arm"):
        build_manifest(
            [Source(uri=str(root), embodiment="leg")],
            embodiments={"arm": arm},
            window=WINDOW,
            clip=CLIP,
        )


@pytest.mark.parametrize("version", ["g1_bottle_v21", "g1_bottle_v30"])
def test_a_real_set(version: str) -> None:
    if not (SHARED / version).is_dir():
        pytest.skip(f"needs the sample set {version}")
    data = read_set(str(SHARED / version))
    assert [e.length for e in data.episodes] == [221, 277, 267, 290, 280, 260]
    manifest = build(SHARED / version, infer_embodiment(data.uri, "g1", chunk=4, replan=4))
    assert manifest.table.num_rows == 1595
    assert not manifest.skipped
    assert list(manifest.texts().values()) == ["Pick up the yellow bottle on the table."]

"""Rows of LeRobot files: whose they are and in which order, whatever way they lie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.format import FilePart
from gwp.data.formats.lerobot import data_files
from gwp.data.formats.pictures import open_frames
from gwp.data.formats.vectors import episode_vectors
from gwp.data.source import Source
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_stills
from tests.support.sets import (
    FPS,
    TOP,
    columns,
    episode_values,
    frame_number,
    number,
    write_v21,
    write_v30,
    write_video,
)
from tests.unit.gwp.data.formats.test_traps import change_episodes

DATA = "data/chunk-000/file-000.parquet"
Values = dict[int, tuple[np.ndarray, np.ndarray]]


def read(uri: Path | str, **fields: Any) -> tuple[Values, dict[int, str]]:
    """State and action of each episode that can be used, and the reason of the others."""
    source, reader = Source(uri=str(uri), embodiment="arm", **fields), FileReader()
    data = robots_at(source, reader)
    assert data is not None
    good, bad = usable_episodes(data, source, list(data.cameras), reader)
    values = {e.index: episode_vectors(data, e, first, reader) for e, first in good}
    return values, {e.index: reason for e, reason in bad}


def file_of(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def is_right(values: Values, lengths: dict[int, int]) -> None:
    """Each of these episodes has its own values in their order, and there is no other."""
    assert values.keys() == lengths.keys()
    for episode, length in lengths.items():
        for got, want in zip(values[episode], episode_values(episode, length), strict=True):
            np.testing.assert_array_equal(got, want.astype(np.float32))


def shuffled(table: pa.Table, seed: int = 0) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(len(table))))


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_permuted_rows_are_read_in_the_order_of_their_frames(
    bucket: str, tmp_path: Path, version: str, remote: bool
) -> None:
    if version == "v2.1":
        root = write_v21(tmp_path / "set")
        pq.write_table(shuffled(pq.read_table(file_of(root, 1))), file_of(root, 1))
    else:
        root = write_v30(tmp_path / "set")
        pq.write_table(shuffled(pq.read_table(root / DATA)), root / DATA, row_group_size=5)
    if remote:
        storage.upload(root, f"{bucket}/permuted-{version}")
    values, bad = read(f"{bucket}/permuted-{version}" if remote else root)
    assert not bad
    is_right(values, {0: 12, 1: 9})


def test_permuted_rows_are_told(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    pq.write_table(shuffled(pq.read_table(file_of(root, 1))), file_of(root, 1))
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert "rows of episodes 1 do not lie in the order of frame_index" in told


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_beside_permuted_rows_go_with_them(tmp_path: Path, version: str) -> None:
    root = write_stills(tmp_path / "set", version, lengths=(7, 5))
    for i, file in enumerate(sorted((root / "data").rglob("*.parquet"))):
        pq.write_table(shuffled(pq.read_table(file), i), file)
    source, reader = Source(uri=str(root), embodiment="arm"), FileReader()
    data = robots_at(source, reader)
    assert data is not None
    good, _ = usable_episodes(data, source, [TOP], reader)
    assert [e.index for e, _ in good] == [0, 1]
    for episode, _ in good:
        span = episode.videos[TOP]
        part = FilePart(storage.join(data.uri, span.file))
        times = [span.start + k / data.fps for k in range(episode.length)]
        with open_frames(data.format, part, span.key, data.fps, reader) as frames:
            shown = [frame_number(np.asarray(picture)) for _, picture in frames(times)]
        assert shown == [number(TOP, episode.index, k) for k in range(episode.length)]


def test_rows_that_lie_as_they_should_are_read_by_ranges(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(5, 4, 6))
    table = pq.read_table(root / DATA)
    # Whole episodes in another order, and one whose rows are permuted.
    parts = [table.slice(9, 6), shuffled(table.slice(0, 5)), table.slice(5, 4)]
    pq.write_table(pa.concat_tables(parts), root / DATA)
    source, reader = Source(uri=str(root), embodiment="arm"), FileReader()
    data = robots_at(source, reader)
    assert data is not None
    good, bad = usable_episodes(data, source, [TOP], reader)
    assert not bad
    assert {e.index: (bool(e.prefix), first) for e, first in good} == {
        0: (True, 0),
        1: (False, 11),
        2: (False, 0),
    }
    is_right(read(root)[0], {0: 5, 1: 4, 2: 6})


def change(table: pa.Table, name: str, at: dict[int, Any]) -> pa.Table:
    values = table[name].to_pylist()
    for row, value in at.items():
        values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ({13: 3}, "frame_index 3 is there twice"),
        ({20: 9}, "frame_index has a gap behind 7"),
        ({14: None}, "a row has no frame_index"),
    ],
)
def test_a_wrong_number_of_a_frame_costs_its_episode_only(
    tmp_path: Path, frames: dict[int, Any], said: str
) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 5))
    pq.write_table(change(pq.read_table(root / DATA), "frame_index", frames), root / DATA)
    values, bad = read(root)
    assert list(bad) == [1]
    assert said in bad[1]
    is_right(values, {0: 12, 2: 5})


def test_frames_that_begin_late_or_are_evenly_apart_are_whole(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    for i, frames in enumerate(([7.0 + k for k in range(12)], [str(3 * k) for k in range(9)])):
        table = pq.read_table(file_of(root, i))
        at = table.column_names.index("frame_index")
        pq.write_table(table.set_column(at, "frame_index", pa.array(frames)), file_of(root, i))
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 12, 1: 9})


@pytest.mark.parametrize("kind", [pa.float64(), pa.string(), pa.int32()])
def test_numbers_of_episodes_in_every_type(tmp_path: Path, kind: pa.DataType) -> None:
    root = write_v30(tmp_path / "set")
    table = pq.read_table(root / DATA)
    at = table.column_names.index("episode_index")
    pq.write_table(
        table.set_column(at, "episode_index", table["episode_index"].cast(kind)), root / DATA
    )
    is_right(read(root)[0], {0: 12, 1: 9})


def test_rows_of_an_episode_apart_are_put_together(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 4, 5))
    table = pq.read_table(root / DATA)
    parts = [table.slice(3, 3), table.slice(6, 9), table.slice(0, 3)]
    pq.write_table(pa.concat_tables(parts), root / DATA)
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 6, 1: 4, 2: 5})


def test_without_numbers_of_frames_that_of_the_set_orders_rows(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set")
    table = pq.read_table(root / DATA).drop_columns(["frame_index"])
    pq.write_table(shuffled(table), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9})
    # Where it cannot, rows are taken as they lie.
    zeros = pa.array([0] * 21)
    pq.write_table(table.set_column(table.column_names.index("index"), "index", zeros), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9})


def swap(root: Path, a: int, b: int) -> None:
    first, second = file_of(root, a).read_bytes(), file_of(root, b).read_bytes()
    file_of(root, a).write_bytes(second)
    file_of(root, b).write_bytes(first)


def test_swapped_files_of_equal_lengths_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 6, 6, 6))
    swap(root, 1, 2)
    values, bad = read(root)
    assert list(bad) == [1, 2]
    assert bad[1].endswith("episode_000001.parquet holds rows of episode 2, not of this one")
    is_right(values, {0: 6, 3: 6})


def test_swapped_files_of_different_lengths_are_found_by_their_rows(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 7, 8, 5))
    swap(root, 1, 2)
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 6, 1: 7, 2: 8, 3: 5})
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert "rows of episodes 1, 2 lie in another file than the metadata say" in told


def test_a_copy_of_another_episode_is_left_out(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 6, 6))
    file_of(root, 1).write_bytes(file_of(root, 2).read_bytes())
    values, bad = read(root)
    assert list(bad) == [1]
    is_right(values, {0: 6, 2: 6})


@pytest.mark.parametrize(
    "numbers", [lambda i: 0, lambda i: 40 + 3 * i], ids=["all the same", "of another set"]
)
def test_numbers_of_another_set_say_nothing(tmp_path: Path, numbers: Callable[[int], int]) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 7, 8))
    renumber(root, {i: numbers(i) for i in range(3)})
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 6, 1: 7, 2: 8})
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert any("have the episode_index of others" in what for what in told)


def renumber(root: Path, numbers: dict[int, int]) -> None:
    for episode, other in numbers.items():
        table = pq.read_table(file_of(root, episode))
        at = table.column_names.index("episode_index")
        whose = pa.array([other] * len(table))
        pq.write_table(table.set_column(at, "episode_index", whose), file_of(root, episode))


@pytest.mark.parametrize(
    ("numbers", "exchanged"),
    [
        ({1: 2, 2: 1, 4: 0}, [1, 2]),
        ({0: 2, 2: 4, 4: 0, 1: 9}, [0, 2, 4]),
        # Some were taken out, and rows have the numbers of before.
        ({1: 2, 2: 3, 3: 7, 4: 9}, []),
        ({0: 1, 1: 2, 2: 3, 3: 4, 4: 5}, []),
        ({1: 0, 2: 0, 3: 0, 4: 0}, []),
    ],
)
def test_files_that_lie_in_each_others_places_are_told_from_other_numbers(
    tmp_path: Path, numbers: dict[int, int], exchanged: list[int]
) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 6, 6, 6, 6))
    renumber(root, numbers)
    values, bad = read(root)
    assert list(bad) == exchanged
    is_right(values, {i: 6 for i in range(5) if i not in exchanged})


def test_rows_of_others_in_a_file_are_passed_over(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 7))
    tables = [pq.read_table(file_of(root, 1)), pq.read_table(file_of(root, 0))]
    pq.write_table(pa.concat_tables(tables), file_of(root, 0))
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 6, 1: 7})


def test_a_wrong_file_index_is_found_by_the_rows(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 7, 8))
    table = pq.read_table(root / DATA)
    pq.write_table(table.slice(0, 6), root / DATA)
    pq.write_table(table.slice(6), root / "data/chunk-000/file-001.parquet")
    # The metadata place all of them in file 0.
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 6, 1: 7, 2: 8})


def test_files_that_agree_are_looked_at_only_as_far_as_they_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_v21(tmp_path / "set", lengths=(5, 5, 5))
    seen: list[str] = []
    real = data_files.look
    monkeypatch.setattr(
        data_files,
        "look",
        lambda reader, uri, *rest: (seen.append(uri), real(reader, uri, *rest))[1],
    )
    assert read(root, episodes="1")[0].keys() == {1}
    assert seen == [str(file_of(root, 1))]


def test_matrices_are_laid_out_row_by_row(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    table = pa.table(columns(0, 5))
    action = np.arange(30.0).reshape(5, 2, 3)
    table = table.set_column(
        table.column_names.index("action"), "action", pa.array(action.tolist())
    )
    pq.write_table(table, file_of(root, 0))
    info = root / "meta/info.json"
    info.write_text(info.read_text().replace('"shape": [2]', '"shape": ["2", 3.0]'))
    values, bad = read(root)
    assert not bad
    np.testing.assert_array_equal(values[0][1], action.reshape(5, 6))


@pytest.mark.parametrize("first", [slice(0, 12, 2), slice(3, 12)], ids=["thinned", "late"])
def test_rows_that_are_not_every_frame_need_a_video_of_their_own(
    tmp_path: Path, first: slice
) -> None:
    root = write_v30(tmp_path / "set")
    kept = [*range(12)][first]
    table = pq.read_table(root / DATA)
    pq.write_table(table.take([*kept, *range(12, 21)]), root / DATA)

    def change(row: dict[str, Any]) -> None:
        if row["episode_index"] == 0:
            row.update({"length": len(kept), f"videos/{TOP}/to_timestamp": len(kept) / FPS})

    change_episodes(root, change)
    values, bad = read(root)
    assert list(values) == [1]
    assert "begin late or leave frames out" in bad[0]
    # Thinned out together.
    shown = [*(number(TOP, 0, k) for k in kept), *(number(TOP, 1, k) for k in range(9))]
    write_video(root / f"videos/{TOP}/chunk-000/file-000.mp4", shown, gop=4)
    values, bad = read(root, episodes="0")
    assert len(values[0][0]) == len(kept)


def stretch(parts: list[int], lengths: tuple[int, ...], root: Path) -> None:
    """Rows of these episodes one behind the other, and no column that says whose they are."""
    table = pq.read_table(root / DATA).drop_columns(["episode_index"])
    begins = np.cumsum([0, *lengths])
    slices = [table.slice(begins[i], lengths[i]) for i in parts]
    pq.write_table(pa.concat_tables(slices), root / DATA)


def test_frames_tell_where_episodes_without_numbers_begin(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 5))
    stretch([1, 2, 0], (12, 9, 5), root)
    values, bad = read(root)
    assert not bad
    is_right(values, {0: 12, 1: 9, 2: 5})


def test_episodes_of_one_length_that_lie_in_another_order_are_left_out(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(7, 5, 7))
    stretch([2, 0, 1], (7, 5, 7), root)
    pq.write_table(pq.read_table(root / DATA).drop_columns(["index"]), root / DATA)
    values, bad = read(root)
    assert not values
    assert all("frame_index begins elsewhere" in reason for reason in bad.values())


def test_a_wrong_frame_of_episodes_without_numbers_costs_one(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(7, 5, 7))
    stretch([0, 1, 2], (7, 5, 7), root)
    pq.write_table(change(pq.read_table(root / DATA), "frame_index", {9: 40}), root / DATA)
    values, bad = read(root)
    assert list(bad) == [1]
    is_right(values, {0: 7, 2: 7})


def test_times_order_rows_that_nothing_else_does(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 5))
    table = pq.read_table(root / DATA).drop_columns(["frame_index", "index"])
    pq.write_table(shuffled(table), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9, 2: 5})
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert "rows of episodes 0, 1, 2 do not lie in the order of timestamp" in told
    # A clock that was set back counts nothing.
    pq.write_table(change(table, "timestamp", {15: 0.05}), root / DATA)
    values, bad = read(root)
    assert list(bad) == [1]
    assert "times that run backwards" in bad[1]
    is_right(values, {0: 12, 2: 5})

"""Rows of LeRobot files that no `frame_index` orders, or that it orders strangely."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.source import Source
from pipelines.datasets.inspect import describe
from tests.support.other_sets import write_stills
from tests.support.sets import FPS, TOP, write_v21, write_v30
from tests.unit.gwp.data.formats.test_lerobot_rows import DATA, file_of, is_right, read, shuffled
from tests.unit.gwp.data.formats.test_traps import change_episodes


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_empty_frame_index_hides_no_other_order(tmp_path: Path, version: str) -> None:
    root = (write_v30 if version == "v3.0" else write_v21)(tmp_path / "set", lengths=(12, 9))
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file).drop_columns(["timestamp"])
        empty = pa.nulls(len(table), pa.int64())
        pq.write_table(with_column(shuffled(table), "frame_index", empty), file)
    is_right(read(root)[0], {0: 12, 1: 9})
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert "rows of episodes 0, 1 do not lie in the order of index" in told


def test_numbers_of_every_third_row_order_rows(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    table = pq.read_table(root / DATA).drop_columns(["frame_index", "timestamp"])
    thinned = with_column(table, "index", pa.array([3 * k + 100 * (k > 11) for k in range(21)]))
    pq.write_table(shuffled(thinned), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9})


def test_rows_whose_numbers_run_backwards_and_are_not_even_are_left_out(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    table = pq.read_table(root / DATA).drop_columns(["frame_index", "timestamp"])
    numbers = [*range(12), 30, 20, 50, 52, 54, 60, 61, 62, 63]
    pq.write_table(with_column(table, "index", pa.array(numbers)), root / DATA)
    values, bad = read(root)
    is_right(values, {0: 12})
    assert "index that runs backwards" in bad[1]
    # As they lie they may be in order all the same.
    pq.write_table(with_column(table, "index", pa.array(sorted(numbers))), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9})


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns"), pa.duration("ms")])
def test_times_of_a_day_order_rows(tmp_path: Path, kind: pa.DataType) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    table = pq.read_table(root / DATA).drop_columns(["frame_index", "index"])
    unit = {"us": 10**6, "ns": 10**9, "ms": 10**3}[kind.unit]
    times = pa.array([int((1.7e9 + k / FPS) * unit) for k in range(21)], pa.int64()).cast(kind)
    pq.write_table(shuffled(with_column(table, "timestamp", times)), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9})


def test_rows_of_two_that_lie_mixed_are_told_by_their_column(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 6))
    table = pq.read_table(root / DATA).drop_columns(["frame_index", "index", "timestamp"])
    pq.write_table(table.take(pa.array([k // 2 + 6 * (k % 2) for k in range(12)])), root / DATA)
    is_right(read(root)[0], {0: 6, 1: 6})
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert "rows of episodes 0, 1 do not lie in the order of episode_index" in told


def without(table: pa.Table, *names: str) -> pa.Table:
    return table.drop_columns([name for name in names if name in table.column_names])


@pytest.mark.parametrize("left", [("index", "timestamp"), ("timestamp",), ("index",)])
def test_whose_rows_are_is_told_by_what_counts_them(tmp_path: Path, left: tuple[str, ...]) -> None:
    """Rows of episode 1 before those of episode 0, and no column that says so."""
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    table = pq.read_table(root / DATA)
    if "timestamp" in left:
        times = [k / FPS for n in (12, 9) for k in range(n)]
        table = with_column(table, "timestamp", pa.array(times))
    moved = table.take(pa.array([*range(12, 21), *range(12)]))
    gone = {"episode_index", "frame_index", "index", "timestamp"} - set(left)
    pq.write_table(without(moved, *gone), root / DATA)
    is_right(read(root)[0], {0: 12, 1: 9})


def test_episodes_of_one_length_are_told_by_the_numbers_of_the_set(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(9, 9))
    table = pq.read_table(root / DATA).take(pa.array([*range(9, 18), *range(9)]))
    pq.write_table(without(table, "episode_index"), root / DATA)
    is_right(read(root)[0], {0: 9, 1: 9})
    # Numbers that count something else say no more than that these are not in order.
    odd = [*range(40, 49), *range(9)]
    table = with_column(without(table, "episode_index"), "index", pa.array(odd))
    pq.write_table(table, root / DATA)
    values, bad = read(root)
    assert (values, sorted(bad)) == ({}, [0, 1])


@pytest.mark.parametrize("left", ["index", "timestamp"])
def test_rows_that_leave_frames_out_are_known_by_any_count(tmp_path: Path, left: str) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 10))
    table = pq.read_table(root / DATA)
    times = pa.array([k / FPS for n in (12, 10) for k in range(n)])
    kept = with_column(table, "timestamp", times).take(pa.array(range(0, 22, 2)))
    gone = {"frame_index", "index", "timestamp"} - {left}
    pq.write_table(without(kept, *gone), root / DATA)

    def change(row: dict[str, Any]) -> None:
        n = row["length"] // 2
        begin = row[f"videos/{TOP}/from_timestamp"]
        row.update({"length": n, f"videos/{TOP}/to_timestamp": begin + n / FPS})

    change_episodes(root, change)
    values, bad = read(root)
    assert not values
    assert all("leave frames out" in reason for reason in bad.values())


def test_rows_that_count_every_second_frame_are_told(tmp_path: Path) -> None:
    root = write_stills(tmp_path / "set", "v2.1")
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        numbers = pa.array([2 * k for k in range(len(table))])
        pq.write_table(with_column(table, "frame_index", numbers), file)
    told = [f for f in describe(Source(uri=str(root)))["findings"] if "frames apart" in f["what"]]
    assert [f["what"] for f in told] == [
        "rows of episodes 0, 1 are 2 frames apart, by what they count"
    ]
    assert f"if they are at {FPS / 2:g} Hz" in told[0]["advice"]


@pytest.mark.parametrize("count", [2, 3])
def test_a_file_that_is_a_copy_of_another_is_of_one_episode(tmp_path: Path, count: int) -> None:
    root = write_v21(tmp_path / "set", lengths=(6,) * count)
    file_of(root, 0).write_bytes(file_of(root, 1).read_bytes())
    if count == 3:
        file_of(root, 2).unlink()
    values, bad = read(root)
    is_right(values, {1: 6})
    assert "holds rows of episode 1, not of this one" in bad[0]


def test_parts_that_keep_their_numbers_are_read_by_their_names(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(6, 7, 6, 7))
    for episode in range(4):
        table = pq.read_table(file_of(root, episode))
        numbers = pa.array([episode % 2] * len(table))
        pq.write_table(with_column(table, "episode_index", numbers), file_of(root, episode))
    is_right(read(root)[0], {0: 6, 1: 7, 2: 6, 3: 7})


@pytest.mark.parametrize(
    ("row", "size"),
    [(None, -1), ([], -1), ([1.0, 2.0, 3.0], -1), (None, 2)],
    ids=["null", "empty", "longer", "null of a fixed size"],
)
@pytest.mark.parametrize("groups", [21, 7])
def test_a_row_that_is_no_vector_costs_the_samples_that_need_it(
    tmp_path: Path, row: list[float] | None, size: int, groups: int
) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    table = pq.read_table(root / DATA)
    actions = table["action"].to_pylist()
    actions[3] = row
    table = with_column(table, "action", pa.array(actions, pa.list_(pa.float32(), size)))
    pq.write_table(table, root / DATA, row_group_size=groups)
    values, bad = read(root)
    assert not bad
    state, action = values[0]
    assert np.isnan(action[3]).all()
    assert np.isfinite(np.delete(action, 3, 0)).all()
    assert np.isfinite(state).all()
    is_right({1: values[1]}, {1: 9})
    facts = describe(Source(uri=str(root)))
    assert facts["usable"] == 2
    assert "NaN or Inf in 1 rows, first in row 3" in [f["what"] for f in facts["findings"]]


@pytest.mark.parametrize(
    ("stated", "wrong"),
    [
        ([(0, 12), (12, 21), (21, 26)], ""),
        # Of a part of a larger set.
        ([(100, 112), (112, 121), (121, 126)], ""),
        ([(0, 12), (10, 19), (21, 26)], "1"),
        ([(0, 12), (12, 20), (21, 26)], "1"),
        ([(0, 12), (0, 9), (0, 5)], "1, 2"),
    ],
)
def test_rows_decide_against_the_list_of_episodes(
    tmp_path: Path, stated: list[tuple[int, int]], wrong: str
) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 5))

    def change(row: dict[str, Any]) -> None:
        begin, end = stated[row["episode_index"]]
        row.update({"dataset_from_index": begin, "dataset_to_index": end})

    change_episodes(root, change)
    is_right(read(root)[0], {0: 12, 1: 9, 2: 5})
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    found = [what for what in told if "dataset_from_index" in what]
    said = f"dataset_from_index of episodes {wrong} is not where their lengths put them"
    assert found == ([said] if wrong else [])

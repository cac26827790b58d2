"""Numbers that were read when a file was looked at are those that reading it again gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.formats.files import parquet
from gwp.data.formats.files.numbers import Numbers, smallest
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.files.spool import Spool
from gwp.data.formats.format import FilePart
from gwp.data.formats.lerobot.rows import look
from gwp.errors import DataError

SINGLE = np.float32([[0.1, -0.0], [1e-42, 3e38]]).astype(np.float64)
DOUBLE = np.array([[0.1], [1e300]])
BROKEN = np.array([[np.nan], [np.inf]])


def bits(values: np.ndarray) -> bytes:
    assert values.dtype == np.float64
    return np.ascontiguousarray(values).tobytes()


def test_columns_come_back_to_the_bit() -> None:
    numbers = Numbers(Spool())
    for name, columns in {
        "single": {"a": SINGLE, "b": SINGLE[:, :1]},
        "double": {"a": SINGLE, "b": DOUBLE},
        "broken": {"a": BROKEN, "b": SINGLE},
    }.items():
        numbers.put(name, columns)
        found = numbers.get(name, ("b", "a"))
        assert found is not None
        assert {key: bits(values) for key, values in found.items()} == {
            key: bits(values) for key, values in columns.items()
        }
        assert numbers.get(name, ("a", "c")) is None
    numbers.put("empty", {"a": np.zeros((0, 0))})
    assert numbers.get("empty", ("a",)) is None
    assert numbers.get("nothing", ("a",)) is None


def test_only_what_32_bits_hold_is_made_smaller() -> None:
    assert smallest(SINGLE).dtype == np.float32
    for values in (DOUBLE, np.array([[1e-300]]), BROKEN[:1]):
        assert bits(smallest(values)) == bits(values)


def write(path: Path, state: pa.Array) -> str:
    rows = len(state)
    columns = {"episode_index": np.zeros(rows, np.int64), "frame_index": np.arange(rows)}
    pq.write_table(pa.table({**columns, "state": state}), path, row_group_size=3)
    return str(path)


def looked_at(uri: str, keys: tuple[str, ...]) -> FileReader:
    reader = FileReader()
    found = look(reader, uri, Path(uri).stat().st_size, ((0, 8),), "task_index", 10.0, keys)
    assert found.held is not None
    assert found.held[0].count == 8
    return reader


def test_rows_are_the_same_whether_they_were_read_along(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    uri = write(tmp_path / "a.parquet", pa.FixedSizeListArray.from_arrays(values.ravel(), 2))
    for first, count in ((0, 8), (2, 3), (7, 1)):
        wanted = parquet.read_rows(FilePart(uri), first, count, ("state",), FileReader())
        found = parquet.read_rows(
            FilePart(uri), first, count, ("state",), looked_at(uri, ("state",))
        )
        assert (
            bits(found["state"])
            == bits(wanted["state"])
            == bits(values[first : first + count].astype(np.float64))
        )
    reader = looked_at(uri, ("state",))
    # It is not opened again.
    Path(uri).unlink()
    places = np.array([5, 0])
    assert bits(parquet.read_places(FilePart(uri), places, ("state",), reader)["state"]) == bits(
        values[places].astype(np.float64)
    )


@pytest.mark.parametrize("state", [pa.array([[1.0]] * 5 + [[1.0, 2.0]] * 3), pa.array(["x"] * 8)])
def test_what_is_wrong_with_numbers_is_told_when_they_are_asked_for(
    tmp_path: Path, state: pa.Array
) -> None:
    uri = write(tmp_path / "a.parquet", state)
    reasons = []
    for reader in (looked_at(uri, ("state",)), FileReader()):
        with pytest.raises(DataError) as error:
            parquet.read_rows(FilePart(uri), 0, 8, ("state",), reader)
        reasons.append(str(error.value))
    assert reasons[0] == reasons[1]
    # Rows are known all the same where the column is not there at all.
    looked_at(uri, ("state", "action"))

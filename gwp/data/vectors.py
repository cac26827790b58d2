"""State and action rows out of Parquet files."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.robot_set import ACTION, STATE
from gwp.errors import DataError


def read_vectors(uri: str, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """State `[count, ds]` and action `[count, da]`, float64 in robot units, of rows `first ..` of a data file.

    Only the row groups that hold them are read; the last few stay in memory. DataError when the file cannot be read so.
    """
    try:
        edges = _edges(uri)
        if first + count > edges[-1]:
            raise DataError(f"{uri}: rows {first} to {first + count} are not there; the file has {edges[-1]}")
        groups = range(np.searchsorted(edges, first, side="right") - 1, np.searchsorted(edges, first + count, side="left"))
        parts = [_group(uri, int(g)) for g in groups]
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{uri}: cannot be read ({error})") from error
    skip = first - edges[groups[0]]
    state, action = (np.concatenate([p[i] for p in parts])[skip : skip + count] for i in (0, 1))
    return state, action


@lru_cache(maxsize=1024)
def _edges(uri: str) -> tuple[int, ...]:
    """First row of each row group, and the number of rows."""
    with storage.open_read(uri) as handle:
        about = pq.ParquetFile(handle).metadata
        sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    return tuple(int(x) for x in np.cumsum([0, *sizes]))


@lru_cache(maxsize=16)
def _group(uri: str, group: int) -> tuple[np.ndarray, np.ndarray]:
    with storage.open_read(uri) as handle:
        table = pq.ParquetFile(handle).read_row_group(group, columns=[STATE, ACTION])
    return matrix(table[STATE], STATE), matrix(table[ACTION], ACTION)


def matrix(column: Any, name: str) -> np.ndarray:
    """A column of numbers, lists or fixed-size lists as float64 `[rows, width]`; missing numbers become NaN."""
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    rows = len(column)
    values = column.flatten() if hasattr(column, "flatten") and pa.types.is_nested(column.type) else column
    if rows and (len(values) % rows or (values is not column and _ragged(column))):
        raise DataError(f"column {name} has rows of different widths")
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False)).reshape(rows, -1 if rows else 0)


def _ragged(column: Any) -> bool:
    return column.null_count > 0 or len(pc.unique(pc.list_value_length(column))) > 1

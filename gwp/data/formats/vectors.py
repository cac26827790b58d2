"""State and action rows out of data files, whatever their format."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.formats import hdf5, rlds
from gwp.data.formats.robot_set import ACTION, STATE, Episode, RobotSet
from gwp.errors import DataError


def read_vectors(
    uri: str,
    first: int,
    count: int,
    format: str = "lerobot",  # noqa: A002
    state: Sequence[str] = (STATE,),
    action: Sequence[str] = (ACTION,),
    offset: int = 0,
    size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """State `[count, ds]` and action `[count, da]`, float64 in robot units, of rows `first ..`
    of a data file of `format`.

    `state`, `action`: columns, joined in this order. `offset`, `size`: the part of the file
    that holds the rows (None: all of it). Of Parquet only the row groups that hold them are
    read; the last few stay in memory. DataError when the file cannot be read so.
    """
    keys = tuple(dict.fromkeys((*state, *action)))
    found = (
        _parquet_rows(uri, first, count, keys)
        if format == "lerobot"
        else _episode_rows(format, uri, offset, size, first, count, keys)
    )
    both = [np.concatenate([found[k] for k in some], 1) for some in (state, action)]
    return both[0], both[1]


def episode_vectors(data: RobotSet, episode: Episode, first: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows of an episode, as `read_vectors`. `first`: its first row, from
    `usable_episodes`.
    """
    uri = storage.join(data.uri, episode.data_file)
    return read_vectors(
        uri, first, episode.length, data.format, *data.keys(episode), episode.offset, episode.bytes
    )


@contextmanager
def parquet_errors(uri: str) -> Iterator[None]:
    """What Arrow says of a damaged file, as a DataError with its name. Storage that does not
    answer is no property of the file.
    """
    try:
        yield
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{uri} cannot be read as Parquet ({error})") from error
    except OSError as error:
        # Arrow's own, of footers and pages that are damaged, have no number.
        if error.errno is not None:
            raise
        raise DataError(
            f"{uri} cannot be read as Parquet ({str(error).strip()}); it is truncated or damaged"
        ) from error


def _parquet_rows(uri: str, first: int, count: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with parquet_errors(uri):
        edges = row_groups(uri)
        if first + count > edges[-1]:
            raise DataError(
                f"{uri}: rows {first} to {first + count} are not there; the file has {edges[-1]}"
            )
        groups = range(
            np.searchsorted(edges, first, side="right") - 1,
            np.searchsorted(edges, first + count, side="left"),
        )
        parts = [_group(uri, int(g), keys) for g in groups]
    skip = first - edges[groups[0]]
    return {k: np.concatenate([p[k] for p in parts])[skip : skip + count] for k in keys}


def _episode_rows(
    format: str,  # noqa: A002
    uri: str,
    offset: int,
    size: int | None,
    first: int,
    count: int,
    keys: tuple[str, ...],
) -> dict[str, np.ndarray]:
    found = _columns(format, uri, offset, size, keys)
    short = min(len(v) for v in found.values())
    if first + count > short:
        raise DataError(
            f"{uri}: rows {first} to {first + count} are not there; the episode has {short}"
        )
    return {k: v[first : first + count] for k, v in found.items()}


@lru_cache(maxsize=64)
def _columns(
    format: str,
    uri: str,
    offset: int,
    size: int | None,
    keys: tuple[str, ...],  # noqa: A002
) -> dict[str, np.ndarray]:
    """All rows of an episode."""
    return (
        hdf5.read_columns(uri, keys)
        if format == "hdf5"
        else rlds.read_columns(uri, offset, size or 0, keys)
    )


@lru_cache(maxsize=1024)
def row_groups(uri: str) -> tuple[int, ...]:
    """First row of each row group of a Parquet file, and the number of rows."""
    with storage.open_read(uri) as handle:
        about = pq.ParquetFile(handle).metadata
        sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    return tuple(int(x) for x in np.cumsum([0, *sizes]))


@lru_cache(maxsize=16)
def _group(uri: str, group: int, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with storage.open_read(uri) as handle:
        table = pq.ParquetFile(handle).read_row_group(group, columns=list(keys))
    return {k: matrix(table[k], k) for k in keys}


def matrix(column: Any, name: str) -> np.ndarray:
    """A column of numbers, lists or fixed-size lists as float64 `[rows, width]`; missing
    numbers become NaN.
    """
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    rows = len(column)
    values = (
        column.flatten()
        if hasattr(column, "flatten") and pa.types.is_nested(column.type)
        else column
    )
    if rows and (len(values) % rows or (values is not column and _ragged(column))):
        raise DataError(f"column {name} has rows of different widths")
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False)).reshape(
        rows, -1 if rows else 0
    )


def _ragged(column: Any) -> bool:
    return column.null_count > 0 or len(pc.unique(pc.list_value_length(column))) > 1

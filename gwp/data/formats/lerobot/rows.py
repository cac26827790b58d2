"""Whose the rows of a data file are, and in which order they lie there.

Rows are sorted where they lie in another order than their columns say. A column of such a file
is called `sorted/NAME`: its rows by `episode_index`, and by `frame_index` within an episode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp.data.formats import parquet
from gwp.data.formats.format import FilePart, Pictures
from gwp.data.formats.reader import FileReader
from gwp.errors import DataError

SORTED = "sorted/"
"""Before the name of a column: its rows as they belong, where they lie in another order."""
EPISODE, FRAME, TIME = "episode_index", "frame_index", "timestamp"
_INDEX = "index"
"""Number of a row in the whole set, which orders rows that have no `frame_index`."""
_ORDERS = 16
"""Files whose order stays."""
_UNKNOWN = -1
"""In place of an episode or a frame that is not a whole number."""


@dataclass(frozen=True)
class Held:
    """Rows of one episode in a data file.

    first, count: where they lie; in_order: there, else in the sorted file. problem: why they
    are not to be used. tasks: the first row and the value of each run of equal values of the
    column that says what is done. clock: seconds at the first row, and by how many the others
    are off from row / fps at most; None where no time is recorded.
    """

    first: int
    count: int
    in_order: bool = True
    problem: str = ""
    tasks: tuple[tuple[int, Any], ...] = ()
    clock: tuple[float, float] | None = None


@dataclass(frozen=True)
class DataFile:
    """What a data file holds.

    types: column -> its type. count: rows. held: rows by episode, in the order in which they
    lie; None where it does not say whose they are and counting does not tell.
    """

    types: dict[str, pa.DataType]
    count: int
    held: dict[int, Held] | None


@dataclass(frozen=True)
class Clock:
    """Recorded times of the rows of a file: float64 `[rows]`, s; `fps`: those of the set."""

    times: np.ndarray
    fps: float

    @classmethod
    def of(cls, table: pa.Table, fps: float) -> "Clock | None":
        """None where no numbers are recorded."""
        if TIME not in table.column_names or not table.num_rows:
            return None
        try:
            found = parquet.matrix(table[TIME], TIME)
        except (pa.ArrowException, DataError):
            return None
        # Lists of none or of several say no time.
        return cls(found[:, 0], fps) if found.shape[1] == 1 else None

    def drift(self, places: np.ndarray) -> tuple[float, float]:
        """`Held.clock` of the rows at these places, which are of one episode."""
        times = self.times[places]
        even = times[0] + np.arange(len(times)) / self.fps
        return float(times[0]), float(np.abs(times - even).max())


def look(
    reader: FileReader,
    uri: str,
    size: int,
    listed: tuple[tuple[int, int], ...],
    told_by: str,
    fps: float,
) -> DataFile:
    """What a data file of `size` bytes holds.

    listed: number and length of each episode that the metadata place there; they say whose the
    rows are where no column does. told_by: column that says what is done
    """
    with reader.open(uri, size) as handle:
        file = pq.ParquetFile(handle)
        schema, count = file.schema_arrow, file.metadata.num_rows
        types = dict(zip(schema.names, schema.types, strict=True))
        wanted = [c for c in dict.fromkeys((EPISODE, FRAME, _INDEX, told_by, TIME)) if c in types]
        # What orders rows is one column: the next is read only where the first is not there.
        if FRAME in wanted and _INDEX in wanted and told_by != _INDEX:
            wanted.remove(_INDEX)
        table = file.read(columns=wanted, use_threads=False)
    whose = _whose(table)
    episodes = _counted(listed, count) if whose is None else whose
    if episodes is None:
        return DataFile(types, count, None)
    told = _codes(table[told_by]) if told_by in types else None
    # Where rows of several were counted, the sorted file could not be made again.
    sortable = whose is not None or len(listed) == 1
    clock = Clock.of(table, fps)
    return DataFile(types, count, _held(episodes, _frames(table), told, clock, sortable))


def _counted(listed: tuple[tuple[int, int], ...], count: int) -> np.ndarray | None:
    """int64 `[rows]`: episode of each row of a file that does not say it; None where counting
    does not tell.
    """
    numbers = np.array([number for number, _ in listed], np.int64)
    if len(listed) == 1:
        # All rows of the file, as many as they are: the count is compared later.
        return np.repeat(numbers, count)
    lengths = np.array([length for _, length in listed], np.int64)
    # In the order of their numbers, as the format writes them.
    return np.repeat(numbers, lengths) if lengths.sum() == count else None


def _held(
    episodes: np.ndarray,
    frames: np.ndarray | None,
    told: tuple[np.ndarray, list[Any]] | None,
    clock: Clock | None,
    sortable: bool,
) -> dict[int, Held]:
    """Rows by episode. episodes, frames: int64 `[rows]`; told: codes `[rows]` and what they
    stand for.
    """
    order = _order_of(episodes, frames)
    mine = episodes[order]
    edges = [0, *(np.flatnonzero(np.diff(mine)) + 1).tolist(), len(mine)]
    found: dict[int, Held] = {}
    for begin, end in pairwise(edges):
        if begin == end or mine[begin] == _UNKNOWN:
            continue
        places = order[begin:end]
        # As they lie: mostly, and then ranges of rows are read.
        lie = bool((np.diff(places) == 1).all())
        problem = "" if frames is None else _wrong_frames(frames[places])
        if not lie and not sortable:
            problem = f"its rows lie in another order than {FRAME} says"
        runs = () if told is None else _runs(told[0][places], told[1])
        first = int(places[0]) if lie else begin
        drift = None if clock is None else clock.drift(places)
        found[int(mine[begin])] = Held(first, end - begin, lie, problem, runs, drift)
    return dict(sorted(found.items(), key=lambda entry: entry[1].first))


def _order_of(episodes: np.ndarray, frames: np.ndarray | None) -> np.ndarray:
    """int64 `[rows]`: positions of the rows of a file, by episode and frame. Equal ones stay as
    they lie.
    """
    if frames is None:
        return np.argsort(episodes, kind="stable")
    return np.lexsort((frames, episodes))


def _wrong_frames(frames: np.ndarray) -> str:
    """What is wrong with the sorted `frame_index` of an episode. Those of a set that was thinned
    out are evenly apart.
    """
    if frames[0] == _UNKNOWN:
        return f"a row has no {FRAME}"
    steps = np.diff(frames)
    if (steps == 0).any():
        return f"{FRAME} {int(frames[steps.argmin()])} is there twice"
    if len(steps) and (steps != steps[0]).any():
        # Behind the first step that is larger than the smallest.
        behind = int(frames[(steps > steps.min()).argmax()])
        return f"{FRAME} has a gap behind {behind}"
    return ""


def _whose(table: pa.Table) -> np.ndarray | None:
    """int64 `[rows]`: episode of each row; None where no row says so."""
    if EPISODE not in table.column_names:
        return None
    episodes = _whole(table[EPISODE])
    return None if len(episodes) and (episodes == _UNKNOWN).all() else episodes


def _frames(table: pa.Table) -> np.ndarray | None:
    """int64 `[rows]`: what orders the rows of an episode; None where nothing does."""
    if FRAME in table.column_names:
        frames = _whole(table[FRAME])
        # Empty columns are as good as none.
        return None if (frames == _UNKNOWN).all() else frames
    if _INDEX not in table.column_names:
        return None
    index = _whole(table[_INDEX])
    # Merged sets keep those of their parts: then rows are taken as they lie.
    known = len(index) > 0 and len(np.unique(index)) == len(index) and np.ptp(index) < len(index)
    return index if known else None


def _whole(column: pa.ChunkedArray) -> np.ndarray:
    """int64 `[rows]`; `_UNKNOWN` where a row has no whole number. Conversions write floats,
    texts and lists of one.
    """
    if pa.types.is_int64(column.type) and not column.null_count:
        return np.asarray(column.to_numpy())
    try:
        found = parquet.matrix(column, "")
    except (pa.ArrowException, DataError):
        return np.full(len(column), _UNKNOWN)
    # Lists of none or of several say no number.
    if len(column) and found.shape[1] != 1:
        return np.full(len(column), _UNKNOWN)
    values = found.ravel()
    # What is larger a float does not hold to the unit.
    good = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 1 << 53)
    return np.where(good, values, _UNKNOWN).astype(np.int64)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]] | None:
    """A code int `[rows]` of each value, and the values; None where they are of a kind that
    says nothing.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_nested(values.type):
        # Lists of one, as vectors of width 1 are written.
        if not hasattr(values, "flatten") or len(values.flatten()) != len(values):
            return None
        values = values.flatten()
        if not isinstance(values, pa.Array) or pa.types.is_nested(values.type):
            return None
    coded = pc.dictionary_encode(values, null_encoding="encode")
    return coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()


def _runs(codes: np.ndarray, values: Sequence[Any]) -> tuple[tuple[int, Any], ...]:
    begins = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist()]
    return tuple((begin, values[int(codes[begin])]) for begin in begins)


def read_rows(
    part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    """As `parquet.read_rows`; columns `sorted/NAME` of the sorted file."""
    if not all(key.startswith(SORTED) for key in keys):
        return parquet.read_rows(part, first, count, keys, reader)
    names = tuple(key.removeprefix(SORTED) for key in keys)
    places = _order(part.uri, reader)[first : first + count]
    if len(places) < count:
        raise DataError(f"{part.uri}: rows {first} to {first + count} are not there")
    found = parquet.read_places(part, places, names, reader)
    return {SORTED + name: values for name, values in found.items()}


@contextmanager
def open_pictures(part: FilePart, key: str, reader: FileReader) -> Iterator[Pictures]:
    """As `parquet.open_pictures`; of a column `sorted/NAME` those of the sorted file."""
    with parquet.open_pictures(part, key.removeprefix(SORTED), reader) as (count, get):
        if not key.startswith(SORTED):
            yield count, get
            return
        order = _order(part.uri, reader)
        yield count, lambda i: get(int(order[i]))


def _order(uri: str, reader: FileReader) -> np.ndarray:
    with parquet.parquet_errors(uri):
        return reader.once(_ORDERS, _read_order, reader, uri)


def _read_order(reader: FileReader, uri: str) -> np.ndarray:
    """int64 `[rows]`: position of each row of the sorted file in the file."""
    with reader.open(uri) as handle:
        file = pq.ParquetFile(handle)
        wanted = [c for c in (EPISODE, FRAME, _INDEX) if c in file.schema_arrow.names]
        table = file.read(columns=wanted)
    # Without such a column all rows are of one episode, or `look` gives none that is sorted.
    whose = _whose(table)
    if whose is None:
        whose = np.zeros(table.num_rows, np.int64)
    return _order_of(whose, _frames(table))

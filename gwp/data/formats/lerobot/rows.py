"""Whose the rows of a data file are, and in which order they lie there.

Rows are sorted where they lie in another order than their columns say. A column of such a file
is called `sorted/NAME`: its rows by `episode_index`, and by `frame_index` within an episode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp.data.formats.files import parquet
from gwp.data.formats.files.reader import WHOLE, FileReader
from gwp.data.formats.format import FilePart, Pictures
from gwp.data.formats.lerobot.order import (
    FRAME,
    INDEX,
    TIME,
    UNKNOWN,
    Order,
    counted_rows,
    equal_runs,
    is_silent,
    times_in,
    whole_numbers,
    wrong_frames,
)
from gwp.errors import DataError

SORTED = "sorted/"
"""Before the name of a column: its rows as they belong, where they lie in another order."""
EPISODE = "episode_index"
_ORDERS, _SCHEMAS = 16, 64
"""Files whose order stays, and kinds of files whose columns do."""
_DOUBTFUL = (
    f"no {EPISODE}, and {FRAME} begins elsewhere than counting rows lets the episode begin; write "
    f"{EPISODE}"
)


@dataclass(frozen=True)
class Held:
    """Rows of one episode in a data file.

    first, count: where they lie; in_order: there, else in the sorted file. problem: why they
    are not to be used. tasks: the first row and the value of each run of equal values of the
    column that says what is done. clock: seconds at the first row, and by how many the others
    are off from row / fps at most; None where no time is recorded. every: whether no frame lies
    before the rows or between them, as far as `frame_index` says. order: column that orders rows
    which do not lie so. step: frames from one to the next, as far as that is known.
    """

    first: int
    count: int
    in_order: bool = True
    problem: str = ""
    tasks: tuple[tuple[int, Any], ...] = ()
    clock: tuple[float, float] | None = None
    every: bool = True
    order: str = ""
    step: int = 1


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
        times = times_in(table)
        return None if times is None else cls(times, fps)

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
    numbers: tuple[str, ...],
) -> DataFile:
    """What a data file of `size` bytes holds.

    listed: number and length of each episode that the metadata place there; they say whose the
    rows are where no column does. told_by: column that says what is done. numbers: columns that
    `read_rows` will be asked for; of a small file they are read along
    """
    with reader.open(uri, size) as handle:
        file = pq.ParquetFile(handle)
        types = reader.once(_SCHEMAS, _types, file.schema_arrow)
        count = file.metadata.num_rows
        wanted = [c for c in dict.fromkeys((EPISODE, FRAME, INDEX, told_by, TIME)) if c in types]
        # What orders rows is one column: the next is read only where the first says nothing.
        # Whose they are the second tells, where no column does.
        needed = told_by == INDEX or FRAME not in wanted or EPISODE not in wanted
        some = [c for c in wanted if c != INDEX or needed]
        along = numbers if size <= WHOLE and types.keys() >= {*numbers} else ()
        table = _with_numbers(file, some, along)
        if some != wanted and is_silent(table, FRAME):
            table = _with_numbers(file, wanted, along)
    if along:
        parquet.keep(reader, uri, table, along)
    whose = _whose(table)
    counted = counted_rows(listed, table) if whose is None else (whose, set())
    if counted is None:
        return DataFile(types, count, None)
    episodes, doubtful = counted
    order = Order.of(table, episodes)
    order.wrong.update(dict.fromkeys(doubtful, _DOUBTFUL))
    told = _codes(table[told_by]) if told_by in types else None
    # Where rows of several were counted, the sorted file could not be made again.
    sortable = whose is not None or len(listed) == 1
    clock = Clock.of(table, fps)
    return DataFile(types, count, _held(episodes, order, told, clock, sortable))


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Columns and their types; files that are alike share them."""
    return dict(zip(schema.names, schema.types, strict=True))


def _with_numbers(file: pq.ParquetFile, wanted: Sequence[str], numbers: Sequence[str]) -> pa.Table:
    """The columns of a file that are wanted, and those of numbers if they can be read."""
    if numbers:
        # Numbers that are damaged say nothing of whose the rows are.
        with suppress(pa.ArrowException, OSError, ValueError, OverflowError):
            return file.read(columns=[*dict.fromkeys((*wanted, *numbers))], use_threads=False)
    return file.read(columns=wanted, use_threads=False)


def _held(
    episodes: np.ndarray,
    order: Order,
    told: tuple[np.ndarray, list[Any]] | None,
    clock: Clock | None,
    sortable: bool,
) -> dict[int, Held]:
    """Rows by episode. episodes: int64 `[rows]`; told: codes `[rows]` and what they stand for."""
    mine = episodes[order.positions]
    # Rows of several that lie mixed are ordered by whose they are.
    by = order.column or EPISODE
    found: dict[int, Held] = {}
    for begin, end in equal_runs(mine):
        number = int(mine[begin])
        if number == UNKNOWN:
            continue
        places = order.positions[begin:end]
        # As they lie: mostly, and then ranges of rows are read.
        lie = bool((np.diff(places) == 1).all())
        frames = None if order.numbers is None else order.numbers[places]
        problem = order.wrong.get(number) or ("" if frames is None else wrong_frames(frames, by))
        if not lie and not sortable and not problem:
            problem = f"its rows lie in another order than {by} says"
        step = _step(frames, clock, places)
        # Others begin late or were thinned out; where they begin `index` does not say.
        late = frames is not None and order.column == FRAME and bool(frames[0])
        every = step == 1 and not late
        runs = () if told is None else _runs(told[0][places], told[1])
        first = int(places[0]) if lie else begin
        drift = None if clock is None else clock.drift(places)
        found[number] = Held(
            first, end - begin, lie, problem, runs, drift, every, "" if lie else by, step
        )
    return dict(sorted(found.items(), key=lambda entry: entry[1].first))


def _step(frames: np.ndarray | None, clock: Clock | None, places: np.ndarray) -> int:
    """Frames from one row of an episode to the next: 2 of a set that was thinned out."""
    if len(places) < 2:
        return 1
    if frames is not None:
        return max(1, int(frames[1] - frames[0]))
    if clock is None:
        return 1
    apart = float(np.median(np.diff(clock.times[places])) * clock.fps)
    return max(1, round(apart)) if np.isfinite(apart) else 1


def _whose(table: pa.Table) -> np.ndarray | None:
    """int64 `[rows]`: episode of each row; None where no row says so."""
    if EPISODE not in table.column_names:
        return None
    episodes = whole_numbers(table[EPISODE])
    return None if len(episodes) and (episodes == UNKNOWN).all() else episodes


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]] | None:
    """A code int `[rows]` of each value, and the values; None where they are of a kind that
    says nothing.
    """
    values = parquet.joined(column)
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
        wanted = [c for c in (EPISODE, FRAME, INDEX, TIME) if c in file.schema_arrow.names]
        table = file.read(columns=wanted)
    # Without such a column all rows are of one episode, or `look` gives none that is sorted.
    whose = _whose(table)
    if whose is None:
        whose = np.zeros(table.num_rows, np.int64)
    return Order.of(table, whose).positions

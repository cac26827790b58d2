"""In which order the rows of a data file belong, and whose they are where no column says it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gwp.data.formats.files import parquet
from gwp.errors import DataError

FRAME, TIME, INDEX = "frame_index", "timestamp", "index"
"""What orders rows: the first that is there."""
UNKNOWN = -1
"""In place of an episode or a frame that is not a whole number."""
_EVEN = 0.5
"""Share of their usual distance by which times may be apart otherwise and still count rows."""


@dataclass(frozen=True)
class Order:
    """positions: int64 `[rows]`, those of the rows by episode and within it, equal ones as they
    lie. numbers: int64 `[rows]` of `column`; None: nothing orders them. wrong: episode -> why its
    order is not known.
    """

    positions: np.ndarray
    numbers: np.ndarray | None = None
    column: str = ""
    wrong: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, episodes: np.ndarray) -> "Order":
        """episodes: int64 `[rows]`, whose each row is"""
        frames, index = (_numbers(table, name) for name in (FRAME, INDEX))
        if frames is not None:
            return cls(np.lexsort((frames, episodes)), frames, FRAME)
        if index is not None:
            positions = np.lexsort((index, episodes))
            # Of a merged set those of its parts, of one that was thinned out every third, say.
            # Other ones may be anything.
            if _are_even(index[positions], episodes[positions]):
                return cls(positions, index, INDEX)
        return cls._by_time(table, episodes, index)

    @classmethod
    def _by_time(cls, table: pa.Table, episodes: np.ndarray, index: np.ndarray | None) -> "Order":
        """Rows as they lie, but for episodes whose times run backwards; without times those
        whose `index` does are wrong.
        """
        positions = np.argsort(episodes, kind="stable")
        times = times_in(table)
        if times is None:
            return cls(positions, wrong={} if index is None else _backward(index, episodes))
        moved, wrong = False, {}
        for begin, end in equal_runs(episodes[positions]):
            places = positions[begin:end]
            own = times[places]
            if not np.isfinite(own).all() or (np.diff(own) >= 0).all():
                continue
            places = places[np.argsort(own, kind="stable")]
            steps = np.diff(times[places])
            usual = float(np.median(steps))
            if usual > 0 and (np.abs(steps - usual) < _EVEN * usual).all():
                positions[begin:end], moved = places, True
            else:
                wrong[int(episodes[places[0]])] = (
                    f"no {FRAME}, and times that run backwards: the order of its rows cannot be "
                    f"told; write {FRAME}"
                )
        return cls(positions, None, TIME if moved else "", wrong)


def is_silent(table: pa.Table, name: str) -> bool:
    """Whether a column orders no row: it is not there, or has no whole number at all. Empty
    columns are as good as none.
    """
    return _numbers(table, name) is None


def _numbers(table: pa.Table, name: str) -> np.ndarray | None:
    """int64 `[rows]` of a column; None where it is silent."""
    if name not in table.column_names:
        return None
    numbers = whole_numbers(table[name])
    return None if (numbers == UNKNOWN).all() else numbers


def _are_even(index: np.ndarray, episodes: np.ndarray) -> bool:
    """Whether sorted numbers are evenly apart in each episode."""
    steps = np.diff(index)
    inside = np.diff(episodes) == 0
    # Both steps of three rows that are of one episode.
    pairs = inside[1:] & inside[:-1]
    return bool((steps[inside] > 0).all() and (steps[1:] == steps[:-1])[pairs].all())


def _backward(index: np.ndarray, episodes: np.ndarray) -> dict[int, str]:
    """Episodes whose numbers run backwards as the rows lie, and what follows."""
    order = np.argsort(episodes, kind="stable")
    whose = episodes[order]
    back = (np.diff(index[order]) < 0) & (np.diff(whose) == 0)
    return dict.fromkeys(
        np.unique(whose[1:][back]).tolist(),
        f"no {FRAME}, and {INDEX} that runs backwards: the order of its rows cannot be told; "
        f"write {FRAME}",
    )


def equal_runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of equal values; none where there are no values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return (edge for edge in pairwise(edges) if edge[0] < edge[1])


def wrong_frames(frames: np.ndarray, column: str) -> str:
    """What is wrong with the sorted `frame_index` of an episode, or with the column in its place.
    Those of a set that was thinned out are evenly apart.
    """
    if frames[0] == UNKNOWN:
        return f"a row has no {column}"
    steps = np.diff(frames)
    if (steps == 0).any():
        return f"{column} {int(frames[steps.argmin()])} is there twice"
    if len(steps) and (steps != steps[0]).any():
        # Behind the first step that is larger than the smallest.
        behind = int(frames[(steps > steps.min()).argmax()])
        return f"{column} has a gap behind {behind}"
    return ""


def counted_rows(
    listed: tuple[tuple[int, int], ...], table: pa.Table
) -> tuple[np.ndarray, set[int]] | None:
    """int64 `[rows]`: episode of each row of a file that does not say it, and the episodes that
    are in doubt; None where counting does not tell.

    listed: number and length of each
    """
    numbers = np.array([number for number, _ in listed], np.int64)
    if len(listed) == 1:
        # All rows of the file, as many as they are: the count is compared later.
        return np.repeat(numbers, table.num_rows), set()
    lengths = np.array([length for _, length in listed], np.int64)
    if lengths.sum() != table.num_rows:
        return None
    # In the order of their numbers, as the format writes them.
    whose = np.repeat(numbers, lengths)
    edges = np.cumsum([0, *lengths])
    # Numbers of the set's rows go up with those of its episodes.
    index = _numbers(table, INDEX)
    firsts = np.empty(0) if index is None else index[edges[:-1][lengths > 0]]
    if len(np.unique(firsts)) == len(firsts) and (np.diff(firsts) < 0).any():
        of_rows = _moved(index, lengths, numbers)
        return (whose, set(numbers.tolist())) if of_rows is None else (of_rows, set())
    begins = _begins(table)
    if begins is None or np.isin(edges, begins).all():
        return whose, set()
    found = np.diff(begins)
    if sorted(found) != sorted(lengths):
        # One wrong number begins an episode of its own: it costs the one it lies in.
        sure = np.isin(edges[:-1], begins) & np.isin(edges[1:], begins)
        return whose, set(numbers[~sure].tolist())
    if len(set(found)) < len(found):
        return whose, set(numbers.tolist())
    # Whole episodes in another order, each known by its length.
    order = [int(np.flatnonzero(lengths == length)[0]) for length in found]
    return np.repeat(numbers[order], found), set()


def _moved(index: np.ndarray | None, lengths: np.ndarray, numbers: np.ndarray) -> np.ndarray | None:
    """int64 `[rows]`: episode of each row where `index` counts all rows and whole episodes lie in
    another order; None where that is not so.
    """
    if index is None or not np.array_equal(np.sort(index), index.min() + np.arange(len(index))):
        return None
    whose = np.repeat(numbers, lengths)[index - index.min()]
    stretches = list(equal_runs(whose))
    whole = len(stretches) == len(set(whose.tolist()))
    return whose if whole and all((np.diff(index[a:b]) == 1).all() for a, b in stretches) else None


def _begins(table: pa.Table) -> np.ndarray | None:
    """Rows at which `frame_index`, or without it the time, begins again, and the end; None where
    that says nothing.
    """
    frames, times = _numbers(table, FRAME), times_in(table)
    if frames is not None:
        known = np.flatnonzero(frames != UNKNOWN)
        back = known[1:][np.diff(frames[known]) < 0]
        return np.array([0, *back, len(frames)])
    if times is None or not np.isfinite(times).all():
        return None
    fallen = np.flatnonzero(np.diff(times) < 0) + 1
    # A clock of the day goes on.
    return np.array([0, *fallen, len(times)]) if len(fallen) else None


def times_in(table: pa.Table) -> np.ndarray | None:
    """float64 `[rows]`, s: recorded times; None where no numbers are recorded."""
    if TIME not in table.column_names or not table.num_rows:
        return None
    try:
        found = parquet.matrix(_in_seconds(table[TIME]), TIME)
    except (pa.ArrowException, DataError):
        return None
    # Lists of none or of several say no time.
    return found[:, 0] if found.shape[1] == 1 else None


def _in_seconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times of a day, as some conversions write them, as seconds; others as they are."""
    if pa.types.is_duration(column.type):
        column = column.cast(pa.duration("us"))
    elif pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us"), safe=False)
    else:
        return column
    return pc.divide(column.cast(pa.int64()).cast(pa.float64()), 1e6)


def whole_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """int64 `[rows]`; `UNKNOWN` where a row has no whole number. Conversions write floats,
    texts and lists of one.
    """
    if pa.types.is_int64(column.type) and not column.null_count:
        return np.asarray(column.to_numpy())
    try:
        found = parquet.matrix(column, "")
    except (pa.ArrowException, DataError):
        return np.full(len(column), UNKNOWN)
    # Lists of none or of several say no number.
    if len(column) and found.shape[1] != 1:
        return np.full(len(column), UNKNOWN)
    values = found.ravel()
    # What is larger a float does not hold to the unit.
    good = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 1 << 53)
    return np.where(good, values, UNKNOWN).astype(np.int64)

"""Rows of one rate as steps of another."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gwp.data.robot.embodiment import Resampling
from gwp.data.robot.kinds import Meaning


def steps_of(rows: int, rows_per_step: float) -> int:
    """Control steps that lie within an episode of so many rows."""
    # Step k is at row k * rows_per_step, at the last row at most. 1e-6: a quotient that falls
    # just short of a whole number means that number.
    return int((rows - 1) / rows_per_step + 1e-6) + 1 if rows else 0


def row_span(first: int, steps: int, rows_per_step: float, rows: int) -> tuple[int, int]:
    """First row and end of what `at_steps` needs for `steps` steps from `first`, in an episode
    of `rows` rows.
    """
    if rows_per_step == 1:
        return first, min(rows, first + steps)
    begin = int(first * rows_per_step + 1e-6)
    # Two more: `linear` reads the row behind that of a step, `sum` up to where the step after
    # the last begins.
    return begin, min(rows, int((first + steps) * rows_per_step + 1e-6) + 2)


def usable_starts(
    state: np.ndarray, action: np.ndarray, rows_per_step: float, chunk: int
) -> np.ndarray:
    """bool `[steps]`: control steps from which a window of `chunk` actions reads numbers only.

    state: `[steps, ds]` at the control steps; action: `[rows, da]` as recorded, all of the
    episode
    """
    rows, steps = len(action), len(state)
    # A window is usable when as many rows are missing before its end as before its begin.
    before = np.concatenate([[0], np.cumsum(~np.isfinite(action).all(1))])
    ends = [row_span(k, min(chunk, steps - k), rows_per_step, rows) for k in range(steps)]
    begin, end = np.array(ends, np.int64).reshape(-1, 2).T
    # The state is read at the start alone, actions over the whole window.
    usable: np.ndarray = np.isfinite(state).all(1) & (before[end] == before[begin])
    return usable


def step_times(
    steps: Sequence[int], length: int, start_s: float, rate: float, stretch: float = 1.0
) -> list[float]:
    """Where the frames of control steps are in a file, seconds.

    length: steps of the episode; past its end the last frame stands still. start_s: of the
    episode in the file. rate: steps per second. stretch: seconds of the file per second of the
    episode, whose clock may run a little off that of the rows.
    """
    return [start_s + min(step, length - 1) / rate * stretch for step in steps]


def at_steps(
    values: np.ndarray,
    first: int,
    steps: int,
    rows_per_step: float,
    rules: Sequence[Resampling] | None = None,
    meaning: Meaning | None = None,
    begin: int = 0,
) -> np.ndarray:
    """Values float64 `[steps, d]` at control steps `first ..` of an episode, one rule per
    dimension (None: linear). values: `[rows, d]`, its rows from `begin` on.

    `linear` between the two rows, which rotations of `meaning` do on their shorter way; `hold`
    the row before; `sum` what the rows of a step add up to. Behind the last row it stands. NaN
    and Inf stay what is no number in the steps that read them, and in no other. A step is the
    same to the last bit, whichever part of the episode it is taken from.
    """
    # Counted in the episode: sums of a ratio from another start would round otherwise.
    at = np.arange(first, first + steps + 1) * rows_per_step
    # Such products must not fall just short of the row that they mean.
    # Up to the end, not the last row: that row ends there, and `sum` counts to its end.
    at = np.where(np.abs(at - np.round(at)) < 1e-6, np.round(at), at)
    at = np.clip(at, 0, begin + len(values))
    start = np.minimum(at[:-1], begin + len(values) - 1)
    row = start.astype(np.int64)
    share = (start - row)[:, None]
    low = row - begin
    high = np.minimum(low + 1, len(values) - 1)
    out: np.ndarray = values[low]
    # A step that falls onto a row is that row, whatever stands in the next one: Inf times zero
    # would be NaN.
    between = share[:, 0] > 0
    before, after, part = values[low[between]], values[high[between]], share[between]
    with np.errstate(invalid="ignore"):
        out[between] = before * (1 - part) + after * part
    if meaning is not None:
        turning = meaning.entries
        out[np.ix_(between, turning)] = meaning.between(before, after, part)[:, turning]
    if rules is None:
        return out
    hold = np.array([r == "hold" for r in rules])
    out[:, hold] = values[low][:, hold]
    summed = np.array([r == "sum" for r in rules])
    if summed.any():
        out[:, summed] = _sums(np.ascontiguousarray(values[:, summed]), at, begin)
    return out


def _sums(values: np.ndarray, edges: np.ndarray, begin: int) -> np.ndarray:
    """What rows `[rows, d]` from `begin` on add up to between edges `[steps + 1]`: `[steps, d]`."""
    rows = np.floor(edges)
    parts = edges - rows
    whole = rows.astype(np.int64) - begin
    out = np.zeros((len(edges) - 1, values.shape[1]))
    # Step by step: differences of running sums would depend on where those begin, and one NaN
    # would be in all that follow.
    for k, (first, end) in enumerate(pairwise(whole.tolist())):
        if end == first:
            row = values[min(first, len(values) - 1)]
            out[k] = row * (parts[k + 1] - parts[k]) if parts[k + 1] > parts[k] else 0.0
            continue
        out[k] = values[first] * (1 - parts[k])
        out[k] += values[first + 1 : end].sum(0)
        if parts[k + 1] > 0:
            out[k] += values[end] * parts[k + 1]
    return out

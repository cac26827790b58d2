"""Rows of one rate as steps of another."""

from collections.abc import Sequence

import numpy as np

from gwp.data.embodiment import Resampling


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
    start: float,
    steps: int,
    rows_per_step: float,
    rules: Sequence[Resampling] | None = None,
) -> np.ndarray:
    """Values float64 `[steps, d]` at rows start, start + rows_per_step, ... of `values` `[rows,
    d]`, one rule per dimension (None: linear).

    `linear` between the two rows, `hold` the row before, `sum` what the rows of a step add up
    to. Behind the last row it stands. NaN and Inf stay what is no number in the steps that read
    them, with `sum` in all later ones too.
    """
    at = start + np.arange(steps + 1) * rows_per_step
    # Sums of a ratio must not fall just short of the row that they mean.
    # Up to len(values), not len - 1: the last row ends there, and `sum` counts to its end.
    at = np.clip(np.where(np.abs(at - np.round(at)) < 1e-6, np.round(at), at), 0, len(values))
    begin = np.minimum(at[:-1], len(values) - 1)
    low = begin.astype(np.int64)
    high = np.minimum(low + 1, len(values) - 1)
    share = (begin - low)[:, None]
    out: np.ndarray = values[low]
    # A step that falls onto a row is that row, whatever stands in the next one: Inf times zero
    # would be NaN.
    between = share[:, 0] > 0
    with np.errstate(invalid="ignore"):
        out[between] = (
            values[low[between]] * (1 - share[between]) + values[high[between]] * share[between]
        )
    if rules is None:
        return out
    hold = np.array([r == "hold" for r in rules])
    out[:, hold] = values[low][:, hold]
    summed = np.array([r == "sum" for r in rules])
    if summed.any():
        # total[i]: what the rows before i add up to, so that a step is a difference of two.
        total = np.concatenate([np.zeros((1, int(summed.sum()))), np.cumsum(values[:, summed], 0)])
        edges = np.stack([np.interp(at, np.arange(len(total)), column) for column in total.T], 1)
        out[:, summed] = np.diff(edges, axis=0)
    return out

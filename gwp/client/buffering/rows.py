"""Which action belongs to which control step: rows of chunks on the grid of the control loop."""

import math
from dataclasses import dataclass

import numpy as np

from gwp.errors import GwpError


class Grid:
    """Control steps, counted, and held to the clock where the rate is known.

    A loop that is late by a whole step or more skips the steps that have passed; one that is
    early by more than a step stays where it is. Jitter below a step moves nothing.

    rate: control rate, Hz; None: a step passes whenever one is asked for, however long it takes
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._origin = 0.0
        self._at: int | None = None
        self.skipped = 0
        """Steps that passed without an action."""

    def reset(self) -> None:
        """Begin anew."""
        self._at = None

    def step(self, now: float, counted: int | None = None) -> int:
        """The control step that begins `now` (monotonic, seconds); the caller may count."""
        if self._at is None:
            self._at = 0 if counted is None else counted
            self._origin = now - (self._at / self._rate if self._rate else 0.0)
            return self._at
        last = self._at
        if counted is not None:
            if counted < last:
                raise GwpError(
                    f"step {counted} after step {last}; call reset() where steps begin anew"
                )
            self._at = counted
        elif self._rate is None:
            self._at = last + 1
        else:
            passed = self._passed(now)
            self._at = last + 1
            if passed - self._at >= 1:
                self._at = math.floor(passed)
            elif self._at - passed >= 1:
                self._at = last
        self.skipped += max(0, self._at - last - 1)
        return self._at

    def waited(self, now: float, counted: int | None = None) -> int:
        """The step when the caller has waited until `now` within one."""
        assert self._at is not None
        if self._rate is not None and counted is None:
            at = max(self._at, math.floor(self._passed(now)))
            self.skipped += at - self._at
            self._at = at
        return self._at

    def _passed(self, now: float) -> float:
        assert self._rate is not None
        # A rounding error before a whole step is that step.
        return (now - self._origin) * self._rate + 1e-6


@dataclass(frozen=True)
class Plan:
    """The rows that are executed: float32 `[n, d]`, absolute, the first at the step `anchor`.

    seen: moment of the observation that they were made for
    own:  step from which on rows are those of the chunk alone; those before go over from another
    """

    rows: np.ndarray
    anchor: int
    seen: float
    own: int = 0

    def left(self, step: int) -> int:
        """Rows from `step` on."""
        return max(0, len(self.rows) - (step - self.anchor))

    def at(self, step: int) -> np.ndarray:
        """The row of a step that it has."""
        row: np.ndarray = self.rows[step - self.anchor]
        return row

    def joined(
        self, before: "Plan | None", still: np.ndarray, step: int, rows: int, mixed: np.ndarray
    ) -> "Plan":
        """This plan, taking over at `step`: the first `rows` go gradually over from what was
        planned before, or from `still` where nothing was.

        still: float32 `[d]`, what is done where no row is
        mixed: bool `[d]`, the dimensions that may stand between two values
        """
        blended = self.rows.copy()
        for i in range(min(rows, self.left(step))):
            at = step + i
            old = before.at(at) if before is not None and before.left(at) else still
            share = (i + 1) / (rows + 1)
            row = blended[at - self.anchor]
            row[mixed] = ((1 - share) * old + share * row)[mixed]
        return Plan(blended, self.anchor, self.seen, max(self.own, step + rows))

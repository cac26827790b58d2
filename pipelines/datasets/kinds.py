"""Which numbers of a set look like rotations, and what a robot file would say of them. Nothing is
changed: the user decides.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from gwp.data.formats.finding import Finding
from gwp.data.kinds import TURNS

_JUMP = 0.75
"""Share of a turn from which on a change from row to row is a jump of it."""
_OVER = 1.01
"""How much of its range an angle may fill."""
_UNIT = 1e-3
"""How far from 1 the length of a quaternion may be."""
_MOVES = 1e-3
"""Range from which on an entry of a quaternion moves."""


class RotationGuess:
    """What the rows of a feature look like, gathered over the episodes of a set."""

    def __init__(self, of: str, names: Sequence[str]) -> None:
        self._of, self._names = of, names
        width = len(names)
        self._jump = np.zeros(width)
        self._low, self._high = np.full(width, np.inf), np.full(width, -np.inf)
        # Of four entries that begin at each.
        self._off_unit = np.zeros(max(0, width - 3))

    def add(self, rows: np.ndarray) -> None:
        """The finite rows `[n, d]` of an episode, one behind the other."""
        if not len(rows):
            return
        change = np.abs(np.diff(rows, axis=0)).max(0, initial=0)
        self._jump = np.maximum(self._jump, change)
        self._low, self._high = (
            np.minimum(self._low, rows.min(0)),
            np.maximum(self._high, rows.max(0)),
        )
        if len(self._off_unit):
            # `[n, d - 3]`: lengths of any four entries one behind the other.
            square = rows**2
            four = square[:, :-3] + square[:, 1:-2] + square[:, 2:-1] + square[:, 3:]
            self._off_unit = np.maximum(self._off_unit, np.abs(np.sqrt(four) - 1).max(0))

    def findings(self) -> Iterator[Finding]:
        """One per angle that jumps by a turn, and per four numbers of length 1."""
        i = 0
        while i < len(self._names):
            if self._is_quaternion(i):
                four = self._names[i : i + 4]
                entries = ", ".join(f"{name}: quaternion" for name in four)
                what = f"{four[0]} to {four[-1]} look as if they were a quaternion (length 1)"
                yield Finding(
                    self._of, what, "ignored", f"if so: `kinds: {{{entries}}}` on the robot"
                )
                i += 4
                continue
            if kind := self._turn(i):
                what = f"{self._names[i]} jumps by a whole turn: it looks like an angle that wraps"
                advice = f"if so: `kinds: {{{self._names[i]}: {kind}}}` on the robot"
                yield Finding(self._of, what, "ignored", advice)
            i += 1

    def _is_quaternion(self, first: int) -> bool:
        if first >= len(self._off_unit) or self._off_unit[first] > _UNIT:
            return False
        four = slice(first, first + 4)
        # Constants are no rotation that matters.
        return bool((self._high[four] - self._low[four] > _MOVES).sum() >= 2)

    def _turn(self, dim: int) -> str:
        """The kind of angle whose range a dimension keeps to and jumps in; nothing where none is."""
        for kind, (low, period) in TURNS.items():
            slack = (_OVER - 1) * period
            inside = self._low[dim] >= low - slack and self._high[dim] <= low + period + slack
            if inside and _JUMP * period <= self._jump[dim] <= _OVER * period:
                return kind
        return ""

"""Which numbers of a set look like rotations, and what a robot file would say of them. Nothing is
changed: the user decides.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from gwp.data.formats.finding import Finding
from gwp.data.robot.kinds import PAIRS, TURNS
from gwp.data.robot.rotations import third_axis

_JUMP = 0.75
"""Share of a turn from which on a change from row to row is a jump of it."""
_OVER = 1.01
"""How much of its range an angle may fill."""
_REACH = 0.05
"""Share of a turn by which a dimension with the name of an angle may stay short of its ends."""
_UNIT = 1e-3
"""How far from 1 the length of a quaternion or an axis may be, and from a right angle two axes."""
_MOVES = 1e-3
"""Range from which on an entry of a rotation moves."""
_ANGLES = frozenset(
    [
        "yaw",
        "roll",
        "pitch",
        "heading",
        "theta",
        "phi",
        "psi",
        "azimuth",
        "bearing",
        "angle",
        "euler",
        "rot",
        "rotation",
        "orientation",
        "rx",
        "ry",
        "rz",
    ]
)
"""Words of dimensions that are angles."""


def words_of(name: str) -> set[str]:
    """The words of a name: left, wrist, yaw of `kLeftWristYaw` and of `left_wrist.yaw`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


class RotationGuess:
    """What the rows of a feature look like, gathered over the episodes of a set.

    low, high: float64 `[d]`, how far each goes
    """

    def __init__(self, of: str, names: Sequence[str]) -> None:
        self._of, self._names = of, names
        width = len(names)
        self._jump = np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)
        # Of four entries that begin at each, and of six in either order.
        self._off_unit = np.zeros(max(0, width - 3))
        self._off_axes = {kind: np.zeros(max(0, width - 5)) for kind in PAIRS}
        self._off_third = np.zeros(max(0, width - 8))

    def add(self, rows: np.ndarray) -> None:
        """The finite rows `[n, d]` of an episode, one behind the other."""
        if not len(rows):
            return
        change = np.abs(np.diff(rows, axis=0)).max(0, initial=0)
        self._jump = np.maximum(self._jump, change)
        self.low, self.high = (
            np.minimum(self.low, rows.min(0)),
            np.maximum(self.high, rows.max(0)),
        )
        if len(self._off_unit):
            # `[n, d - 3]`: lengths of any four entries one behind the other.
            square = rows**2
            four = square[:, :-3] + square[:, 1:-2] + square[:, 2:-1] + square[:, 3:]
            self._off_unit = np.maximum(self._off_unit, np.abs(np.sqrt(four) - 1).max(0))
        for kind, order in PAIRS.items():
            off = self._off_axes[kind]
            for i in range(len(off)):
                # What was no pair of axes once is none.
                if off[i] <= _UNIT:
                    off[i] = max(off[i], _off_axes(rows[:, i : i + 6][:, order]))
        for i in range(len(self._off_third)):
            if self._off_third[i] <= _UNIT:
                away = rows[:, i + 6 : i + 9] - third_axis(rows[:, i : i + 6])
                self._off_third[i] = max(self._off_third[i], np.abs(away).max())

    def findings(self) -> Iterator[Finding]:
        """One per rotation of nine, six or four entries, and per angle that wraps."""
        i = 0
        while i < len(self._names):
            if self._is_matrix(i):
                yield self._entries(i, 9, "matrix", "a rotation matrix")
                i += 9
                continue
            if kind := self._pair(i):
                yield self._entries(i, 6, kind, "two axes at a right angle")
                i += 6
                continue
            if self._is_quaternion(i):
                yield self._entries(i, 4, "quaternion", "a quaternion (length 1)")
                i += 4
                continue
            if found := self._turn(i):
                kind, why = found
                what = f"{self._names[i]} {why}: it looks like an angle that wraps"
                advice = f"if so: `kinds: {{{self._names[i]}: {kind}}}` on the robot"
                yield Finding(self._of, what, "ignored", advice)
            i += 1

    def _entries(self, first: int, count: int, kind: str, looks: str) -> Finding:
        names = self._names[first : first + count]
        entries = ", ".join(f"{name}: {kind}" for name in names)
        what = f"{names[0]} to {names[-1]} look as if they were {looks}"
        return Finding(self._of, what, "ignored", f"if so: `kinds: {{{entries}}}` on the robot")

    def _moves(self, first: int, count: int) -> bool:
        # Constants are no rotation that matters.
        part = slice(first, first + count)
        return bool((self.high[part] - self.low[part] > _MOVES).sum() >= 2)

    def _is_quaternion(self, first: int) -> bool:
        if first >= len(self._off_unit) or self._off_unit[first] > _UNIT:
            return False
        return self._moves(first, 4)

    def _is_matrix(self, first: int) -> bool:
        if first >= len(self._off_third) or self._off_third[first] > _UNIT:
            return False
        return self._off_axes["rot6d"][first] <= _UNIT and self._moves(first, 9)

    def _pair(self, first: int) -> str:
        """The kind of six entries; nothing where they are no pair of axes."""
        for kind, off in self._off_axes.items():
            if first < len(off) and off[first] <= _UNIT and self._moves(first, 6):
                return kind
        return ""

    def _turn(self, dim: int) -> tuple[str, str] | None:
        """The kind of angle whose range a dimension keeps to, and why it looks like one; None
        where it does not.
        """
        low, high, jump = self.low[dim], self.high[dim], self._jump[dim]
        called = bool(words_of(self._names[dim]) & _ANGLES)
        for kind, (begin, period) in TURNS.items():
            slack, reach = (_OVER - 1) * period, _REACH * period
            if low < begin - slack or high > begin + period + slack:
                continue
            if _JUMP * period <= jump <= _OVER * period:
                return kind, "jumps by a whole turn"
            if called and low <= begin + reach and high >= begin + period - reach:
                return kind, f"goes from {low:.3g} to {high:.3g}"
        return None


def _off_axes(six: np.ndarray) -> float:
    """How far rows `[n, 6]` are from two axes of length 1 at a right angle."""
    first, second = six[:, :3], six[:, 3:]
    lengths = np.linalg.norm(six.reshape(-1, 3), axis=1)
    return float(max(np.abs(lengths - 1).max(), np.abs((first * second).sum(1)).max()))

"""Rotations that are slowed the short way round, and as one."""

from dataclasses import dataclass

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.kinds import Meaning
from gwp.data.robot.rotations import near

_WHOLE = 0.99
"""Share of a turn from which on limits are taken for those of all angles."""
_QUATERNION = 4
"""Entries of a quaternion; two axes have six."""
_HALVINGS = 24
"""To the last digit of float32."""


@dataclass(frozen=True)
class Turn:
    """An angle that may go all the way round: the number of its dimension."""

    dim: int
    meaning: Meaning
    lower: float
    upper: float

    def hold(
        self, held: np.ndarray, wanted: np.ndarray, previous: np.ndarray, velocity: np.ndarray
    ) -> None:
        """Set the angle of a row `[d]` no further than `velocity` from that of the row before,
        the short way round.
        """
        before, limit = previous[self.dim], velocity[self.dim]
        if np.isnan(before):
            return
        way = self.meaning.shortest(np.nan_to_num(wanted - previous))[self.dim]
        if abs(way) <= limit:
            held[self.dim] = wanted[self.dim]
            return
        step = previous.copy()
        step[self.dim] += np.sign(way) * limit
        held[self.dim] = np.clip(self.meaning.within(step)[self.dim], self.lower, self.upper)


@dataclass(frozen=True)
class Whole:
    """A rotation of several entries, a quaternion or two axes, which is slowed as one: held each
    by itself, its entries would name another rotation, or none.
    """

    dims: np.ndarray
    meaning: Meaning
    lower: np.ndarray
    upper: np.ndarray

    def hold(
        self, held: np.ndarray, wanted: np.ndarray, previous: np.ndarray, velocity: np.ndarray
    ) -> None:
        """Set the rotation of a row `[d]` on the shorter way from that of the row before, as far
        as no entry goes further than `velocity`.
        """
        if np.isnan(previous[self.dims]).any():
            return
        before = self._alike(previous, wanted)
        share = self._largest(before, wanted, velocity[self.dims])
        part = wanted if share == 1 else self._part(before, wanted, share)
        held[self.dims] = np.clip(part, self.lower, self.upper)[self.dims]

    def _alike(self, previous: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The row before; a quaternion in the sign of the wanted one: a state may have either."""
        before = np.nan_to_num(previous)
        if len(self.dims) == _QUATERNION:
            before[self.dims] = near(before[self.dims], wanted[self.dims])
        return before

    def _part(self, before: np.ndarray, wanted: np.ndarray, share: float) -> np.ndarray:
        return self.meaning.between(before[None], wanted[None], np.array([[share]]))[0]

    def _largest(self, before: np.ndarray, wanted: np.ndarray, velocity: np.ndarray) -> float:
        """Share of the way, 0 to 1."""
        if (np.abs(wanted - before)[self.dims] <= velocity).all():
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            way = np.abs(self._part(before, wanted, middle) - before)[self.dims]
            low, high = (middle, high) if (way <= velocity).all() else (low, middle)
        return low


def rotations_of(
    embodiment: Embodiment, lower: np.ndarray, upper: np.ndarray
) -> list[Turn | Whole]:
    """The rotations that may go the short way: of angles only those whose limits leave them a
    whole turn.
    """
    meaning = embodiment.action_meaning
    if meaning is None:
        return []
    turns = zip(meaning.turns.tolist(), meaning.period.tolist(), strict=True)
    angles = [
        Turn(i, meaning, float(lower[i]), float(upper[i]))
        for i, period in turns
        if upper[i] - lower[i] >= _WHOLE * period
    ]
    wholes = [Whole(dims, meaning, lower, upper) for dims in meaning.wholes]
    return [*angles, *wholes]

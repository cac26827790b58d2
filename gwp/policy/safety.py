"""The safety envelope: the last thing that happens to a chunk before it leaves for a robot."""

from dataclasses import dataclass

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.kinds import Meaning
from gwp.data.robot.rotations import near
from gwp.errors import PolicyError

_WHOLE = 0.99
"""Share of a turn from which on limits are taken for those of all angles."""
_QUATERNION = 4
"""Entries of a quaternion; two axes have six."""
_HALVINGS = 24
"""To the last digit of float32."""


def apply_limits(
    actions: np.ndarray, state: np.ndarray, embodiment: Embodiment, committed: int = 0
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Hold a chunk inside the embodiment's limits.

    actions:   `[p, d]`, robot units, absolute
    state:     `[ds]`, robot units, where the robot is now
    committed: leading rows that the robot already executes (real-time chunking); they are left
    as they are

    Returns float32 `[p, d]` and flags: `clipped:<action>` where the position limit took hold,
    `slowed:<action>` where the velocity limit did. Every free row lies within `lower..upper`
    and within `velocity` of the row before it. The first row is held against the state where
    `delta_mask` says that the state entry is the same quantity, otherwise against nothing.

    Raises PolicyError when a value is not finite: there is no safe replacement for a chunk that
    was never computed.
    """
    # A copy: rows are changed below.
    actions = np.array(actions, np.float32)
    if not np.isfinite(actions).all():
        names = [
            embodiment.action_names[i] for i in np.flatnonzero(~np.isfinite(actions).all(axis=0))
        ]
        raise PolicyError(
            f"the policy gave a non-finite action for {', '.join(names)}; nothing was sent, "
            "check its weights"
        )
    limits = embodiment.limits
    if limits is None or committed >= len(actions):
        return actions, ()
    lower = np.asarray(limits.lower, np.float32)
    upper = np.asarray(limits.upper, np.float32)
    wanted = actions[committed:].copy()
    free = np.clip(wanted, lower, upper)
    clipped = (free != wanted).any(0)

    # One row after the other: each is held against the row before as it was held itself.
    slowed = np.zeros(len(lower), bool)
    rotations = _rotations(embodiment, lower, upper)
    if limits.velocity is not None:
        velocity = np.asarray(limits.velocity, np.float32)
        # Per control step, as rows are.
        previous = _before(actions, state, embodiment, committed)
        for i in range(len(free)):
            # Both ends lie within lower..upper, so the slower step does too.
            held = np.where(
                np.isnan(previous),
                free[i],
                np.clip(free[i], previous - velocity, previous + velocity),
            )
            for rotation in rotations:
                rotation.hold(held, free[i], previous, velocity)
            slowed |= held != free[i]
            free[i] = previous = held
    actions[committed:] = free
    flags = [f"clipped:{embodiment.action_names[i]}" for i in np.flatnonzero(clipped)]
    flags += [f"slowed:{embodiment.action_names[i]}" for i in np.flatnonzero(slowed)]
    return actions, tuple(flags)


@dataclass(frozen=True)
class _Turn:
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
class _Whole:
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


def _rotations(
    embodiment: Embodiment, lower: np.ndarray, upper: np.ndarray
) -> list[_Turn | _Whole]:
    """The rotations that may go the short way: of angles only those whose limits leave them a
    whole turn.
    """
    meaning = embodiment.action_meaning
    if meaning is None:
        return []
    turns = zip(meaning.turns.tolist(), meaning.period.tolist(), strict=True)
    angles = [
        _Turn(i, meaning, float(lower[i]), float(upper[i]))
        for i, period in turns
        if upper[i] - lower[i] >= _WHOLE * period
    ]
    wholes = [_Whole(dims, meaning, lower, upper) for dims in meaning.wholes]
    return [*angles, *wholes]


def _before(
    actions: np.ndarray, state: np.ndarray, embodiment: Embodiment, committed: int
) -> np.ndarray:
    """What each action dimension was before the first free row, `[d]`; NaN where unknown."""
    assert embodiment.limits is not None
    if committed:
        before = actions[committed - 1]
    else:
        before = np.full(actions.shape[1], np.nan, np.float32)
        same = np.asarray(embodiment.delta)
        before[same] = np.asarray(state, np.float32)[: len(same)][same]
    # A sensor may read slightly past a limit; the limit still binds.
    return np.clip(
        before,
        np.asarray(embodiment.limits.lower, np.float32),
        np.asarray(embodiment.limits.upper, np.float32),
    )

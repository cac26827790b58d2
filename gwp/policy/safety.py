"""The safety envelope: the last thing that happens to a chunk before it leaves for a robot."""

from dataclasses import dataclass

import numpy as np

from gwp.data.embodiment import Embodiment
from gwp.data.kinds import Meaning
from gwp.errors import PolicyError

_WHOLE = 0.99
"""Share of a turn from which on limits are taken for those of all angles."""


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
    turns = _turns(embodiment, lower, upper)
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
            for turn in turns:
                held[turn.dim] = turn.held(free[i], previous, velocity)
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

    def held(self, wanted: np.ndarray, previous: np.ndarray, velocity: np.ndarray) -> float:
        """The angle of a row `[d]`, no further than `velocity` from that of the row before, the
        short way round.
        """
        before, limit = previous[self.dim], velocity[self.dim]
        if np.isnan(before):
            return float(wanted[self.dim])
        way = self.meaning.shortest(np.nan_to_num(wanted - previous))[self.dim]
        if abs(way) <= limit:
            return float(wanted[self.dim])
        step = previous.copy()
        step[self.dim] += np.sign(way) * limit
        return float(np.clip(self.meaning.within(step)[self.dim], self.lower, self.upper))


def _turns(embodiment: Embodiment, lower: np.ndarray, upper: np.ndarray) -> list[_Turn]:
    """The angles whose limits leave them a whole turn: only those may go the short way."""
    meaning = embodiment.action_meaning
    if meaning is None:
        return []
    whole = zip(meaning.turns.tolist(), meaning.period.tolist(), strict=True)
    return [
        _Turn(i, meaning, float(lower[i]), float(upper[i]))
        for i, period in whole
        if upper[i] - lower[i] >= _WHOLE * period
    ]


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

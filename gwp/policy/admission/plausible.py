"""Whether a state can be one of the robot: near to where training saw it, and in its units."""

from math import degrees, pi

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.policy.admission.derived import Seen
from gwp.protocol.handshake import unit_name

_LARGEST = {"rad": 2 * pi, "deg": 720.0, "m": 10.0, "mm": 10_000.0}
"""Unit -> size that nothing in it has unless training saw the like."""
_NEAR = 1.0
"""Widths of the range up to which a number counts as the like of what training saw."""
_MIXED = ((degrees(1), "degrees", "radians"), (1000.0, "millimetres", "metres"))
"""What a number is multiplied with by whoever sends the one unit in place of the other."""


def units_of_state(embodiment: Embodiment) -> tuple[str, ...]:
    """Unit of each state dimension, of `state_units` or of what `kinds` says; "" where neither
    states it.
    """
    if embodiment.state_units:
        return tuple(unit_name(unit) for unit in embodiment.state_units)
    kinds = [embodiment.kinds.get(name) for name in embodiment.state_names]
    words = [str(kind).split("_")[0] if isinstance(kind, str) else "" for kind in kinds]
    return tuple({"radians": "rad", "degrees": "deg"}.get(word, "") for word in words)


def strangers(
    state: np.ndarray, embodiment: Embodiment, seen: Seen, spans: float
) -> dict[str, str]:
    """Name of a state dimension -> why it can be none of this robot; empty when all can.

    state: float32 `[d]`. spans: how many widths of the range of training a number may lie outside
    of it.
    """
    meaning = embodiment.state_meaning
    rotating = np.zeros(len(state), bool)
    found: dict[str, str] = {}
    if meaning is not None:
        rotating[meaning.entries] = True
        # Of an angle or a quaternion its own form tells more than where it was.
        if stray := meaning.stray(state[None].astype(np.float64)):
            entry, what = stray
            name = embodiment.state_names[entry]
            found[name] = f"{what} {embodiment.kinds[name]}"
    low, high = np.asarray(seen.lower), np.asarray(seen.upper)
    width = high - low
    beyond = np.maximum(low - state, state - high)
    largest = np.array([_LARGEST.get(unit, np.inf) for unit in units_of_state(embodiment)])
    far = beyond > spans * width
    far |= (beyond > _NEAR * width) & (np.abs(state) > largest)
    for dim in np.flatnonzero(far & np.asarray(seen.moves) & ~rotating):
        name = embodiment.state_names[dim]
        found[name] = (
            f"is {state[dim]:.4g}, training saw {low[dim]:.4g} to {high[dim]:.4g}"
            f"{_other_unit(float(state[dim]), low[dim], high[dim])}"
        )
    return found


def _other_unit(value: float, low: float, high: float) -> str:
    """What unit the number may be in, as a part of a sentence; nothing where none fits."""
    for factor, theirs, ours in _MIXED:
        for scaled, one, other in ((value / factor, theirs, ours), (value * factor, ours, theirs)):
            width = high - low
            if low - width <= scaled <= high + width:
                return f" (as {one} it would be {scaled:.4g} {other}: send {other})"
    return ""

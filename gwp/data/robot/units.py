"""Angles whose numbers are plainly of the other unit than `kinds` says. Nothing is changed."""

from collections.abc import Iterator, Sequence
from math import degrees, pi

import numpy as np

from gwp.data.robot.embodiment import Embodiment

_TURN = 2 * pi
"""Radians of a whole turn: what moves and never leaves that is hardly in degrees."""
_MOVES = 1.0
"""Range from which on a dimension moves: 57 degrees if it is in radians, one if it is not."""
_SLACK = 1.01
"""Recordings leave the range of an angle by a little."""


def ranges_of(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest finite number of each dimension of rows `[n, d]`, `[d]` each; NaN where
    there is none.
    """
    every = np.concatenate(rows)
    finite = np.isfinite(every)
    low = np.where(finite, every, np.inf).min(0, initial=np.inf)
    high = np.where(finite, every, -np.inf).max(0, initial=-np.inf)
    none = low > high
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def like_radians(low: float, high: float) -> bool:
    """Whether a dimension of this range moves and stays within a turn in radians."""
    return high - low > _MOVES and not beyond_radians(low, high)


def beyond_radians(low: float, high: float) -> bool:
    """Whether a dimension of this range leaves a turn in radians, to either side."""
    return low < -_SLACK * _TURN or high > _SLACK * _TURN


def unit_doubts(
    robot: Embodiment, states: Sequence[np.ndarray], actions: Sequence[np.ndarray]
) -> Iterator[str]:
    """What is to be said of a robot's angles. states, actions: rows `[n, d]` of some episodes,
    robot units.
    """
    for of, names, meaning, rows in (
        ("state", robot.state_names, robot.state_meaning, states),
        ("action", robot.action_names, robot.action_meaning, actions),
    ):
        if meaning is None or not rows:
            continue
        low, high = ranges_of(rows)
        for dim in meaning.turns.tolist():
            name = names[dim]
            kind = robot.kinds[name]
            span = f"{low[dim]:.4g} to {high[dim]:.4g}"
            if "degrees" in str(kind) and like_radians(low[dim], high[dim]):
                yield (
                    f"{of} {name} goes from {span}, and `kinds` says {kind}: if that is in "
                    f"radians, write {str(kind).replace('degrees', 'radians')}"
                )
            if "radians" in str(kind) and beyond_radians(low[dim], high[dim]):
                yield (
                    f"{of} {name} goes from {span}, and `kinds` says {kind}: a turn ends at "
                    f"{_TURN:.4g}; if that is in degrees, write "
                    f"{str(kind).replace('radians', 'degrees')}, and no kind where it counts turns"
                )


def other_unit(name: str, low: float, high: float) -> str:
    """What is strange of a dimension whose range is not that of the unit that its name says
    (`yaw_deg`, `joint_1_rad`); nothing where it is not.
    """
    words = set(_words(name))
    span = f"goes from {low:.4g} to {high:.4g}"
    if words & {"deg", "degree", "degrees"} and like_radians(low, high):
        return f"{span}, within a turn in radians, and is called degrees"
    if words & {"rad", "radian", "radians"} and beyond_radians(low, high):
        return f"{span}, beyond a turn in radians ({_TURN:.4g}), and is called that"
    return ""


def _words(name: str) -> list[str]:
    return "".join(c if c.isalpha() else " " for c in name).lower().split()


def apart_by_unit(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges of one quantity are as far apart as radians and degrees."""
    spans = sorted(high - low for low, high in (one, other))
    if spans[0] <= 0 or not np.isfinite(spans).all():
        return False
    # A command goes further than what follows it, but hardly by a third.
    ratio = spans[1] / spans[0] / degrees(1)
    ends = [abs(end) for end in (*one, *other)]
    return bool(2 / 3 < ratio < 3 / 2 and max(ends) > _SLACK * _TURN)

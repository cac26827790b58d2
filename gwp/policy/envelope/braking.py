"""One step of a motion whose acceleration is limited, so that it can still stop where it must."""

import numpy as np

_SMALL, _LARGE = 1e-9, 1e30
"""Accelerations and distances outside of which nothing changes any more (robot units)."""


def braked(
    wanted: np.ndarray,
    before: np.ndarray,
    speed: np.ndarray,
    step: np.ndarray,
    acceleration: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """The next row, float32 `[d]`, as near to the wanted one as its acceleration allows.

    wanted, before: rows within `ends` (lower, upper). speed: what `before` differs by from the
    row before it. step: largest change from `before`. acceleration: largest change of the speed;
    infinite: none. All `[d]`, robot units; NaN in `before` or `speed`: not known, and nothing is
    held against it.

    It never leaves `ends`, nor goes further than `step`. A row that was made so can always be
    followed by another: who goes so fast that he could not stop before an end is slowed in time.
    """
    p, v = before.astype(np.float64), speed.astype(np.float64)
    a = np.clip(acceleration.astype(np.float64), _SMALL, _LARGE)
    room_up, room_down = ends[1] - p, p - ends[0]
    most_up, most_down = np.minimum(step, room_up), np.minimum(step, room_down)
    high = np.minimum(most_up, _stoppable(room_up, a))
    low = -np.minimum(most_down, _stoppable(room_down, a))
    # Comparisons with NaN are false and fmin leaves it out: what is not known binds nothing.
    high, low = np.fmin(high, v + a), np.fmax(low, v - a)
    # Too fast already, by what is committed: the brakes, as far as they go.
    brake = np.where(v > 0, v - a, v + a)
    change = np.where(low <= high, np.clip(wanted - p, low, high), brake)
    change = np.clip(change, -most_down, most_up)
    row = np.where(np.isnan(p), wanted, p + change).astype(np.float32)
    # What need not change stays as it is, to the last bit; so does what has no such limit: an
    # angle goes from one end of its turn to the other, which is no step at all.
    same = (change == wanted - p) | np.isinf(acceleration)
    return np.where(same, wanted, np.clip(row, *ends))


def _stoppable(room: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The largest step after which the motion, slower by `a` with each further step, ends within
    `room`; `[d]` each.

    With n whole steps of braking behind a step u, the way is u (n + 1) - a n (n + 1) / 2.
    """
    room = np.clip(room, 0, _LARGE)
    n = np.floor((np.sqrt(1 + 8 * room / a) - 1) / 2)
    return np.asarray((room + a * n * (n + 1) / 2) / (n + 1))

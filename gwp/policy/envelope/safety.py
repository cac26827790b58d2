"""The safety envelope: the last thing that happens to a chunk before it leaves for a robot."""

from dataclasses import dataclass, field

import numpy as np

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.errors import PolicyError
from gwp.policy.envelope.braking import braked
from gwp.policy.envelope.turning import Turn, Whole, rotations_of


@dataclass(frozen=True)
class Envelope:
    """Limits of one robot.

    derived: they come of the training data and not from whoever knows the robot. They catch what
    no trained policy does, and never make a robot move: where it is counts as inside, and a
    measured state is nothing that the first action is held against.
    """

    limits: Limits
    derived: bool = False


def apply_limits(
    actions: np.ndarray,
    state: np.ndarray,
    embodiment: Embodiment,
    committed: int = 0,
    executed: np.ndarray | None = None,
    envelope: Envelope | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Hold a chunk inside the limits of a robot.

    actions:   `[p, d]`, robot units, absolute
    state:     `[ds]`, robot units, where the robot is now
    committed: leading rows that the robot already executes (real-time chunking); they are left
    as they are
    executed:  `[d]`, robot units, the action that the robot executed last; None: not known
    envelope:  None: the embodiment's own limits, if it has any

    Returns float32 `[p, d]` and flags: `clipped:<action>` where the position limit took hold,
    `slowed:` where velocity did, `held:` where the distance from the last executed action did,
    `eased:` where acceleration did. Every free row lies within `lower..upper` and within
    `velocity` of the row before it, and changes that by no more than `acceleration` wherever
    position and velocity leave room for it. The first row is held against the last committed or
    executed one; without them against the state where `delta_mask` says that the state entry is
    the same quantity, otherwise against nothing.

    Raises PolicyError when a value is not finite, for there is no safe replacement for a chunk
    that was never computed, and when the chunk leaves limits that say `on_excess: refuse`.
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
    if envelope is None and embodiment.limits is not None:
        envelope = Envelope(embodiment.limits)
    if envelope is None or committed >= len(actions):
        return actions, ()
    start = _start(actions, state, embodiment, envelope, committed, executed)
    wanted = actions[committed:]
    free = np.clip(wanted, start.lower, start.upper)
    changed = {"clipped": (free != wanted).any(0)}
    changed |= _follow(free, start, envelope.limits)
    flags = tuple(
        f"{what}:{embodiment.action_names[i]}"
        for what, dims in changed.items()
        for i in np.flatnonzero(dims)
    )
    if flags and envelope.limits.on_excess == "refuse":
        raise PolicyError(
            f"the chunk leaves the limits of {embodiment.name} ({', '.join(flags)}) and they say "
            "`on_excess: refuse`; nothing was sent"
        )
    actions[committed:] = free
    return actions, flags


def hold_from(actions: np.ndarray, embodiment: Embodiment, committed: int) -> np.ndarray:
    """A chunk `[p, d]` that stands still after its committed rows: targets stay where the last of
    them is, displacements (`resample: sum`) are 0.
    """
    out = np.array(actions, np.float32)
    summed = np.array([rule == "sum" for rule in embodiment.resampling])
    out[committed:] = np.where(summed, 0.0, out[committed - 1])
    return out


@dataclass
class _Start:
    """What the first free row is held against, `[d]` each; NaN where nothing is known.

    before: the row before. speed: how it differs from the one before it. jumps: whether the row
    before was or will be executed, which the limit of jumps asks for
    """

    lower: np.ndarray
    upper: np.ndarray
    before: np.ndarray
    speed: np.ndarray
    jumps: bool
    rotations: list[Turn | Whole] = field(default_factory=list)


def _start(
    actions: np.ndarray,
    state: np.ndarray,
    embodiment: Embodiment,
    envelope: Envelope,
    committed: int,
    executed: np.ndarray | None,
) -> _Start:
    limits = envelope.limits
    lower, upper = np.array(limits.lower, np.float32), np.array(limits.upper, np.float32)
    same = np.asarray(embodiment.delta)
    measured = np.full(actions.shape[1], np.nan, np.float32)
    measured[same] = np.asarray(state, np.float32)[: len(same)][same]
    done = [] if executed is None else [np.asarray(executed, np.float32)]
    rows = [*done, *actions[:committed]][-2:]
    before = rows[-1] if rows else measured
    if envelope.derived:
        for place in (measured, *rows):
            lower, upper = np.fmin(lower, place), np.fmax(upper, place)
        before = rows[-1] if rows else np.full_like(measured, np.nan)
    speed = rows[1] - rows[0] if len(rows) == 2 else np.full_like(before, np.nan)
    # A sensor may read slightly past a limit; the limit still binds.
    before = np.clip(before, lower, upper)
    turning = rotations_of(embodiment, lower, upper)
    return _Start(lower, upper, before, speed, bool(rows), turning)


def _follow(free: np.ndarray, start: _Start, limits: Limits) -> dict[str, np.ndarray]:
    """Change rows `[n, d]`, which lie within the positions, until each may follow the one before.

    Returns what took hold -> bool `[d]`.
    """
    width = free.shape[1]
    took = {what: np.zeros(width, bool) for what in ("slowed", "held", "eased")}
    if limits.velocity is None and limits.acceleration is None and limits.jump is None:
        return took
    velocity, jump = _row(limits.velocity, width), _row(limits.jump, width)
    # Where the robot has still to catch up with a chunk that began too far away.
    behind = np.full(width, start.jumps and limits.jump is not None)
    acceleration = None
    if limits.acceleration is not None:
        acceleration = _row(limits.acceleration, width)
        # An angle has no one speed between two turns, nor an entry of a quaternion.
        for rotation in start.rotations:
            acceleration[rotation.dims if isinstance(rotation, Whole) else rotation.dim] = np.inf
    before, speed = start.before, start.speed
    if _follows(free, start, velocity, np.where(behind, jump, np.inf), acceleration):
        return took
    # One row after the other: each is held against the row before as it was held itself.
    for i, wanted in enumerate(free.copy()):
        # Both ends lie within lower..upper, so the slower step does too.
        row = slower = _stepped(wanted, before, velocity, start.rotations)
        took["slowed"] |= slower != wanted
        step = velocity
        if behind.any():
            step = np.where(behind, np.minimum(velocity, jump), velocity)
            row = _stepped(wanted, before, step, start.rotations)
            late = _joined(row != slower, start.rotations)
            took["held"] |= late
            behind &= late
        if acceleration is not None:
            eased = braked(row, before, speed, step, acceleration, (start.lower, start.upper))
            took["eased"] |= eased != row
            row = eased
        speed = row - before
        free[i] = before = row
    return took


def _follows(
    free: np.ndarray,
    start: _Start,
    velocity: np.ndarray,
    jump: np.ndarray,
    acceleration: np.ndarray | None,
) -> bool:
    """Whether rows `[n, d]` keep all limits as they are, as those of a trained policy do: told of
    all of them at once, where changing them takes one after the other.
    """
    before = np.concatenate([start.before[None], free[:-1]])
    step = np.tile(velocity, (len(free), 1))
    step[0] = np.minimum(step[0], jump)
    # The same sums as for one row, so that rounding decides alike.
    within = np.clip(free, before - step, before + step)
    if ((within != free) & ~np.isnan(before)).any():
        return False
    if acceleration is None:
        return True
    speed = np.concatenate([start.speed[None], (free - before)[:-1]])
    eased = braked(free, before, speed, step, acceleration, (start.lower, start.upper))
    return bool((eased == free).all())


def _row(values: tuple[float, ...] | None, width: int) -> np.ndarray:
    return np.full(width, np.inf, np.float32) if values is None else np.array(values, np.float32)


def _stepped(
    wanted: np.ndarray, before: np.ndarray, step: np.ndarray, rotations: list[Turn | Whole]
) -> np.ndarray:
    """The row that is wanted, no further than `step` from the one before, `[d]` each."""
    held: np.ndarray = np.where(
        np.isnan(before), wanted, np.clip(wanted, before - step, before + step)
    )
    for rotation in rotations:
        rotation.hold(held, wanted, before, step)
    return held


def _joined(dims: np.ndarray, rotations: list[Turn | Whole]) -> np.ndarray:
    """bool `[d]`, with all entries of a rotation of which one is."""
    out = dims.copy()
    for rotation in rotations:
        if isinstance(rotation, Whole):
            out[rotation.dims] = out[rotation.dims].any()
    return out

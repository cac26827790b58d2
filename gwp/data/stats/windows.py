"""The windows of one episode, added up: what training learns from it, and nothing else."""

import hashlib
from collections.abc import Sequence

import numpy as np

from gwp.data.rates import at_steps, steps_of, usable_starts
from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.kinds import Reference, grippers_of
from gwp.data.stats.moments import Moments
from gwp.data.stats.references import same_angles
from gwp.data.stats.still import Motion
from gwp.errors import DataError

PIECE = 1 << 20
"""Numbers of the windows that are in memory at a time."""
_BEYOND = 0.25
"""Share of its way by which a recorded gripper may lie beyond its ends."""


def delta_base(state: np.ndarray, delta: Sequence[bool]) -> np.ndarray:
    """What is subtracted from actions: float64 `[..., 1, da]`, the state `[..., ds]` where the
    mask is True, else 0.
    """
    mask = np.asarray(delta, bool)
    # Action i is relative to state i: by the mask both are the same quantity.
    base = np.zeros((*np.shape(state)[:-1], 1, len(mask)))
    base[..., 0, mask] = np.asarray(state, np.float64)[..., np.flatnonzero(mask)]
    return base


class Rotations:
    """Rotations of a robot as a model is shown them: quaternions in one sign, angles in one turn
    and through a chunk without a jump.

    references: of state and action
    """

    def __init__(self, embodiment: Embodiment, references: tuple[Reference, Reference]) -> None:
        self._delta = embodiment.delta
        self._of_state, self._of_action = embodiment.state_meaning, embodiment.action_meaning
        self._references = references
        self._known = np.asarray(self._delta, bool)
        # An absolute angle, too, goes on from where the robot is, if the state tells it.
        same = {i: state for i, state, _ in same_angles(embodiment)}
        self._actions = list(references[1].follows)
        self._states = [same[i] for i in self._actions]
        self._known[self._actions] = True

    def state(self, x: np.ndarray) -> np.ndarray:
        """States `[..., ds]`, as the model is shown them; float64."""
        x = np.asarray(x, np.float64)
        return x if self._of_state is None else self._of_state.steady(x, self._references[0])

    def action(self, a: np.ndarray) -> np.ndarray:
        """Actions `[..., da]`, absolute, each by itself; float64."""
        a = np.asarray(a, np.float64)
        return a if self._of_action is None else self._of_action.steady(a, self._references[1])

    def relative(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Actions `[..., p, da]` of chunks, less the states `[..., ds]` that they start at where
        the mask says so; float64.
        """
        shown = self.state(state)
        base = delta_base(shown, self._delta)
        meaning = self._of_action
        if meaning is None:
            return np.asarray(actions - base)
        start = base.copy()
        start[..., 0, self._actions] = shown[..., self._states]
        # Statistics of before leave absolute angles their jumps.
        along = self._references[1].cuts is not None
        return meaning.followed(self.action(actions), start, self._known, along) - base

    def absolute(self, relative: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The way back: angles in the range of the recording, quaternions and axes of length 1."""
        actions = relative + delta_base(self.state(state), self._delta)
        return np.asarray(actions if self._of_action is None else self._of_action.within(actions))


class WindowSums:
    """Statistics of the windows of many episodes of one robot.

    left_out: windows with NaN or Inf, which the loader leaves out too
    """

    def __init__(self, embodiment: Embodiment, chunk: int, rotations: Rotations) -> None:
        self._embodiment, self._chunk, self._rotations = embodiment, chunk, rotations
        self.states = Moments(len(embodiment.state_names))
        self.actions = Moments(len(embodiment.action_names))
        self.motion = Motion(len(embodiment.state_names)), Motion(len(embodiment.action_names))
        self.left_out = 0

    def add(self, state: np.ndarray, action: np.ndarray, ratio: float, name: str) -> None:
        """Add every window of the episode `name`, whose rows these are."""
        chunk, delta = self._chunk, self._embodiment.delta
        self._note(state, action)
        state, action, usable = stepped(state, action, ratio, self._embodiment, chunk)
        starts = np.flatnonzero(usable)
        self.left_out += len(usable) - len(starts)
        finite = np.isfinite(action).all(1) & np.isfinite(state).all(1)
        # A jump from one end of a turn to the other is no motion.
        states = self._rotations.state(state[finite])
        actions = self._rotations.action(action[finite])
        self.motion[0].add(states)
        self.motion[1].add(actions, delta_base(states, delta)[:, 0])
        # Which rows are sampled for quantiles is a property of the row.
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        of_states, of_actions = (
            np.random.default_rng(np.random.SeedSequence((salt, seed))) for salt in (13, 17)
        )
        # Windows overlap: all of an episode's at once would be `chunk` times as large as it.
        piece = max(1, PIECE // (chunk * action.shape[1]))
        for first in range(0, len(starts), piece):
            some = starts[first : first + piece]
            # Clamped at the end of the episode, as the rule says.
            read = np.minimum(some[:, None] + np.arange(chunk), len(action) - 1)
            windows = self._rotations.relative(action[read], state[some])
            self.states.add(self._rotations.state(state[some]), of_states.random(len(some)))
            self.actions.add(
                windows.reshape(-1, action.shape[1]), of_actions.random(len(some) * chunk)
            )

    def _note(self, state: np.ndarray, action: np.ndarray) -> None:
        """Rows as they were recorded: between those of another rate there are others."""
        finite = np.isfinite(action).all(1) & np.isfinite(state).all(1)
        state, action = state[finite], action[finite]
        self.motion[0].note(state)
        delta = self._embodiment.delta
        self.motion[1].note(action, delta_base(state, delta)[:, 0] if any(delta) else None)


def stepped(
    state: np.ndarray, action: np.ndarray, ratio: float, embodiment: Embodiment, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a whole episode as control steps `[steps, ds]` and `[steps, da]`, robot units, and
    bool `[steps]`: from which of them training takes a sample.
    """
    steps, rows = steps_of(len(action), ratio), action
    # Rows that are steps stay as they are.
    if ratio != 1:
        of_state, of_action = embodiment.state_meaning, embodiment.action_meaning
        state = at_steps(state, 0, steps, ratio, meaning=of_state)
        action = at_steps(rows, 0, steps, ratio, embodiment.resampling, of_action)
    return state, action, usable_starts(state, rows, ratio, chunk)


def check_ranges(state: np.ndarray, action: np.ndarray, embodiment: Embodiment, place: str) -> None:
    """DataError when a number is not what its kind says: an angle that leaves its range, a
    quaternion that has not length 1, a gripper far beyond its ends. state, action: rows of an
    episode.
    """
    kinds = embodiment.kinds
    for rows, meaning, names in (
        (state, embodiment.state_meaning, embodiment.state_names),
        (action, embodiment.action_meaning, embodiment.action_names),
    ):
        found = None if meaning is None else meaning.stray(rows)
        if found is not None:
            dim, what = found
            raise DataError(
                f"{place}: {names[dim]} {what} {kinds[names[dim]]}; correct `kinds` (where the "
                "recording counts turns, it is none), or leave that episode out with `episodes`"
            )
        for dim, gripper in grippers_of(names, kinds).items():
            values = rows[np.isfinite(rows[:, dim]), dim]
            if gripper.range is None or not len(values):
                continue
            low, high = gripper.range
            beyond = max(low - values.min(), values.max() - high)
            # The same name may stand for metres in the state and for a share in the action.
            if beyond > _BEYOND * (high - low):
                raise DataError(
                    f"{place}: {names[dim]} goes from {values.min():.4g} to {values.max():.4g}, "
                    f"its range in `kinds` from {low:g} to {high:g}; correct it, or leave `range` "
                    "out: the extremes of state and of action are their ends then"
                )

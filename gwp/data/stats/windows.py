"""The windows of one episode, added up: what training learns from it, and nothing else."""

import hashlib
from collections.abc import Sequence

import numpy as np

from gwp.data.embodiment import Embodiment
from gwp.data.kinds import Meaning, reference_of
from gwp.data.rates import at_steps, steps_of, usable_starts
from gwp.data.stats.moments import Moments
from gwp.data.stats.still import Motion
from gwp.errors import DataError

PIECE = 1 << 20
"""Numbers of the windows that are in memory at a time."""


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
    """Quaternions of a robot in one sign, and its angles relative the short way.

    references: `[q, 4]` for state and action, what each quaternion is near to
    """

    def __init__(self, embodiment: Embodiment, references: tuple[np.ndarray, np.ndarray]) -> None:
        self._delta = embodiment.delta
        self._of_state, self._of_action = embodiment.state_meaning, embodiment.action_meaning
        self._references = references

    def state(self, x: np.ndarray) -> np.ndarray:
        """States `[..., ds]`, as the model is shown them."""
        return x if self._of_state is None else self._of_state.steady(x, self._references[0])

    def relative(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Actions `[..., p, da]` of chunks, less the states `[..., ds]` that they start at where
        the mask says so; float64.
        """
        base = delta_base(self.state(state), self._delta)
        meaning = self._of_action
        if meaning is None:
            return np.asarray(actions - base)
        actions = meaning.steady(actions, self._references[1])
        return meaning.followed(actions, base, np.asarray(self._delta, bool)) - base

    def absolute(self, relative: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The way back: angles in the range of the recording, quaternions of length 1."""
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
        state, action, usable = stepped(state, action, ratio, self._embodiment, chunk)
        starts = np.flatnonzero(usable)
        self.left_out += len(usable) - len(starts)
        finite = np.isfinite(action).all(1) & np.isfinite(state).all(1)
        self.motion[0].add(state[finite])
        self.motion[1].add(action[finite], delta_base(state[finite], delta)[:, 0])
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


class QuaternionSums:
    """What the quaternions of a robot are near to, whatever their signs."""

    def __init__(self, embodiment: Embodiment) -> None:
        self._meanings = embodiment.state_meaning, embodiment.action_meaning
        self._sums = [np.zeros((_count(meaning), 4, 4)) for meaning in self._meanings]

    @property
    def needed(self) -> bool:
        """Whether there are any."""
        return any(map(len, self._sums))

    def add(self, state: np.ndarray, action: np.ndarray) -> None:
        """The rows of an episode."""
        for meaning, rows, sums in zip(self._meanings, (state, action), self._sums, strict=True):
            if meaning is None:
                continue
            finite = rows[np.isfinite(rows).all(1)]
            for four, total in zip(meaning.quaternions, sums, strict=True):
                total += finite[:, four].T @ finite[:, four]

    def references(self) -> tuple[np.ndarray, np.ndarray]:
        """`[q, 4]` for the state and for the action."""
        of_state, of_action = (
            np.array([reference_of(total) for total in sums]).reshape(-1, 4) for sums in self._sums
        )
        return of_state, of_action


def _count(meaning: Meaning | None) -> int:
    return 0 if meaning is None else len(meaning.quaternions)


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
    """DataError when an angle leaves the range that its kind says it wraps in. state, action:
    rows of an episode.
    """
    for rows, meaning, names in (
        (state, embodiment.state_meaning, embodiment.state_names),
        (action, embodiment.action_meaning, embodiment.action_names),
    ):
        dim = None if meaning is None else meaning.stray(rows)
        if dim is not None:
            low, high = np.nanmin(rows[:, dim]), np.nanmax(rows[:, dim])
            raise DataError(
                f"{place}: {names[dim]} goes from {low:.4g} to {high:.4g}, which is no angle in "
                f"{embodiment.kinds[names[dim]]}; correct `kinds`, or remove it there where the "
                "recording counts turns"
            )

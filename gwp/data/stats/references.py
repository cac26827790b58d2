"""Which of several numbers for one rotation a model is shown: of the rows of a recording, the
sign of quaternions, and the cut of angles where they are not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.kinds import Meaning, Reference, reference_of

_BINS = 360
"""Parts of a turn in which angles are counted."""
_BESIDE = 8
"""Parts at each side of a cut in which few rows should lie."""
_CLEARLY = 0.5
"""Share of the rows at the recorded cut from which on another one is no better: who turns all
the way round keeps the cut that he knows.
"""
_CLOSE = 0.7
"""Mean cosine between an action and the state of its name from which on they are one quantity;
a displacement that bears the name of the state is none.
"""


class ReferenceSums:
    """The rotations of a robot, counted over its rows, whatever the sign or turn that they have."""

    def __init__(self, embodiment: Embodiment) -> None:
        self._meanings = embodiment.state_meaning, embodiment.action_meaning
        self._products = [np.zeros((len(m.quaternions) if m else 0, 4, 4)) for m in self._meanings]
        self._counts = [np.zeros((len(m.turns) if m else 0, _BINS)) for m in self._meanings]
        self._same = same_angles(embodiment)
        self._cosines = np.zeros(len(self._same))
        self._rows = 0

    @property
    def needed(self) -> bool:
        """Whether there is anything to choose."""
        return any(map(len, [*self._products, *self._counts]))

    def add(self, state: np.ndarray, action: np.ndarray) -> None:
        """The rows of an episode."""
        finite = np.isfinite(state).all(1) & np.isfinite(action).all(1)
        state, action = state[finite], action[finite]
        for i, rows in enumerate((state, action)):
            meaning = self._meanings[i]
            if meaning is None:
                continue
            for four, total in zip(meaning.quaternions, self._products[i], strict=True):
                total += rows[:, four].T @ rows[:, four]
            parts = (rows[:, meaning.turns] - meaning.low) / meaning.period * _BINS
            bins = np.floor(parts).astype(np.int64) % _BINS
            for column, counts in zip(bins.T, self._counts[i], strict=True):
                counts += np.bincount(column, minlength=_BINS)
        self._rows += len(state)
        for k, (of_action, of_state, period) in enumerate(self._same):
            turn = 2 * np.pi / period
            self._cosines[k] += np.cos(turn * (action[:, of_action] - state[:, of_state])).sum()

    def references(self) -> tuple[Reference, Reference]:
        """Of the state and of the action."""
        of_state, of_action = (self._reference(i) for i in range(2))
        close = self._cosines > _CLOSE * self._rows
        follows = [pair[0] for pair, near in zip(self._same, close, strict=True) if near]
        return of_state, Reference(of_action.quaternions, of_action.cuts, tuple(follows))

    def _reference(self, i: int) -> Reference:
        near = np.array([reference_of(total) for total in self._products[i]]).reshape(-1, 4)
        cuts = np.array([_cut(counts) for counts in self._counts[i]])
        meaning = self._meanings[i]
        if meaning is None:
            return Reference(near, np.zeros(0))
        return Reference(near, meaning.low + cuts * meaning.period)


def same_angles(embodiment: Embodiment) -> list[tuple[int, int, float]]:
    """Absolute angles among the actions that the state holds under their names: number of the
    action, of the state, and a whole turn of them, robot units.
    """
    of_state, of_action = embodiment.state_meaning, embodiment.action_meaning
    if of_state is None or of_action is None:
        return []
    turning = {embodiment.state_names[i]: i for i in of_state.turns.tolist()}
    angles = zip(of_action.turns.tolist(), of_action.period.tolist(), strict=True)
    return [
        (i, turning[embodiment.action_names[i]], period)
        for i, period in angles
        if embodiment.action_names[i] in turning and not embodiment.delta[i]
    ]


def written(references: tuple[Reference, Reference]) -> dict[str, Any]:
    """References as metadata of statistics."""
    return {
        "quaternions": [r.quaternions.tolist() for r in references],
        "cuts": [[] if r.cuts is None else r.cuts.tolist() for r in references],
        "follows": list(references[1].follows),
    }


def read(metadata: Mapping[str, Any], embodiment: Embodiment) -> tuple[Reference, Reference] | None:
    """`written` back from the metadata of statistics. None where they lack what a quaternion of
    the robot is near to; those of others and of before lack the cuts.
    """
    near = metadata.get("quaternions", [[], []])
    cuts = metadata.get("cuts", [None, None])
    follows: list[Sequence[int]] = [(), metadata.get("follows", ())]
    found = []
    for i, meaning in enumerate((embodiment.state_meaning, embodiment.action_meaning)):
        quaternions = np.reshape(np.asarray(near[i], np.float64), (-1, 4))
        if len(quaternions) != _quaternions(meaning):
            return None
        cut = None if cuts[i] is None else np.asarray(cuts[i], np.float64)
        found.append(Reference(quaternions, cut, tuple(follows[i])))
    return found[0], found[1]


def _quaternions(meaning: Meaning | None) -> int:
    return 0 if meaning is None else len(meaning.quaternions)


def _cut(counts: np.ndarray) -> float:
    """Where in a turn fewest rows lie, from 0 to 1; 0 is where the recording cuts it."""
    # Edge i lies between part i - 1 and part i.
    beside = np.zeros(_BINS)
    for shift in range(-_BESIDE, _BESIDE):
        beside += np.roll(counts, -shift)
    least = beside.min()
    if least >= _CLEARLY * beside[0]:
        return 0.0
    # The middle of the longest run of such edges, round the end.
    first = int(beside.argmax())
    run, longest, end = 0, 0, 0
    for i, low in enumerate(np.roll(beside == least, -first)):
        run = run + 1 if low else 0
        if run > longest:
            longest, end = run, i
    middle = first + end - (longest - 1) / 2
    return float(middle / _BINS % 1.0)

"""What the numbers of a robot set look like, and which of them are none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Finding
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.vectors import vectors_of
from gwp.data.stats.still import Motion
from gwp.errors import DataError
from pipelines.datasets.grippers import check_grippers
from pipelines.datasets.kinds import RotationGuess
from pipelines.datasets.units import check_units

_BINARY_SHARE = 0.9
"""Share of rows at one of the two ends from which on a dimension is called near-binary."""
_END_SHARE = 0.05
"""Share of a dimension's range that counts as its end."""
_WILD = 20.0
"""Widths of the middle 98 % of the rows beyond which single ones are wild."""
_SINGLE = 2
"""Rows one behind the other that still are single ones."""


@dataclass(frozen=True)
class VectorCheck:
    """The states and actions of a set: what is wrong, and the range of every dimension.

    dimensions: `of` (state or action), `name`, `min`, `max`, `mean` in robot units, `note`
    (constant, near-binary or ""), and on actions that move `off_state`: mean distance from the
    state of the same number, as a share of the action's range
    """

    findings: list[Finding]
    dimensions: list[dict[str, Any]]


def check_vectors(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], reader: FileReader
) -> VectorCheck:
    """The numbers of all usable episodes, and the rows that are not numbers.

    episodes: each with its first row in its file
    """
    findings: list[Finding] = []
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    declared = (len(data.state_names), len(data.action_names))
    motions = Motion(declared[0]), Motion(declared[1])
    guesses = RotationGuess("state", data.state_names), RotationGuess("action", data.action_names)
    read = vectors_of(data, episodes, reader)
    for (episode, _), vectors in zip(episodes, read, strict=True):
        item = f"episode {episode.index}"
        if isinstance(vectors, DataError):
            findings.append(Finding(item, str(vectors), "left out", "write it again"))
            continue
        state, action = vectors
        widths = (state.shape[1], action.shape[1])
        # Not stackable with the others, and a policy could not tell which number is which.
        if widths != declared:
            what = (
                f"state and action are {widths[0]} and {widths[1]} wide, "
                f"the set says {declared[0]} and {declared[1]}"
            )
            advice = "correct the metadata, or leave it out with `episodes`"
            findings.append(Finding(item, what, "fatal", advice))
            continue
        # Rows that are numbers throughout; the others would spoil every mean.
        finite = np.isfinite(state).all(1) & np.isfinite(action).all(1)
        if not finite.all():
            broken = ~finite
            what = f"NaN or Inf in {int(broken.sum())} rows, first in row {int(broken.argmax())}"
            advice = "samples that need these rows are skipped"
            findings.append(Finding(item, what, "left out", advice))
        states.append(state[finite])
        actions.append(action[finite])
        for rows, motion, guess in zip((state, action), motions, guesses, strict=True):
            motion.add(rows[finite])
            guess.add(rows[finite])
    # No row at all: there is nothing to describe.
    if not sum(map(len, states)):
        return VectorCheck(findings, [])
    edges = np.cumsum([len(rows) for rows in states])[:-1]
    state, action = np.concatenate(states), np.concatenate(actions)
    # Parts of the whole from here on: a large set takes gigabytes.
    states, actions = np.split(state, edges), np.split(action, edges)
    dimensions = described(data.state_names, data.action_names, state, action, motions)
    advice = "normalised it is 0, and comes back as its mean"
    still = [f"{row['of']} {row['name']}" for row in dimensions if row["note"] == "constant"]
    findings += [Finding(item, "never moves", "ignored", advice) for item in still]
    for of, names, values in (
        ("state", data.state_names, state),
        ("action", data.action_names, action),
    ):
        findings += _wild(of, names, values)
    findings += check_grippers(dimensions, states, actions)
    findings += check_units(dimensions)
    for guess in guesses:
        findings += guess.findings()
    return VectorCheck(findings, dimensions)


def _wild(of: str, names: Sequence[str], values: np.ndarray) -> Iterator[Finding]:
    """Dimensions of which single rows lie far away from all others. values: [n,d]"""
    # Of few rows a single one must not reach the quantile itself.
    low = np.quantile(values, 0.01, axis=0, method="higher")
    high = np.quantile(values, 0.99, axis=0, method="lower")
    middle = np.median(values, axis=0)
    far = (np.abs(values - middle) > _WILD * (high - low)) & (high > low)
    for i in np.flatnonzero(far.any(0)).tolist():
        rows = np.flatnonzero(far[:, i])
        starts = np.flatnonzero(np.diff(rows, prepend=-2) > 1)
        if np.diff(starts, append=len(rows)).max() > _SINGLE:
            # What lasts is a rare motion.
            continue
        furthest = values[rows[np.abs(values[rows, i] - middle[i]).argmax()], i]
        what = (
            f"is {furthest:.4g} in {len(rows)} single rows, and {low[i]:.4g} to {high[i]:.4g} "
            "in 98 % of them"
        )
        advice = (
            "mend them, or leave those episodes out with `episodes`; they are learnt as they are"
        )
        yield Finding(f"{of} {names[i]}", what, "ignored", advice)


def described(
    state_names: Sequence[str],
    action_names: Sequence[str],
    state: np.ndarray,
    action: np.ndarray,
    motions: tuple[Motion, Motion],
) -> list[dict[str, Any]]:
    """The rows of `VectorCheck.dimensions`. state: [n,s], action: [n,d], all of them finite;
    motions: of their rows
    """
    of_state, of_action = (
        motion.resolution(np.ptp(rows, axis=0))
        for rows, motion in zip((state, action), motions, strict=True)
    )
    columns = zip(action_names, action.T, of_action, strict=True)
    action_rows = [_dimension("action", *column) for column in columns]
    # Only as far as there is a state of the same number.
    for i, row in enumerate(action_rows[: state.shape[1]]):
        if row["note"] != "constant":
            distance = np.abs(action[:, i] - state[:, i]).mean()
            row["off_state"] = float(distance / max(np.ptp(action[:, i]), 1e-9))
    columns = zip(state_names, state.T, of_state, strict=True)
    return [*(_dimension("state", *column) for column in columns), *action_rows]


def _dimension(
    of: Literal["state", "action"], name: str, values: np.ndarray, noise: float
) -> dict[str, Any]:
    """values: [n], robot units; noise: range below which it does not move."""
    low, high = float(values.min()), float(values.max())
    margin = _END_SHARE * max(high - low, 1e-12)
    # Grippers that are open or closed are close to one of two values nearly always.
    at_ends = float(((values < low + margin) | (values > high - margin)).mean())
    note = ""
    if high - low < noise:
        note = "constant"
    elif at_ends > _BINARY_SHARE:
        note = "near-binary"
    mean = float(values.mean())
    return {"of": of, "name": name, "min": low, "max": high, "mean": mean, "note": note}

"""What the numbers of a robot set look like, and which of them are none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Finding
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.vectors import vectors_of
from gwp.errors import DataError
from pipelines.datasets.grippers import check_grippers
from pipelines.datasets.rows import Feature
from pipelines.datasets.units import check_units

_BINARY_SHARE = 0.9
"""Share of rows at one of the two ends from which on a dimension is called near-binary."""
_END_SHARE = 0.05
"""Share of a dimension's range that counts as its end."""
_WILD = 20.0
"""Widths of the middle 98 % of the rows beyond which single ones are wild."""
_SINGLE = 2
"""Rows one behind the other that still are single ones."""
_COARSE = 1e-2
"""Step of float32 as a share of a range, from which on serving loses some of a motion."""


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
    state, action = Feature("state", data.state_names), Feature("action", data.action_names)
    features = state, action
    declared = (len(data.state_names), len(data.action_names))
    read = vectors_of(data, episodes, reader)
    for (episode, _), vectors in zip(episodes, read, strict=True):
        item = f"episode {episode.index}"
        if isinstance(vectors, DataError):
            findings.append(Finding(item, str(vectors), "left out", "write it again"))
            continue
        widths = tuple(rows.shape[1] for rows in vectors)
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
        finite = np.logical_and.reduce([np.isfinite(rows).all(1) for rows in vectors])
        if not finite.all():
            broken = ~finite
            what = f"NaN or Inf in {int(broken.sum())} rows, first in row {int(broken.argmax())}"
            advice = "samples that need these rows are skipped"
            findings.append(Finding(item, what, "left out", advice))
            vectors = vectors[0][finite], vectors[1][finite]
        for rows, feature in zip(vectors, features, strict=True):
            feature.add(rows)
    # No row at all: there is nothing to describe.
    if not state.count:
        return VectorCheck(findings, [])
    dimensions = described(state, action)
    advice = "normalised it is 0, and comes back as its mean"
    still = [f"{row['of']} {row['name']}" for row in dimensions if row["note"] == "constant"]
    findings += [Finding(item, "never moves", "ignored", advice) for item in still]
    findings += _served_coarsely(dimensions)
    for feature in features:
        findings += _wild(feature)
    findings += check_grippers(dimensions, state, action)
    findings += check_units(dimensions)
    for feature in features:
        findings += feature.guess.findings()
    return VectorCheck(findings, dimensions)


def _served_coarsely(dimensions: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Dimensions that move so little so far from 0 that float32, in which states and actions are
    served, does not hold it.
    """
    for row in dimensions:
        furthest, way = max(abs(row["min"]), abs(row["max"])), row["max"] - row["min"]
        step = float(np.spacing(np.float32(furthest)))
        if row["note"] != "constant" and step > _COARSE * way:
            what = f"moves by {way:.4g} at {furthest:.4g}, where float32 has steps of {step:.4g}"
            advice = "it is learnt, and served in float32; record it less an offset"
            yield Finding(f"{row['of']} {row['name']}", what, "ignored", advice)


def _wild(feature: Feature) -> Iterator[Finding]:
    """Dimensions of which single rows lie far away from all others."""
    for i, name in enumerate(feature.names):
        values = feature.column(i)
        # Of few rows a single one must not reach the quantile itself.
        low = np.quantile(values, 0.01, method="higher")
        high = np.quantile(values, 0.99, method="lower")
        middle = np.median(values)
        far = np.flatnonzero(np.abs(values - middle) > _WILD * (high - low))
        if not len(far) or not high > low:
            continue
        starts = np.flatnonzero(np.diff(far, prepend=-2) > 1)
        if np.diff(starts, append=len(far)).max() > _SINGLE:
            # What lasts is a rare motion.
            continue
        furthest = values[far[np.abs(values[far] - middle).argmax()]]
        what = (
            f"is {furthest:.4g} in {len(far)} single rows, and {low:.4g} to {high:.4g} in 98 % "
            "of them"
        )
        advice = (
            "mend them, or leave those episodes out with `episodes`; they are learnt as they are"
        )
        yield Finding(f"{feature.of} {name}", what, "ignored", advice)


def described(state: Feature, action: Feature) -> list[dict[str, Any]]:
    """The rows of `VectorCheck.dimensions`. There is a row at least."""
    of_state, of_action = (
        feature.motion.resolution(feature.guess.high - feature.guess.low)
        for feature in (state, action)
    )
    action_rows = []
    for i, name in enumerate(action.names):
        values = action.column(i)
        row = _dimension("action", name, values, of_action[i])
        # Only as far as there is a state of the same number.
        if i < len(state.names) and row["note"] != "constant":
            distance = np.abs(values - state.column(i)).mean()
            row["off_state"] = float(distance / max(np.ptp(values), 1e-9))
        action_rows.append(row)
    state_rows = (
        _dimension("state", name, state.column(i), of_state[i])
        for i, name in enumerate(state.names)
    )
    return [*state_rows, *action_rows]


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

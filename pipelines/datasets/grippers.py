"""Which numbers of a set look like grippers, and what a robot file would say of them. Nothing is
changed: the user decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10
from typing import Any

import numpy as np

from gwp.data.formats.finding import Finding
from pipelines.datasets.kinds import words_of
from pipelines.datasets.rows import Feature

_CALLED = frozenset(["gripper", "grippers", "grip", "jaw", "claw", "grasp"])
"""Words of dimensions that open and close."""
_FINGERS = frozenset(["finger", "fingers"])
"""Words of the two fingers of a gripper."""
_MOST_FINGERS = 4
"""Two at each of two hands."""
_OTHER = {
    *("x", "y", "z", "qx", "qy", "qz", "qw", "roll", "pitch", "yaw", "pose"),
    *("vel", "velocity", "force", "effort", "torque", "current"),
}
"""Words of what a gripper has besides: where it is, how fast, how strong."""
_RARELY = 0.01
"""Share of rows at either end from which on a dimension is at both."""
_OPPOSITE = -0.5
"""Correlation below which state and action run opposite."""
_ALIKE = 0.1
"""Share of a way by which those of state and action may differ to be one."""


def check_grippers(
    dimensions: Sequence[Mapping[str, Any]],
    state: Feature,
    action: Feature,
) -> Iterator[Finding]:
    """A finding per name that looks like a gripper, and one where state and action of one run
    opposite.

    dimensions: as in `VectorCheck`, those of the state, then of the action
    """
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for feature in (state, action):
        part = [row for row in dimensions if row["of"] == feature.of]
        called = _called([str(row["name"]) for row in part])
        found[feature.of] = [
            (i, row)
            for i, row in enumerate(part)
            if row["note"] != "constant" and (called[i] or _switches(row, feature, i))
        ]
    names = dict.fromkeys(row["name"] for part in found.values() for _, row in part)
    for name in names:
        alike = [row for part in found.values() for _, row in part if row["name"] == name]
        yield _suggestion(alike)
    for of_state, of_action in _pairs(found["state"], found["action"]):
        one, other = state.column(of_state[0]), action.column(of_action[0])
        correlation = float(np.corrcoef(one, other)[0, 1])
        if correlation < _OPPOSITE:
            yield _opposite(of_state[1]["name"], of_action[1]["name"], correlation)


def _called(names: Sequence[str]) -> list[bool]:
    """Which names are those of grippers."""
    words = [words_of(name) for name in names]
    # More of them are those of a hand, which does not simply open and close.
    few = sum(bool(w & _FINGERS) for w in words) <= _MOST_FINGERS
    known = _CALLED | _FINGERS if few else _CALLED
    return [bool(w & known or {"hand", "close"} <= w) and not w & _OTHER for w in words]


def _switches(row: Mapping[str, Any], feature: Feature, dim: int) -> bool:
    """Whether a near-binary dimension goes from one of its ends to the other."""
    if row["note"] != "near-binary":
        return False
    upper = [rows > (row["min"] + row["max"]) / 2 for rows in feature.episodes(dim)]
    # Where it does so between episodes only, it is set, not moved.
    if not any(part.any() and not part.all() for part in upper):
        return False
    share = float(np.concatenate(upper).mean())
    return _RARELY <= share <= 1 - _RARELY


def _suggestion(rows: Sequence[Mapping[str, Any]]) -> Finding:
    """rows: of one name, in state, action or both."""
    low, high = min(row["min"] for row in rows), max(row["max"] for row in rows)
    way = high - low
    # A name has one range; where state and action differ, their own extremes are the ends.
    one = all(
        abs(row["min"] - low) <= _ALIKE * way and abs(row["max"] - high) <= _ALIKE * way
        for row in rows
    )
    binary = all(row["note"] == "near-binary" for row in rows if row["of"] == "action")
    binary &= any(row["of"] == "action" for row in rows)
    parts = [f"range: [{_rounded(low, way)}, {_rounded(high, way)}]"] if one else []
    parts += ["binary: true"] if binary else []
    name, of = rows[0]["name"], " and ".join(row["of"] for row in rows)
    ends = ", ".join(f"{row['min']:.4g} to {row['max']:.4g}" for row in rows)
    what = f"{name} ({ends}) looks like a gripper"
    advice = f"if so: `kinds: {{{name}: {{{', '.join(parts)}}}}}` on the robot, and no delta of it"
    return Finding(of, what, "ignored", advice)


def _rounded(end: float, way: float) -> str:
    """To a thousandth of the way; never a minus before a zero."""
    return f"{round(end, 3 - floor(log10(way))) + 0.0:g}"


def _pairs(
    states: Sequence[tuple[int, Mapping[str, Any]]],
    actions: Sequence[tuple[int, Mapping[str, Any]]],
) -> Iterator[tuple[tuple[int, Mapping[str, Any]], tuple[int, Mapping[str, Any]]]]:
    """A gripper of the state for each of the actions: of its name, else by their order."""
    named = {entry[1]["name"]: entry for entry in states}
    for k, action in enumerate(actions):
        if action[1]["name"] in named:
            yield named[action[1]["name"]], action
        elif len(states) >= len(actions) and len(states) % len(actions) == 0:
            # Two fingers of the state for one action.
            yield states[k * (len(states) // len(actions))], action


def _opposite(state: str, action: str, correlation: float) -> Finding:
    what = f"{state} and action {action} run opposite (correlation {correlation:.2f})"
    if state == action:
        advice = "each is learnt by its own range; take no delta of it"
    else:
        advice = f"`kinds: {{{state}: {{invert: true}}}}` on the robot lets them run alike"
    return Finding("state", what, "ignored", advice)

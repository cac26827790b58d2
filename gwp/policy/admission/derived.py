"""What the training data tell of a robot: where its state was, and limits for its actions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.data.robot.kinds import Meaning
from gwp.data.stats.feature import FeatureStats

if TYPE_CHECKING:
    from gwp.data.stats.normalise import Stats

_MARGIN = 0.5
"""Share of the range that is allowed beyond each end."""
_STEPS = 2.0
"""Largest steps of training that an action may make."""
_STEP = 0.05
"""Share of the range that is always a step: what hardly moved in training may still be held
unsteadily by the policy.
"""
_EDGE = 1e-4
"""Share of a turn, and of the length of an axis, that rounding may lie beyond."""


class Seen(BaseModel):
    """Where the state of one robot was in training; one entry per dimension, robot units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    moves: tuple[bool, ...]
    """False for what never moved: the model does not look at it."""


def seen_in(stats: "Stats", embodiment: Embodiment) -> Seen:
    """Where the state was. DataError when the statistics are narrower than the robot."""
    stats.check(embodiment)
    state = stats.state.head(len(embodiment.state_names))
    low, high = _ends(state)
    return Seen(
        lower=tuple(low.tolist()),
        upper=tuple(high.tolist()),
        moves=tuple((~state.constant).tolist()),
    )


def limits_from(stats: "Stats", embodiment: Embodiment) -> Limits:
    """Limits that a policy trained on these data keeps by itself unless something is wrong.

    Positions: the range of training, widened. Velocity: the largest step of training, twice; none
    where the statistics do not hold it. DataError when they are narrower than the robot.
    """
    stats.check(embodiment)
    action = stats.action.head(len(embodiment.action_names))
    state = stats.state.head(len(embodiment.state_names))
    low, high = _ends(action)
    # What is learnt relative to the state goes from wherever that is.
    relative = np.asarray(embodiment.delta, bool)
    where = np.flatnonzero(relative)
    state_low, state_high = _ends(state)
    low[where] = state_low[where] + np.minimum(low[where], 0)
    high[where] = state_high[where] + np.maximum(high[where], 0)
    span = high - low
    margin = _MARGIN * span + action.noise
    lower, upper = low - margin, high + margin
    velocity = None
    if action.step is not None:
        velocity = np.maximum(_STEPS * action.step, _STEP * span) + action.noise
    if embodiment.action_meaning is not None:
        _open_rotations(embodiment.action_meaning, lower, upper, velocity)
    return Limits(
        lower=tuple(lower.tolist()),
        upper=tuple(upper.tolist()),
        velocity=None if velocity is None else tuple(velocity.tolist()),
    )


def _ends(stats: FeatureStats) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest number of each dimension, without single wild rows."""
    wild = np.zeros(len(stats.min), bool) if stats.wild is None else stats.wild
    return np.where(wild, stats.q01, stats.min), np.where(wild, stats.q99, stats.max)


def _open_rotations(
    meaning: Meaning, lower: np.ndarray, upper: np.ndarray, velocity: np.ndarray | None
) -> None:
    """A rotation is a number of its kind by itself; its numbers jump where it does not."""
    edge = _EDGE * meaning.period
    lower[meaning.turns] = meaning.low - edge
    upper[meaning.turns] = meaning.low + meaning.period + edge
    for entries in meaning.wholes:
        lower[entries], upper[entries] = -1 - _EDGE, 1 + _EDGE
    if velocity is not None:
        velocity[meaning.turns] = meaning.period
        for entries in meaning.wholes:
            velocity[entries] = 2 + 2 * _EDGE


def run_of(lineage: Mapping[str, Any]) -> str:
    """The MLflow run that made a bundle, by its `lineage.json`; empty where it says none."""
    stages = lineage.get("stages")
    first = stages[0] if isinstance(stages, list) and stages else None
    run_id = first.get("mlflow_run_id") if isinstance(first, dict) else None
    return run_id if isinstance(run_id, str) else ""

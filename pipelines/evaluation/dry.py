"""What one robot would receive for one recorded observation: values in units, against its limits."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.errors import DataError
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from pipelines.evaluation.open_loop import distance
from pipelines.evaluation.recordings import NO_WINDOW, RecordedSet, Recording

_LIMITS = ("lower", "upper", "velocity")


@dataclass(frozen=True)
class DryRun:
    """One observation and its chunk.

    episode, step: where it stands in the set
    chunk:         what the robot would receive
    recorded:      float32 `[n, d]`, what it did then; fewer rows near the end of an episode
    limits:        `lower`, `upper`, `velocity` -> float32 `[d]`, robot units (velocity: per control
                   step); those that there are
    """

    episode: int
    step: int
    embodiment: Embodiment
    observation: Observation
    chunk: ActionChunk
    recorded: np.ndarray
    limits: dict[str, np.ndarray]

    def rows(self) -> list[dict[str, Any]]:
        """One row per action, in its unit. `now` is the state of the same name; `step` the largest
        change between two control steps, from `now` on where there is one; `off` the largest
        distance from what was recorded. None where there is no such number.
        """
        robot, actions = self.embodiment, self.chunk.actions
        now = _now(robot, self.observation.state)
        before = np.where(np.isnan(now), actions[0], now)
        steps = np.abs(distance(actions, np.vstack([before[None], actions[:-1]]), robot)).max(0)
        n = len(self.recorded)
        off = np.abs(distance(actions[:n].copy(), self.recorded, robot)).max(0)
        units = robot.action_units or ("",) * len(robot.action_names)
        columns = {
            "action": list(robot.action_names),
            "unit": list(units),
            "now": _numbers(now),
            "first": _numbers(actions[0]),
            "least": _numbers(actions.min(0)),
            "most": _numbers(actions.max(0)),
            "lower": self._limit("lower"),
            "upper": self._limit("upper"),
            "step": _numbers(steps),
            "velocity": self._limit("velocity"),
            "off": _numbers(off),
            "flags": [self._flags(name) for name in robot.action_names],
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _limit(self, name: str) -> list[float | None]:
        limit = self.limits.get(name)
        return [None] * len(self.embodiment.action_names) if limit is None else _numbers(limit)

    def _flags(self, name: str) -> str:
        kinds = (flag.partition(":") for flag in self.chunk.flags)
        return ", ".join(kind for kind, _, of in kinds if of == name)


def dry_run(policy: Policy, source: Source, step: int | None = None) -> DryRun:
    """The chunk for step `step` of the first chosen episode of `source`; None: the first that can
    be used. DataError when there is no such step, or no picture or number of it can be read.
    """
    recorded = RecordedSet.of(policy.bundle.embodiments, source)
    for recording in recorded:
        for at in _steps(recording, step):
            for _, observation in recording.observed([at]):
                return _run(policy, recording, at, observation)
        if step is not None:
            break
    raise DataError(f"{source.uri}: {NO_WINDOW}")


def _steps(recording: Recording, step: int | None) -> list[int]:
    if step is None:
        return recording.starts()
    length = len(recording.action)
    where = f"episode {recording.episode.index}"
    if not 0 <= step < length:
        raise DataError(f"step {step}: {where} has the steps 0 to {length - 1}")
    if not recording.usable[step]:
        raise DataError(
            f"step {step}: {where} has NaN or Inf there; the nearest without is {recording.near(step)}"
        )
    return [step]


def _run(policy: Policy, recording: Recording, step: int, observation: Observation) -> DryRun:
    chunk = policy.act(observation)
    return DryRun(
        recording.episode.index,
        step,
        recording.embodiment,
        observation,
        chunk,
        recording.action[step : step + len(chunk.actions)],
        _limits(policy, recording.embodiment),
    )


def _limits(policy: Policy, robot: Embodiment) -> dict[str, np.ndarray]:
    # What robots are told at the handshake; else what stands in the bundle.
    told = policy.contract.metadata(robot.name).get("limits")
    if told is None:
        told = {} if robot.limits is None else robot.limits.model_dump()
    return {
        name: np.asarray(told[name], np.float32) for name in _LIMITS if told.get(name) is not None
    }


def _now(robot: Embodiment, state: np.ndarray) -> np.ndarray:
    """Where each action's quantity is, float32 `[d]`; NaN where the state does not say."""
    at = dict(zip(robot.state_names, state, strict=True))
    named = [at.get(name, np.nan) for name in robot.action_names]
    # Relative to entry i, whatever that is called.
    pairs = enumerate(zip(robot.delta, named, strict=True))
    return np.array([state[i] if relative else value for i, (relative, value) in pairs], np.float32)


def _numbers(values: np.ndarray) -> list[float | None]:
    # Four digits say it: a float32 has seven, and a table has to be read.
    return [None if np.isnan(v) else float(f"{v:.4g}") for v in values]

"""What a policy pays for speed, on recorded episodes: fewer solver steps, and chunks that join
while the robot moves on.

Shape legend: d actions, p chunk length. Differences are in units of each action's standard
deviation in the training data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.stats.normalise import Stats
from gwp.errors import DataError, GwpError
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from pipelines.evaluation.open_loop import distance, unbroken
from pipelines.evaluation.recordings import NO_WINDOW, RecordedSet

# Chunks computed at once; the same for every side of a comparison.
_BATCH = 8


@dataclass(frozen=True)
class StepsRow:
    """One number of Euler steps; a row of `steps_study`, and of the report's table.

    mse: of whole chunks against recorded actions, squared robot units
    rms: difference to the answer with the most steps, standard deviations
    ms:  one act call, median
    """

    steps: int
    mse: float
    rms: float
    ms: float


@dataclass(frozen=True)
class Jump:
    """Of position, and of velocity (per control step), where one chunk gives way to the next:
    mean and 95th percentile.
    """

    position: float
    position_p95: float
    velocity: float
    velocity_p95: float


@dataclass(frozen=True)
class Seams:
    """Chunks that arrive `delay` control steps after their observation; from `seams_study`.

    seams:   how many were looked at
    chunked: the next chunk continues the actions already promised (real-time chunking)
    naive:   it knows nothing of them
    inside:  between neighbouring actions of one chunk, the smoothness that a seam can have at
             best
    """

    delay: int
    seams: int
    chunked: Jump
    naive: Jump
    inside: Jump


def steps_study(policy: Policy, source: Source, steps: Sequence[int]) -> list[StepsRow]:
    """Same observations and same noise for each number of steps; the most steps first."""
    counts = sorted(set(steps), reverse=True)
    sides = [policy.with_steps(n) for n in counts]
    answers: list[list[np.ndarray]] = [[] for _ in sides]
    times: list[list[float]] = [[] for _ in sides]
    recorded: list[np.ndarray] = []
    # One robot for all episodes of a source, so the last one's spread is that of all.
    scale, robot = None, None
    for robot, truth, observations in _windows(policy, source):
        scale = _spread(policy, robot)
        recorded += truth
        for observation in observations:
            # In turn, so that a slow moment of the machine meets all of them.
            for side, chunks, ms in zip(sides, answers, times, strict=True):
                chunk = side.act(observation)
                chunks.append(chunk.actions)
                ms.append(chunk.timings["total"])
    assert robot is not None
    rows = []
    for count, chunks, ms in zip(counts, answers, times, strict=True):
        # At the end of an episode less is recorded than a chunk has.
        errors = [
            (distance(chunk[: len(true)], true, robot) ** 2).ravel()
            for chunk, true in zip(chunks, recorded, strict=True)
        ]
        mse = float(np.concatenate(errors).mean())
        most = np.concatenate(answers[0])
        difference = distance(np.concatenate(chunks), most, robot) / scale
        rms = float(np.sqrt((difference**2).mean()))
        rows.append(StepsRow(count, mse, rms, float(np.median(ms))))
    return rows


def seams_study(policy: Policy, source: Source, delay: int | None = None) -> Seams:
    """Jumps where a robot goes over from the chunk of one observation to that of the next,
    `replan` steps later.

    Both next chunks come from the same observation and noise. delay: control steps; None: what
    the chunk has room for, 4 at most
    """
    jumps: dict[str, list[np.ndarray]] = {"chunked": [], "naive": [], "inside": []}
    for embodiment, _, observations in _windows(policy, source):
        p = embodiment.chunk
        replan = embodiment.replan
        # The old chunk must last until the next one arrives.
        room = p - replan
        delay = min(4, room) if delay is None else delay
        if not 2 <= replan + delay <= p or delay < 1:
            raise GwpError(
                f"delay {delay}: chunks of {p} actions, asked for every {replan}, have room "
                f"for 1 to {room} more steps"
            )
        scale = _spread(policy, embodiment)
        first = _answers(policy, observations)
        # Each observation but the first, with the chunk that is under way when it is made.
        later = list(zip(observations[1:], first, strict=False))
        promised = [replace(o, prefix_actions=chunk[replan:], delay=delay) for o, chunk in later]
        joined = _answers(policy, promised)
        for old, naive, chunked in zip(first, first[1:], joined, strict=False):
            # The last two actions of the old chunk that are executed.
            left = old[replan + delay - 2 : replan + delay]
            for name, new in (("naive", naive), ("chunked", chunked)):
                line = np.concatenate([left, new[delay : delay + 1]])
                jumps[name].append(unbroken(line, embodiment) / scale)
            inside = unbroken(old, embodiment) / scale
            jumps["inside"] += [inside[i : i + 3] for i in range(p - 2)]
    if delay is None or not jumps["naive"]:
        raise DataError(f"{source.uri}: no episode is long enough for a second chunk")
    return Seams(
        delay,
        len(jumps["naive"]),
        *(_jump(np.stack(jumps[name])) for name in ("chunked", "naive", "inside")),
    )


def _jump(triples: np.ndarray) -> Jump:
    """From `[n, 3, d]`: the two last actions of the old chunk and the first that is executed of
    the new.
    """
    before = triples[:, 1] - triples[:, 0]
    across = triples[:, 2] - triples[:, 1]
    position = np.abs(across)
    velocity = np.abs(across - before)
    return Jump(
        float(position.mean()),
        float(np.percentile(position, 95)),
        float(velocity.mean()),
        float(np.percentile(velocity, 95)),
    )


def _windows(
    policy: Policy, source: Source
) -> Iterator[tuple[Embodiment, list[np.ndarray], list[Observation]]]:
    """Per run of windows of an episode that can be used: recorded chunks `[<= p, d]` and
    observations with a seed of their own, at every replan step. DataError where there is none.
    """
    some = False
    for recording in RecordedSet.of(policy.bundle.embodiments, source):
        embodiment = recording.embodiment
        for run in recording.runs():
            some = True
            recorded = [recording.action[step : step + embodiment.chunk] for step, _ in run]
            # Noise by episode and step, so that a study of fewer episodes has the same.
            seeded = [
                replace(
                    observation,
                    seed=1000 * recording.episode.index + step // embodiment.replan,
                )
                for step, observation in run
            ]
            yield embodiment, recorded, seeded
    if not some:
        raise DataError(f"{source.uri}: {NO_WINDOW}")


def _spread(policy: Policy, embodiment: Embodiment) -> np.ndarray:
    """Standard deviation of each action in the training data, `[d]`; 1 where it never moved."""
    stats = Stats.from_json(policy.bundle.stats[embodiment.name])
    # Statistics may be padded to the width of the model.
    std = np.asarray(stats.action.std, np.float32)[: len(embodiment.action_names)]
    return np.where(std > 0, std, 1.0).astype(np.float32)


def _answers(policy: Policy, observations: Sequence[Observation]) -> list[np.ndarray]:
    """Actions `[p, d]` for each observation."""
    return [c.actions for some in _batches(observations) for c in policy.act_batch(some)]


def _batches(observations: Sequence[Observation]) -> Iterator[Sequence[Observation]]:
    for first in range(0, len(observations), _BATCH):
        yield observations[first : first + _BATCH]

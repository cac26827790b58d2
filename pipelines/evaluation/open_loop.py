"""Open loop on recorded episodes: predicted chunks against recorded actions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.rotations import near
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, Stats
from gwp.errors import DataError
from gwp.policy.policy import Policy
from pipelines.evaluation.recordings import NO_WINDOW, RecordedSet, Recording


@dataclass(frozen=True)
class GuessErrors:
    """Errors of three guesses of the same actions.

    policy: the policy's
    hold:   standing still: repeat the state where action and state are the same quantity, else
            the action before (0 at the start)
    mean:   the mean chunk of the training data
    """

    policy: float
    hold: float
    mean: float

    @property
    def beats_both(self) -> bool:
        """Whether the policy is nearer than both others."""
        return self.policy < min(self.hold, self.mean)

    def named(self, name: str) -> dict[str, float]:
        """As what is printed has them: `name`, `name_hold`, `name_mean`."""
        return {name: self.policy, f"{name}_hold": self.hold, f"{name}_mean": self.mean}


@dataclass(frozen=True)
class EpisodeErrors:
    """What `OpenLoop` says of one episode.

    index: its number in the set
    text:  its instruction
    """

    index: int
    text: str
    windows: int
    mse: GuessErrors
    share: GuessErrors


@dataclass(frozen=True)
class OpenLoop:
    """Errors of whole predicted chunks against recorded actions, over every replan step of the
    episodes.

    mse:      squared robot units
    share:    absolute, as a share of each dimension's range in the training data; those that do
              not move there are left out
    per_dim:  the policy's squared error of each action dimension
    windows:  chunks compared
    episodes: the same of each episode
    trace:    action names, recorded and executed-part predictions `[n, d]` of the first episode
    """

    mse: GuessErrors
    share: GuessErrors
    per_dim: dict[str, float]
    windows: int
    episodes: tuple[EpisodeErrors, ...]
    trace: tuple[tuple[str, ...], np.ndarray, np.ndarray] = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """As `gwp eval open-loop` prints them."""
        episodes = [
            {
                "episode": e.index,
                "windows": e.windows,
                "beats_both": e.mse.beats_both,
                **e.mse.named("mse"),
                **e.share.named("share"),
            }
            for e in self.episodes
        ]
        return {
            **self.mse.named("mse"),
            **self.share.named("share"),
            "windows": self.windows,
            "per_dim": self.per_dim,
            "episodes": episodes,
        }


Distances = dict[str, list[np.ndarray]]
"""Guess -> differences to the recorded actions, `[rows, d]` of each window."""


def open_loop(policy: Policy, source: Source, batch: int = 8) -> OpenLoop:
    """Predict a chunk at every replan step of each episode of `source` from the true
    observation, and compare. DataError where no window can be compared.
    """
    recorded = RecordedSet.of(policy.bundle.embodiments, source)
    embodiment = recorded.embodiment
    stats = Stats.from_json(policy.bundle.stats[embodiment.name]).cut(embodiment)
    low, high = stats.action.low_high
    ranges = np.where(stats.action.constant, np.nan, high - low)
    whole: Distances = {"policy": [], "hold": [], "mean": []}
    episodes = []
    trace: tuple[np.ndarray, np.ndarray] | None = None
    for recording in recorded:
        errors, executed = _compared(policy, recording, Normalizer(stats, embodiment), batch)
        if not errors["policy"]:
            continue
        episodes.append(
            EpisodeErrors(
                recording.episode.index,
                recorded.text_of(recording.episode),
                len(errors["policy"]),
                _mse(errors),
                _share(errors, ranges),
            )
        )
        for guess, some in errors.items():
            whole[guess] += some
        trace = trace or executed
    if trace is None:
        raise DataError(f"{source.uri}: {NO_WINDOW}")
    of_policy = np.square(np.concatenate(whole["policy"])).mean(0)
    return OpenLoop(
        _mse(whole),
        _share(whole, ranges),
        dict(zip(embodiment.action_names, map(float, of_policy), strict=True)),
        len(whole["policy"]),
        tuple(episodes),
        (embodiment.action_names, *trace),
    )


def _compared(
    policy: Policy, recording: Recording, normalizer: Normalizer, batch: int
) -> tuple[Distances, tuple[np.ndarray, np.ndarray]]:
    """One episode: differences of each guess, and the part of each chunk that a robot executes,
    recorded and predicted, end to end `[n, d]`: the lines that are drawn.
    """
    embodiment = recording.embodiment
    T, p = len(recording.action), embodiment.chunk
    errors: Distances = {"policy": [], "hold": [], "mean": []}
    done = [np.zeros((0, len(embodiment.action_names)), np.float32)]
    executed = list(done)
    steps = recording.starts()
    for first in range(0, len(steps), batch):
        seen = recording.observed(steps[first : first + batch])
        if not seen:
            continue
        chunks = policy.act_batch([observation for _, observation in seen])
        for (step, _), chunk in zip(seen, chunks, strict=True):
            # Near the end of an episode less is recorded than a chunk has.
            n = min(p, T - step)
            true = recording.action[step : step + n]
            executed.append(chunk.actions[: min(embodiment.replan, n)])
            done.append(true[: embodiment.replan])
            # The mean of delta actions counts from where the robot is.
            mean_action = normalizer.mean_action(recording.state[step])
            guesses = {
                "policy": chunk.actions[:n],
                "hold": hold_chunk(recording, step, embodiment)[:n],
                "mean": np.tile(mean_action, (n, 1)),
            }
            for name, guess in guesses.items():
                errors[name].append(distance(guess, true, embodiment))
    return errors, (np.concatenate(done), np.concatenate(executed))


def _mse(errors: Mapping[str, list[np.ndarray]]) -> GuessErrors:
    return GuessErrors(
        **{name: float(np.square(np.concatenate(e)).mean()) for name, e in errors.items()}
    )


def _share(errors: Mapping[str, list[np.ndarray]], ranges: np.ndarray) -> GuessErrors:
    """ranges: `[d]`, NaN where a dimension does not count."""
    moves = np.isfinite(ranges)
    if not moves.any():
        return GuessErrors(0.0, 0.0, 0.0)
    return GuessErrors(
        **{
            name: float((np.abs(np.concatenate(e))[:, moves] / ranges[moves]).mean())
            for name, e in errors.items()
        }
    )


def distance(guess: np.ndarray, true: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Guessed less recorded actions `[n, d]`, angles the short way round."""
    meaning = embodiment.action_meaning
    difference: np.ndarray = guess - true
    if meaning is None:
        return difference
    # Either sign of a quaternion is the same rotation.
    for four in meaning.quaternions:
        difference[:, four] = near(guess[:, four], true[:, four]) - true[:, four]
    return meaning.shortest(difference)


def unbroken(actions: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """Successive actions `[n, d]` without jumps that are none: angles go on the short way,
    quaternions in one sign.
    """
    meaning = embodiment.action_meaning
    if meaning is None:
        return actions
    return meaning.followed(actions, actions[:1], np.zeros(actions.shape[1], bool), along=True)


def hold_chunk(recording: Recording, step: int, embodiment: Embodiment) -> np.ndarray:
    """The *hold* baseline at a step, `[p, d]`."""
    # What to repeat where a state says nothing about the action, a displacement for instance.
    before = recording.action[step - 1] if step else np.zeros(recording.action.shape[1], np.float32)
    before = np.where(np.isfinite(before), before, 0.0)
    # An action is a state to reach where it is relative to it, or has its name.
    same = np.array(embodiment.delta)
    names = zip(embodiment.action_names, embodiment.state_names, strict=False)
    for i, (action, state) in enumerate(names):
        same[i] |= action == state
    held = np.where(same, _padded(recording.state[step], len(same)), before)
    return np.tile(held.astype(np.float32), (embodiment.chunk, 1))


def _padded(state: np.ndarray, width: int) -> np.ndarray:
    """The state with as many numbers as an action has, zeros where it has fewer."""
    padded = np.zeros(width, np.float32)
    n = min(width, len(state))
    padded[:n] = state[:n]
    return padded

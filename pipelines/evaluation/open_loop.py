"""Open loop on recorded episodes: predicted chunks against recorded actions, imagined frames
against real ones.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from gwp.data.canvas import compose
from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.rotations import near
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, Stats
from gwp.errors import DataError
from gwp.policy.policy import Policy
from pipelines.console import event
from pipelines.evaluation.recordings import NO_WINDOW, RecordedSet, Recording


@dataclass(frozen=True)
class EpisodeErrors:
    """Those of `OpenLoop`, of one episode. text: its instruction"""

    text: str
    mse: float
    mse_hold: float
    mse_mean: float


@dataclass(frozen=True)
class OpenLoop:
    """Errors of whole predicted chunks against recorded actions, over every replan step of the
    episodes; squared robot units.
    """

    mse: float
    """The policy."""
    mse_hold: float
    """Standing still: repeat the state where action and state are the same quantity, else the
    action before (0 at the start).
    """
    mse_mean: float
    """The mean chunk of the training data."""
    per_dim: dict[str, float]
    """The policy's error of each action dimension."""
    windows: int
    """Chunks compared."""
    trace: tuple[tuple[str, ...], np.ndarray, np.ndarray] = field(repr=False)
    """Action names, recorded and executed-part predictions `[n, d]` of the first episode."""
    episodes: tuple[EpisodeErrors, ...] = field(default=(), repr=False)
    """One by one, in the order of the set."""


def open_loop(policy: Policy, source: Source, batch: int = 8) -> OpenLoop:
    """Predict a chunk at every replan step of each episode of `source` from the true
    observation, and compare.
    """
    errors: dict[str, list[np.ndarray]] = {"policy": [], "hold": [], "mean": []}
    episodes: list[EpisodeErrors] = []
    trace: tuple[np.ndarray, np.ndarray] | None = None
    recorded = RecordedSet.of(policy.bundle.embodiments, source)
    embodiment = recorded.embodiment
    stats = Stats.from_json(policy.bundle.stats[embodiment.name])
    normalizer = Normalizer(stats, embodiment)
    for recording in recorded:
        T = len(recording.action)
        p = embodiment.chunk
        steps = recording.starts()
        # The part of each chunk that a robot executes, end to end: the line that is drawn.
        executed, done = [], []
        before = len(errors["policy"])
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
                    errors[name].append(distance(guess, true, embodiment) ** 2)
        if executed:
            of_it = (float(np.concatenate(e[before:]).mean()) for e in errors.values())
            episodes.append(EpisodeErrors(recorded.text_of(recording.episode), *of_it))
        if trace is None and executed:
            trace = np.concatenate(done), np.concatenate(executed)
    if trace is None:
        raise DataError(f"{source.uri}: {NO_WINDOW}")
    whole = {name: np.concatenate(e) for name, e in errors.items()}
    per_dim = dict(zip(embodiment.action_names, map(float, whole["policy"].mean(0)), strict=True))
    mse = {name: float(e.mean()) for name, e in whole.items()}
    return OpenLoop(
        mse["policy"],
        mse["hold"],
        mse["mean"],
        per_dim,
        len(errors["policy"]),
        (embodiment.action_names, *trace),
        tuple(episodes),
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


def imagined(
    policy: Policy, source: Source, clips: int = 3
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Title, real and imagined canvas frames uint8 `[T, H, W, 3]`, given the recorded actions,
    from the middle of some episodes.
    """
    recorded = RecordedSet.of(policy.bundle.embodiments, source)
    # One of each instruction before a second of any.
    turns: Counter[str] = Counter()
    order = []
    for i, (episode, _) in enumerate(recorded.episodes):
        text = recorded.text_of(episode)
        order.append((turns[text], i))
        turns[text] += 1
    result: list[tuple[str, np.ndarray, np.ndarray]] = []
    for _, i in sorted(order):
        recording = recorded.recording(i) if len(result) < clips else None
        if recording is None:
            continue
        try:
            result.append(_imagined(policy, recording))
        except DataError as error:
            # As of the windows of `open_loop`: another one is shown in its place.
            event("warning", text=f"no clip of it: {error}", episode=recording.episode.index)
    if not result and clips:
        raise DataError(f"{source.uri}: {NO_WINDOW}")
    return result


def _imagined(policy: Policy, recording: Recording) -> tuple[str, np.ndarray, np.ndarray]:
    """Of the middle of one episode, as `imagined`. DataError where it cannot be read."""
    window, embodiment = policy.settings.window, recording.embodiment
    steps = len(recording.action)
    start = recording.near(max(0, (steps - window.chunk) // 2))
    views = recording.views([start + offset for offset in window.offsets])
    by_slot = {slot: views[camera] for slot, camera in embodiment.cameras.items()}
    real = compose(by_slot, policy.settings.canvas, None)
    # A short episode goes on with its last action.
    rows = np.minimum(start + np.arange(window.chunk), steps - 1)
    (_, observation), *_ = recording.observed([start])
    guess = policy.imagine_given(observation, recording.action[rows])
    where = f"episode {recording.episode.index}, step {start}"
    return f"{observation.prompt or 'episode'} ({where})", real, guess

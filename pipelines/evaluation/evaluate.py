"""Judging a policy: open loop on recorded episodes, what it imagines against what happened,
latency, and chance level in closed loop.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.canvas import compose
from gwp.data.embodiment import Embodiment
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.robot_set import ACTION, STATE, Episode, RobotSet
from gwp.data.source import Source
from gwp.data.stats.normalise import Stats
from gwp.data.video.decode import decode_frames, open_video
from gwp.errors import DataError
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation


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


@dataclass(frozen=True)
class Latency:
    """Milliseconds of each call, interleaved in one run."""

    act_ms: list[float]
    joint_ms: list[float]


class Recording:
    """One recorded episode as the robot would have seen it."""

    def __init__(self, data: RobotSet, episode: Episode, embodiment: Embodiment) -> None:
        self._data, self.episode, self.embodiment = data, episode, embodiment
        table = pq.read_table(
            io.BytesIO(storage.read_bytes(storage.join(data.uri, episode.data_file)))
        )
        if "episode_index" in table.column_names:
            table = table.filter(pc.equal(table["episode_index"], episode.index))
        missing = {STATE, ACTION} - set(table.column_names)
        if missing:
            raise DataError(
                f"{data.uri}: no column {' and '.join(sorted(missing))}; open-loop evaluation "
                "needs recorded actions"
            )
        self.state, self.action = (
            np.asarray(table[c].to_pylist(), np.float32) for c in (STATE, ACTION)
        )

    def views(self, steps: list[int]) -> dict[str, np.ndarray]:
        """Camera key -> uint8 `[n, H, W, 3]` at these steps; steps past the end show the last
        frame.
        """
        result = {}
        for key in self.embodiment.cameras.values():
            if key not in self.episode.videos:
                raise DataError(
                    f"{self._data.uri}: no camera {key}; the set has {', '.join(self._data.cameras)}"
                )
            span = self.episode.videos[key]
            times = [span.start + min(s, self.episode.length - 1) / self._data.fps for s in steps]
            uri = storage.join(self._data.uri, span.file)
            with open_video(uri, self._data.files.get(span.file)) as handle:
                result[key] = decode_frames(handle, times, 0.5 / self._data.fps + 1e-3)
        return result

    def observations(self, steps: list[int]) -> list[Observation]:
        """What the robot would have sent at these steps."""
        views = self.views(steps)
        return [
            Observation(
                {k: v[i] for k, v in views.items()},
                self.state[s],
                self.episode.text,
                self.embodiment.name,
            )
            for i, s in enumerate(steps)
        ]


def recordings(policy: Policy, uri: str, episodes: str | None = None) -> Iterator[Recording]:
    """Recordings of a LeRobot set for the policy's robot. DataError when widths or cameras do
    not fit.
    """
    data = read_set(uri)
    embodiment = _embodiment(policy, data)
    chosen = set(Source(uri=uri, episodes=episodes).select([e.index for e in data.episodes]))
    for episode in data.episodes:
        if episode.index in chosen:
            yield Recording(data, episode, embodiment)


def _embodiment(policy: Policy, data: RobotSet) -> Embodiment:
    fits = [e for e in policy.bundle.embodiments.values() if e.action_names == data.action_names]
    if not fits:
        known = {n: len(e.action_names) for n, e in policy.bundle.embodiments.items()}
        raise DataError(
            f"{data.uri}: its {len(data.action_names)} actions "
            f"({', '.join(data.action_names[:4])}, ...) are of no robot of "
            f"this policy; it knows (name: actions) {known}"
        )
    return fits[0]


def open_loop(policy: Policy, uri: str, episodes: str | None = None, batch: int = 8) -> OpenLoop:
    """Predict a chunk at every replan step of each episode from the true observation, and
    compare.
    """
    errors: dict[str, list[np.ndarray]] = {"policy": [], "hold": [], "mean": []}
    trace: tuple[np.ndarray, np.ndarray] | None = None
    embodiment = _embodiment(policy, read_set(uri))
    mean = mean_chunk(policy, embodiment)
    for recording in recordings(policy, uri, episodes):
        T, p = len(recording.action), embodiment.chunk
        steps = list(range(0, T, embodiment.replan))
        executed = []
        for first in range(0, len(steps), batch):
            some = steps[first : first + batch]
            chunks = policy.act_batch(recording.observations(some))
            for step, chunk in zip(some, chunks, strict=True):
                n = min(p, T - step)
                true = recording.action[step : step + n]
                executed.append(chunk.actions[: min(embodiment.replan, n)])
                guesses = {
                    "policy": chunk.actions[:n],
                    "hold": hold_chunk(recording, step, embodiment)[:n],
                }
                guesses["mean"] = np.tile(mean + _offset(recording.state[step], embodiment), (n, 1))
                for name, guess in guesses.items():
                    errors[name].append((guess - true) ** 2)
        if trace is None:
            predicted = np.concatenate(executed)
            trace = recording.action[: len(predicted)], predicted
    if trace is None:
        raise DataError(f"{uri}: no episode chosen")
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
    )


def _offset(state: np.ndarray, embodiment: Embodiment) -> np.ndarray:
    """The state on delta dimensions, 0 elsewhere, `[d]`."""
    delta = np.asarray(embodiment.delta)
    offset = np.zeros(len(delta), np.float32)
    offset[delta] = state[: len(delta)][delta]
    return offset


def mean_chunk(policy: Policy, embodiment: Embodiment) -> np.ndarray:
    """Mean (delta) action of the training data, `[d]`."""
    stats = Stats.from_json(policy.bundle.stats[embodiment.name])
    return np.asarray(stats.action.mean, np.float32)[: len(embodiment.action_names)]


def hold_chunk(recording: Recording, step: int, embodiment: Embodiment) -> np.ndarray:
    """The *hold* baseline at a step, `[p, d]`."""
    before = recording.action[step - 1] if step else np.zeros(recording.action.shape[1], np.float32)
    delta = np.asarray(embodiment.delta)
    same = delta | np.asarray(
        [a == s for a, s in zip(embodiment.action_names, embodiment.state_names, strict=False)]
        + [False] * max(0, len(delta) - len(embodiment.state_names))
    )
    held = np.where(same, _same_quantity(recording.state[step], len(delta)), before)
    return np.tile(held.astype(np.float32), (embodiment.chunk, 1))


def _same_quantity(state: np.ndarray, width: int) -> np.ndarray:
    out = np.zeros(width, np.float32)
    n = min(width, len(state))
    out[:n] = state[:n]
    return out


def first_observation(policy: Policy, uri: str) -> Observation:
    """An observation to time the policy with."""
    return next(recordings(policy, uri)).observations([0])[0]


def imagined(policy: Policy, uri: str, clips: int = 3) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Title, real and imagined canvas frames uint8 `[T, H, W, 3]`, given the recorded actions,
    from the middle of some episodes.
    """
    window = policy.settings.window
    found, result = list(recordings(policy, uri)), []
    # One of each instruction before a second of any.
    turns: Counter[str] = Counter()
    order = []
    for i, recording in enumerate(found):
        order.append((turns[recording.episode.text], i))
        turns[recording.episode.text] += 1
    for _, i in sorted(order)[:clips]:
        recording = found[i]
        embodiment = _embodiment(policy, read_set(uri))
        start = max(0, (recording.episode.length - window.chunk) // 2)
        views = recording.views([start + o for o in window.offsets])
        real = compose(
            {s: views[k] for s, k in embodiment.cameras.items()}, policy.settings.canvas, None
        )
        rows = [min(start + i, len(recording.action) - 1) for i in range(window.chunk)]
        observation = recording.observations([start])[0]
        guess = policy.imagine_given(observation, recording.action[rows])
        result.append(
            (
                (
                    f"{recording.episode.text or 'episode'} (episode {recording.episode.index}, "
                    f"step {start})"
                ),
                real,
                guess,
            )
        )
    return result


def latency(policy: Policy, observation: Observation, repeats: int) -> Latency:
    """Acting and joint decoding of the same observation, one after the other, after two untimed
    calls of each.
    """
    act_ms, joint_ms = [], []
    for i in range(repeats + 2):
        act = policy.act(observation).timings["total"]
        joint = policy.act_joint(observation)[0].timings["total"]
        if i >= 2:
            act_ms.append(act)
            joint_ms.append(joint)
    return Latency(act_ms, joint_ms)


def random_success(tasks: list[str], episodes: int, max_steps: int) -> dict[str, tuple[int, int]]:
    """Task -> (successes, episodes) of uniformly random actions: what chance alone reaches."""
    from gwp.sim.metaworld import Env
    from gwp.sim.rollout import random_policy, run_episode

    result = {}
    for task in tasks:
        env = Env(task)
        won = sum(
            run_episode(
                env, random_policy(seed), seed=7000 + seed, max_steps=max_steps, replan=6
            ).success
            for seed in range(episodes)
        )
        env.close()
        result[task] = (int(won), episodes)
    return result


def blind_success(tasks: list[str], episodes: int, max_steps: int) -> dict[str, tuple[int, int]]:
    """Task -> (successes, episodes) of replaying an expert's actions from another start: what
    can be won without looking.
    """
    from gwp.sim.metaworld import Env

    result = {}
    for task in tasks:
        env, won = Env(task), 0
        for i in range(episodes):
            env.reset(6000 + i)
            actions: list[np.ndarray] = []
            done = False
            while not done and len(actions) < max_steps:
                actions.append(env.expert_action())
                done = env.step(actions[-1])
            env.reset(7000 + i)
            won += any(env.step(action) for action in actions)
        env.close()
        result[task] = (won, episodes)
    return result


def closed_loop(
    policy: Policy, tasks: list[str], episodes: int, max_steps: int
) -> dict[str, tuple[int, int]]:
    """Task -> (successes, episodes) of the policy in this process, on seeds that no recording
    uses.
    """
    from gwp.sim.metaworld import Env
    from gwp.sim.rollout import run_episode

    result = {}
    for task in tasks:
        env, replan = Env(task), next(iter(policy.bundle.embodiments.values())).replan
        won = sum(
            run_episode(env, policy.act, seed=9000 + i, max_steps=max_steps, replan=replan).success
            for i in range(episodes)
        )
        env.close()
        result[task] = (int(won), episodes)
    return result

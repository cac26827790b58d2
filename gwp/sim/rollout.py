"""Closed loop: a policy drives a simulated robot, and the world waits for its answers."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.interface import Simulator

Act = Callable[[Observation], ActionChunk]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    latencies_ms: time of each request as this process waited for it, or as it was charged
    frames:       what the robot saw, one per request; empty unless they were to be kept
    actions:      what was executed, float32 `[d]` for each step, robot units
    waited:       steps before the first chunk, at which the robot stood still
    dry:          steps after it that no chunk covered, at which the last action was held
    late:         answers that came when the rows of the chunk before had run out, or later than
                  what was promised to them
    The last three are 0 where the world waits.
    """

    success: bool
    steps: int
    requests: int
    latencies_ms: list[float]
    frames: list[np.ndarray] = field(default_factory=list, repr=False)
    actions: list[np.ndarray] = field(default_factory=list, repr=False)
    waited: int = 0
    dry: int = 0
    late: int = 0


def run_episode(
    env: Simulator,
    act: Act,
    embodiment: Embodiment,
    *,
    seed: int,
    max_steps: int,
    replan: int,
    keep_frames: bool = False,
) -> EpisodeResult:
    """Receding horizon: observe, execute the first `replan` actions of the chunk, observe
    again, until success or `max_steps`.

    Request k of the episode carries the noise seed k, so that a run can be repeated exactly.
    GwpError when `replan` or an answer holds no action that the robot could execute.
    """
    if replan < 1:
        raise GwpError(f"replan is {replan}; execute at least one action of each chunk")
    env.reset(seed)
    latencies: list[float] = []
    frames: list[np.ndarray] = []
    done: list[np.ndarray] = []
    while len(done) < max_steps:
        observation = replace(env.observe(), seed=len(latencies))
        if keep_frames:
            frames += observation.images.values()
        begin = time.perf_counter()
        chunk = act(observation)
        latencies.append((time.perf_counter() - begin) * 1e3)
        check_chunk(chunk, env.task, embodiment)
        for action in chunk.actions[: min(replan, max_steps - len(done))]:
            done.append(action)
            if env.step(action):
                return EpisodeResult(True, len(done), len(latencies), latencies, frames, done)
    return EpisodeResult(False, len(done), len(latencies), latencies, frames, done)


def check_chunk(chunk: ActionChunk, task: str, embodiment: Embodiment) -> None:
    """GwpError when it holds no action that the robot of the task could execute."""
    width = len(embodiment.action_names)
    if (
        chunk.actions.ndim != 2
        or chunk.actions.shape[1] != width
        or not len(chunk.actions)
        or not np.isfinite(chunk.actions).all()
    ):
        raise GwpError(
            f"the policy answered with actions {list(chunk.actions.shape)}; {task} "
            f"needs finite [p, {width}], p > 0"
        )


def random_policy(embodiment: Embodiment, seed: int) -> Act:
    """Uniformly random actions within the limits."""
    rng = np.random.default_rng(seed)
    limits = embodiment.limits
    assert limits is not None

    shape_pd = (embodiment.chunk, len(limits.lower))

    def act(_observation: Observation) -> ActionChunk:
        actions_pd = rng.uniform(limits.lower, limits.upper, shape_pd)
        return ActionChunk(actions_pd.astype(np.float32), "random")

    return act


def replay_blindly(env: Simulator, *, seen: int, seed: int, max_steps: int) -> EpisodeResult:
    """An expert's actions from the start `seen`, replayed from the start `seed`, which it does not
    see: what can be won without looking.
    """
    env.reset(seen)
    actions: list[np.ndarray] = []
    success = False
    while not success and len(actions) < max_steps:
        actions.append(env.expert_action())
        success = env.step(actions[-1])
    env.reset(seed)
    for step, action in enumerate(actions, start=1):
        if env.step(action):
            return EpisodeResult(True, step, 0, [], actions=actions[:step])
    return EpisodeResult(False, len(actions), 0, [], actions=actions)

"""Closed loop: a policy drives a simulated robot."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.metaworld import EMBODIMENT, Env

Act = Callable[[Observation], ActionChunk]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode. `latencies_ms`: time of each request as the robot waited for it. `frames`:
    what it saw, one per request.
    """

    success: bool
    steps: int
    requests: int
    latencies_ms: list[float]
    frames: list[np.ndarray] = field(default_factory=list, repr=False)


def run_episode(
    env: Env, act: Act, *, seed: int, max_steps: int = 150, replan: int, keep_frames: bool = False
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
    step = 0
    while step < max_steps:
        observation = replace(env.observe(), seed=len(latencies))
        if keep_frames:
            frames += observation.images.values()
        begin = time.perf_counter()
        chunk = act(observation)
        latencies.append((time.perf_counter() - begin) * 1e3)
        width = len(EMBODIMENT.action_names)
        if (
            chunk.actions.ndim != 2
            or chunk.actions.shape[1] != width
            or not len(chunk.actions)
            or not np.isfinite(chunk.actions).all()
        ):
            raise GwpError(
                f"the policy answered with actions {list(chunk.actions.shape)}; {env.task} "
                f"needs finite [p, {width}], p > 0"
            )
        for action in chunk.actions[: min(replan, max_steps - step)]:
            step += 1
            if env.step(action):
                return EpisodeResult(True, step, len(latencies), latencies, frames)
    return EpisodeResult(False, step, len(latencies), latencies, frames)


def random_policy(seed: int) -> Act:
    """Uniformly random actions within the limits."""
    rng = np.random.default_rng(seed)
    limits = EMBODIMENT.limits
    assert limits is not None

    def act(_observation: Observation) -> ActionChunk:
        return ActionChunk(
            rng.uniform(limits.lower, limits.upper, (EMBODIMENT.chunk, len(limits.lower))).astype(
                np.float32
            ),
            "random",
        )

    return act


def expert_episode(env: Env, *, seed: int, max_steps: int = 150) -> EpisodeResult:
    """The scripted expert, which sees the privileged state, asked at every step: the most that
    a policy could reach.
    """
    env.reset(seed)
    for step in range(1, max_steps + 1):
        if env.step(env.expert_action()):
            return EpisodeResult(True, step, 0, [])
    return EpisodeResult(False, max_steps, 0, [])


def wilson_interval(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate; honest at 0 and at 1, where few episodes prove little."""
    if not episodes:
        return 0.0, 1.0
    p, n = successes / episodes, episodes
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(
        1.0, (centre + spread) / (1 + z * z / n)
    )

"""Closed loop: a policy drives a simulated robot."""

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

    shape_pd = (EMBODIMENT.chunk, len(limits.lower))

    def act(_observation: Observation) -> ActionChunk:
        actions_pd = rng.uniform(limits.lower, limits.upper, shape_pd)
        return ActionChunk(actions_pd.astype(np.float32), "random")

    return act

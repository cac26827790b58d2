"""A scripted expert through an episode."""

from gwp.sim.interface import Simulator
from gwp.sim.rollout import EpisodeResult


def expert_episode(env: Simulator, *, seed: int, max_steps: int = 150) -> EpisodeResult:
    """The scripted expert, which sees the privileged state, asked at every step: the most that
    a policy could reach.
    """
    env.reset(seed)
    for step in range(1, max_steps + 1):
        if env.step(env.expert_action()):
            return EpisodeResult(True, step, 0, [])
    return EpisodeResult(False, max_steps, 0, [])

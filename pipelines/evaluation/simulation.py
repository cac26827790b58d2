"""Closed loop in simulation: the policy, and what chance and blind replay reach."""

import numpy as np

from gwp.policy.policy import Policy


def random_success(tasks: list[str], episodes: int, max_steps: int) -> dict[str, tuple[int, int]]:
    """Task -> (successes, episodes) of uniformly random actions: what chance alone reaches."""
    from gwp.sim.metaworld import Env
    from gwp.sim.rollout import random_policy, run_episode

    result = {}
    for task in tasks:
        env = Env(task)
        won = 0
        for i in range(episodes):
            episode = run_episode(
                # The starts of `blind_success`, so that both are judged on the same.
                env,
                random_policy(i),
                seed=7000 + i,
                max_steps=max_steps,
                replan=6,
            )
            won += int(episode.success)
        env.close()
        result[task] = (won, episodes)
    return result


def blind_success(tasks: list[str], episodes: int, max_steps: int) -> dict[str, tuple[int, int]]:
    """Task -> (successes, episodes) of replaying an expert's actions from another start: what
    can be won without looking.
    """
    from gwp.sim.metaworld import Env

    result = {}
    for task in tasks:
        env = Env(task)
        won = 0
        for i in range(episodes):
            # The expert's actions of one start ...
            env.reset(6000 + i)
            actions: list[np.ndarray] = []
            done = False
            while not done and len(actions) < max_steps:
                actions.append(env.expert_action())
                done = env.step(actions[-1])
            # ... from another one, which it does not see.
            env.reset(7000 + i)
            # `any` stops at the first success, as an episode does.
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

    replan = next(iter(policy.bundle.embodiments.values())).replan
    result = {}
    for task in tasks:
        env = Env(task)
        won = 0
        for i in range(episodes):
            episode = run_episode(
                env, policy.act, seed=9000 + i, max_steps=max_steps, replan=replan
            )
            won += int(episode.success)
        env.close()
        result[task] = (won, episodes)
    return result

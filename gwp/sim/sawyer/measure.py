"""What can be won in each task without learning: `python -m gwp.sim.sawyer.measure`.

Prints a table of success rates: the scripted expert, alone and with the recorder's noise on its
actions; random actions; and an expert's actions replayed from another start. Nothing is drawn.
"""

import argparse
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from gwp.sim.metaworld import EMBODIMENT, Env
from gwp.sim.rollout import replay_blindly
from gwp.sim.sawyer.shifts import SHIFTS
from gwp.sim.sawyer.tasks import TASKS, WIDE

_SEEN, _START = 6000, 7000
"""First seeds of what a blind robot saw, and of all starts, as `gwp eval closed-loop` has them."""
_NOISE = 0.2


@dataclass(frozen=True)
class Rates:
    """Shares of episodes won in a task, 0 to 1. steps: median of the expert's."""

    task: str
    episodes: int
    expert: float
    noisy: float
    random: float
    blind: float
    steps: float


def measure(task: str, episodes: int, max_steps: int, wide: bool, shift: str = "none") -> Rates:
    """Play `episodes` starts, each with all four."""
    env = Env(task, shift=shift, wide=wide)
    seeds = range(_START, _START + episodes)
    steps = [_expert(env, seed, max_steps, 0.0) for seed in seeds]
    noisy = [_expert(env, seed, max_steps, _NOISE) for seed in seeds]
    rows = [_random(env, seed, max_steps) for seed in seeds]
    blind = [
        replay_blindly(env, seen=seed - _START + _SEEN, seed=seed, max_steps=max_steps).success
        for seed in seeds
    ]
    env.close()
    won = [s for s in steps if s]
    return Rates(
        task,
        episodes,
        expert=len(won) / episodes,
        noisy=float(np.mean([s > 0 for s in noisy])),
        random=float(np.mean(rows)),
        blind=float(np.mean(blind)),
        steps=float(np.median(won)) if won else float("nan"),
    )


def _expert(env: Env, seed: int, max_steps: int, noise: float) -> int:
    """Steps until the expert won; 0 where it did not."""
    env.reset(seed)
    rng = np.random.default_rng(seed)
    for step in range(1, max_steps + 1):
        action = env.expert_action()
        if env.step(action + rng.normal(0, noise, action.shape)):
            return step
    return 0


def _random(env: Env, seed: int, max_steps: int) -> bool:
    """As `run_episode` with a random policy, which looks at nothing."""
    limits = EMBODIMENT.limits
    assert limits is not None
    env.reset(seed)
    rng = np.random.default_rng(seed)
    actions = rng.uniform(limits.lower, limits.upper, (max_steps, len(limits.lower)))
    return any(env.step(action) for action in actions)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="", help="comma-separated (default: all)")
    parser.add_argument("--episodes", type=int, default=100, help="per task (default: 100)")
    parser.add_argument("--max-steps", type=int, default=150, help="of an episode (default: 150)")
    parser.add_argument("--wide", action="store_true", help="with the wide starts")
    parser.add_argument("--shift", default="none", choices=SHIFTS, help="default: none")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args()
    tasks = [t for t in args.tasks.split(",") if t] or list(WIDE if args.wide else TASKS)
    print("| task | expert | with noise | random | blind | steps |")
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(args.workers, mp_context=mp.get_context("spawn")) as pool:
        jobs = [
            pool.submit(measure, task, args.episodes, args.max_steps, args.wide, args.shift)
            for task in tasks
        ]
        for job in jobs:
            rates = job.result()
            four = (rates.expert, rates.noisy, rates.random, rates.blind)
            cells = " | ".join(f"{100 * rate:.0f} %" for rate in four)
            print(f"| `{rates.task}` | {cells} | {rates.steps:.0f} |", flush=True)


if __name__ == "__main__":
    main()

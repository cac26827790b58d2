"""What can be won without learning: `python -m gwp.sim.measure --benchmark NAME`.

Prints a table of success rates: the scripted expert, alone and with the recorder's noise on its
actions; random actions; and an expert's actions replayed from another start. Nothing is drawn.
"""

import argparse
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from gwp.sim.benchmarks import BENCHMARKS, DEFAULT, find
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark, Simulator
from gwp.sim.rollout import replay_blindly

_SEEN, _START = 6000, 7000
"""First seeds of what a blind robot saw, and of all starts, as `gwp eval closed-loop` has them."""


@dataclass(frozen=True)
class Rates:
    """Shares of episodes won in a task, 0 to 1.

    steps: median of the expert's, and the most that it took
    """

    task: str
    expert: float
    noisy: float
    random: float
    blind: float
    steps: tuple[float, float]


def measure(
    benchmark: Benchmark, task: str, episodes: int, max_steps: int, shift: str = UNSHIFTED
) -> Rates:
    """Play `episodes` starts of a task, each with all four."""
    env = benchmark.make(task, SIZE, shift)
    seeds = range(_START, _START + episodes)
    steps = [_expert(env, seed, max_steps, 0.0) for seed in seeds]
    noisy = [_expert(env, seed, max_steps, benchmark.noise) for seed in seeds]
    rows = [_random(env, benchmark, seed, max_steps) for seed in seeds]
    blind = [
        replay_blindly(env, seen=seed - _START + _SEEN, seed=seed, max_steps=max_steps).success
        for seed in seeds
    ]
    env.close()
    won = [float(count) for count in steps if count] or [np.nan]
    return Rates(
        task,
        expert=float(np.mean([count > 0 for count in steps])),
        noisy=float(np.mean([count > 0 for count in noisy])),
        random=float(np.mean(rows)),
        blind=float(np.mean(blind)),
        steps=(float(np.median(won)), float(np.max(won))),
    )


def _expert(env: Simulator, seed: int, max_steps: int, noise: float) -> int:
    """Steps until the expert won; 0 where it did not."""
    env.reset(seed)
    rng = np.random.default_rng(seed)
    for step in range(1, max_steps + 1):
        action = env.expert_action()
        if env.step(action + rng.normal(0, noise, action.shape)):
            return step
    return 0


def _random(env: Simulator, benchmark: Benchmark, seed: int, max_steps: int) -> bool:
    """As `run_episode` with a random policy, which looks at nothing."""
    limits = benchmark.embodiment.limits
    assert limits is not None
    env.reset(seed)
    rng = np.random.default_rng(seed)
    actions = rng.uniform(limits.lower, limits.upper, (max_steps, len(limits.lower)))
    return any(env.step(action) for action in actions)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS), default=DEFAULT)
    parser.add_argument("--tasks", default="", help="comma-separated (default: all)")
    parser.add_argument("--episodes", type=int, default=100, help="per task (default: 100)")
    parser.add_argument("--max-steps", type=int, help="of an episode (default: the benchmark's)")
    parser.add_argument("--shift", default=UNSHIFTED, help="one of the benchmark (default: none)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args()
    benchmark = find(args.benchmark)
    tasks = [task for task in args.tasks.split(",") if task] or list(benchmark.tasks)
    benchmark.check(tasks, args.shift)
    steps = benchmark.steps if args.max_steps is None else args.max_steps
    print("| task | expert | with noise | random | blind | steps, median and most |")
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(args.workers, mp_context=mp.get_context("spawn")) as pool:
        jobs = [
            pool.submit(measure, benchmark, task, args.episodes, steps, args.shift)
            for task in tasks
        ]
        for job in jobs:
            rates = job.result()
            four = (rates.expert, rates.noisy, rates.random, rates.blind)
            cells = " | ".join(f"{100 * rate:.0f} %" for rate in four)
            median, most = rates.steps
            print(f"| `{rates.task}` | {cells} | {median:.0f}, {most:.0f} |", flush=True)


if __name__ == "__main__":
    main()

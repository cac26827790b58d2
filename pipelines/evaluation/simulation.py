"""Closed loop in simulation: the policy, and what chance and blind replay reach."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gwp.errors import GwpError
from gwp.machine import cores
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from gwp.sim.charged import Charge
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark
from gwp.sim.parallel import Outcome, run_trials
from gwp.sim.trial import Agent, Rules, Trial, run_trial
from pipelines.console import event
from pipelines.pages.intervals import wilson

BASELINES: tuple[Agent, ...] = ("random", "blind")
AGENTS: tuple[Agent, ...] = ("policy", *BASELINES)
MAX_EPISODES = 1000
SMALLEST = 16


def trials_of(agent: Agent, tasks: Sequence[str], episodes: int) -> list[Trial]:
    """The episodes of an agent, on seeds that no recording uses."""
    # Chance and blind replay are judged on the same starts.
    start, other = {"policy": (9000, 0), "random": (7000, 0), "blind": (7000, 6000)}[agent]
    return [Trial(task, start + i, agent, other + i) for task in tasks for i in range(episodes)]


def check_run(
    benchmark: Benchmark,
    tasks: Sequence[str],
    episodes: int,
    max_steps: int,
    simulators: int | None,
    *,
    size: int = SIZE,
    shift: str = UNSHIFTED,
) -> None:
    """GwpError where they are out of range."""
    benchmark.check(list(tasks), shift)
    # The seeds of an agent must not run into those of another set.
    if not 1 <= episodes <= MAX_EPISODES:
        raise GwpError(f"--episodes {episodes}: give 1 to {MAX_EPISODES}")
    if not 1 <= max_steps <= benchmark.max_steps:
        raise GwpError(f"--max-steps {max_steps}: give 1 to {benchmark.max_steps}")
    if size < SMALLEST:
        raise GwpError(f"--size {size}: give at least {SMALLEST}")
    if simulators is not None and simulators < 1:
        raise GwpError(f"--simulators {simulators}: give at least 1")


def baseline_success(
    benchmark: Benchmark, agent: Agent, tasks: Sequence[str], episodes: int, max_steps: int
) -> dict[str, tuple[int, int]]:
    """Task -> (successes, episodes) in this process: `random`, uniformly random actions, what
    chance alone reaches; `blind`, an expert's actions from another start, what can be won without
    looking.
    """
    rules = Rules(benchmark, max_steps, benchmark.embodiment.replan)
    result = {}
    for task in tasks:
        env = rules.make(task)
        trials = trials_of(agent, [task], episodes)
        won = sum(run_trial(env, trial, rules, _nobody).success for trial in trials)
        env.close()
        result[task] = (won, episodes)
    return result


def closed_loop(
    policy: Policy,
    benchmark: Benchmark,
    tasks: Sequence[str],
    episodes: int,
    max_steps: int,
    *,
    simulators: int | None = None,
    charge: Charge | None = None,
    agents: Sequence[Agent] = AGENTS,
    size: int = SIZE,
    shift: str = UNSHIFTED,
) -> list[Outcome]:
    """All episodes of all agents, in order; simulators in processes of their own, answered by the
    policy in this one. An episode that could not be run is an outcome with a reason, and told as
    a warning.

    simulators: processes; None: as many as this process may use cores. charge: what a chunk costs
    in simulated time; only the policy pays it. size, shift: as in `Rules`. GwpError when the
    policy does not know the robot.
    """
    replan = policy.contract.embodiment(benchmark.embodiment.name).replan
    rules = Rules(benchmark, max_steps, replan, charge, size, shift)
    trials = [trial for agent in agents for trial in trials_of(agent, tasks, episodes)]
    count = cores() if simulators is None else simulators
    with _room_for(policy, count):
        return run_trials(trials, policy.act_batch, rules, simulators=count, on_outcome=_warn)


@contextmanager
def _room_for(policy: Policy, simulators: int) -> Iterator[None]:
    """A policy on the CPU leaves half of the cores to several simulators: threads that wait for
    each other on cores that others use cost more than they bring.
    """
    if policy.device.type != "cpu" or simulators < 2:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, cores() // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _nobody(_observation: Observation) -> Any:
    raise AssertionError("neither chance nor blind replay asks for chunks")


def _warn(outcome: Outcome) -> None:
    if outcome.episode is None:
        event("warning", text=f"{outcome.trial} was not run: {outcome.failure}")


def successes(outcomes: Sequence[Outcome]) -> dict[str, dict[str, tuple[int, int]]]:
    """Task -> agent -> (successes, episodes that ran)."""
    result: dict[str, dict[str, tuple[int, int]]] = {}
    for outcome in outcomes:
        by_agent = result.setdefault(outcome.trial.task, {})
        won, ran = by_agent.get(outcome.trial.agent, (0, 0))
        if outcome.episode is not None:
            won, ran = won + outcome.episode.success, ran + 1
        by_agent[outcome.trial.agent] = (won, ran)
    return result


def figures(
    outcomes: Sequence[Outcome], charge: Charge | None, fps: float
) -> dict[str, dict[str, Any]]:
    """Task -> what `gwp eval closed-loop` prints; fps: control steps of the robot a second.

    Rates are of the episodes that ran (None: none did), `_95` their 95 % Wilson intervals.
    """
    result: dict[str, dict[str, Any]] = {}
    for task, by_agent in successes(outcomes).items():
        row: dict[str, Any] = {}
        for agent, (won, ran) in by_agent.items():
            end = "" if agent == "policy" else f"_{agent}"
            row[f"success{end}"] = won / ran if ran else None
            row[f"success{end}_95"] = [round(bound, 4) for bound in wilson(won, ran)]
            row[f"episodes{end}"] = ran
        mine = [outcome for outcome in outcomes if outcome.trial.task == task]
        row["failed_to_run"] = [
            f"{outcome.trial}: {outcome.failure}" for outcome in mine if outcome.episode is None
        ]
        if charge is not None:
            row["charged"] = _charged(mine, charge, fps)
        result[task] = row
    return result


def _charged(outcomes: Sequence[Outcome], charge: Charge, fps: float) -> dict[str, Any]:
    """What the policy paid in the episodes of a task, and how often it had nothing to execute."""
    episodes = [o.episode for o in outcomes if o.trial.agent == "policy" and o.episode is not None]
    return {
        "latency_ms": charge.latency_ms,
        "latency_steps": charge.steps(fps),
        "delay": charge.delay,
        "blend": charge.blend,
        "requests": sum(episode.requests for episode in episodes),
        "steps": sum(episode.steps for episode in episodes),
        "steps_waited": sum(episode.waited for episode in episodes),
        "steps_dry": sum(episode.dry for episode in episodes),
        "late": sum(episode.late for episode in episodes),
    }

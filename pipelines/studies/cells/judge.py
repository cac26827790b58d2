"""Judgements of a finished policy: figures of every episode, so that intervals can be made of them
later.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gwp.data.source import Source
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from gwp.sim.benchmarks import find
from gwp.sim.parallel import Outcome, run_trials
from gwp.sim.trial import Rules
from pipelines.evaluation.charge import charge_of, chunk_times, latency_ms
from pipelines.evaluation.imagined import imagined, video_figures
from pipelines.evaluation.open_loop import GuessErrors, open_loop
from pipelines.evaluation.simulation import closed_loop, trials_of
from pipelines.studies.cells.pieces import Cell, Control, StudyPlan
from pipelines.studies.document.judgements import (
    ClosedLoopJudgement,
    Judgement,
    LatencyJudgement,
    OpenLoopJudgement,
    VideoJudgement,
)


def judged(
    plan: StudyPlan, cell: Cell, judgement: Judgement, policy: Policy, ms: float | None
) -> dict[str, Any]:
    """The figures of one judgement. ms: what one chunk of this arm takes here alone, where the
    judgement is `measured`

    groups: task or instruction -> a number for each episode, in the order of starts; baseline: the
    same of a guess that needs no model
    """
    policy = policy.with_steps(judgement.steps)
    if isinstance(judgement, ClosedLoopJudgement):
        return _closed_loop(judgement, cell.arm, policy, ms)
    if isinstance(judgement, OpenLoopJudgement):
        return _open_loop(policy, plan.source(judgement.data))
    if isinstance(judgement, VideoJudgement):
        return _video(policy, plan.source(judgement.data), judgement.clips)
    return _latency(judgement, policy)


def controlled(control: Control) -> dict[str, Any]:
    """What chance or a blind expert reaches in a closed loop, as `judged`."""
    judgement = control.judgement
    trials = trials_of(control.agent, judgement.tasks, judgement.episodes)  # type: ignore[arg-type]
    benchmark = find(judgement.benchmark)
    max_steps = judgement.max_steps or benchmark.steps
    replan = benchmark.embodiment.replan
    rules = Rules(benchmark, max_steps, replan, size=judgement.size, shift=judgement.shift)
    outcomes = run_trials(trials, _nobody, rules, simulators=1)
    return _successes(judgement, outcomes)


def _nobody(_observations: Sequence[Observation]) -> Any:
    raise AssertionError("neither chance nor blind replay asks for chunks")


def _closed_loop(
    judgement: ClosedLoopJudgement, arm: str, policy: Policy, ms: float | None
) -> dict[str, Any]:
    benchmark = find(judgement.benchmark)
    charged = _charged_ms(judgement, arm, policy, ms)
    charge = charge_of(policy, charged, benchmark.embodiment, judgement.chunking)
    outcomes = closed_loop(
        policy,
        benchmark,
        judgement.tasks,
        judgement.episodes,
        judgement.max_steps or benchmark.steps,
        # The cells beside it have the other cores.
        simulators=1,
        charge=charge,
        agents=("policy",),
        size=judgement.size,
        shift=judgement.shift,
    )
    return _successes(judgement, outcomes) | {
        "charged_ms": charged,
        "charged_steps": charge.steps(benchmark.embodiment.fps) if charge else 0,
        "delay": charge.delay if charge else 0,
    }


def _charged_ms(
    judgement: ClosedLoopJudgement, arm: str, policy: Policy, ms: float | None
) -> float:
    if isinstance(judgement.charge, Mapping):
        return judgement.charge[arm]
    if judgement.measured:
        assert ms is not None
        return float(judgement.charge.removesuffix("x")) * ms
    return latency_ms(judgement.charge, policy, "", find(judgement.benchmark))


def _successes(judgement: ClosedLoopJudgement, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    groups: dict[str, list[float | None]] = {task: [] for task in judgement.tasks}
    steps: dict[str, list[int]] = {task: [] for task in judgement.tasks}
    failures = []
    for outcome in outcomes:
        task = outcome.trial.task
        # None holds the place of its start, so that arms stay paired.
        groups[task].append(None if outcome.episode is None else float(outcome.episode.success))
        if outcome.episode is None:
            failures.append(f"{outcome.trial}: {outcome.failure}")
        else:
            steps[task].append(outcome.episode.steps)
    return {"groups": groups, "steps": steps, "failed_to_run": failures}


def _open_loop(policy: Policy, source: Source) -> dict[str, Any]:
    """groups, baseline, hold: the squared error of the policy, of the mean, and of holding still;
    share: the same three as shares of ranges; episodes: numbers of the episodes
    """
    found = open_loop(policy, source)
    numbers: dict[str, list[int]] = {}
    for episode in found.episodes:
        numbers.setdefault(episode.text, []).append(episode.index)
    return {
        **_errors((episode.text, episode.mse) for episode in found.episodes),
        "share": _errors((episode.text, episode.share) for episode in found.episodes),
        "episodes": numbers,
        "windows": found.windows,
    }


def _errors(episodes: Iterable[tuple[str, GuessErrors]]) -> dict[str, dict[str, list[float]]]:
    """Of each guess, by instruction."""
    found: dict[str, dict[str, list[float]]] = {"groups": {}, "baseline": {}, "hold": {}}
    for text, error in episodes:
        found["groups"].setdefault(text, []).append(error.policy)
        found["baseline"].setdefault(text, []).append(error.mean)
        found["hold"].setdefault(text, []).append(error.hold)
    return found


def _video(policy: Policy, source: Source, clips: int) -> dict[str, Any]:
    figures = video_figures(imagined(policy, source, clips, shuffled=True))
    groups: dict[str, list[float | None]] = {}
    heeded: dict[str, list[float | None]] = {}
    for clip in figures.pop("clips"):
        # Where nothing moves there is nothing to be better at.
        groups.setdefault(clip["text"], []).append(clip.get("gain_moving"))
        heeded.setdefault(clip["text"], []).append(clip.get("action_sensitivity"))
    return {"groups": groups, "action_sensitivity": heeded, "mean": figures}


def _latency(judgement: LatencyJudgement, policy: Policy) -> dict[str, Any]:
    times = chunk_times(policy, find(judgement.benchmark), judgement.repeats)
    return {"groups": {"chunk": times}, "median": float(np.median(times))}

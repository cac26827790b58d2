"""What would end a study after hours of training, or make it untrue: told before anything runs."""

from collections.abc import Iterator

from gwp.errors import GwpError
from gwp.sim.benchmarks import find
from gwp.sim.charged import Charge, check_fits
from gwp.sim.interface import Benchmark
from gwp.sim.record import TRIES
from pipelines.evaluation.simulation import check_run, trials_of
from pipelines.studies.cells.pieces import Cell, StudyPlan
from pipelines.studies.document.judgements import (
    ClosedLoopJudgement,
    Judgement,
    LatencyJudgement,
)
from pipelines.studies.document.study import SetConfig, Study


def require_tasks(study: Study) -> None:
    """GwpError for a task, or a shift, that its simulator does not have, and for a closed loop that
    it does not allow.
    """
    for one in study.data.values():
        find(one.benchmark).check(list(one.tasks))
    for judgement in study.judge:
        if isinstance(judgement, ClosedLoopJudgement):
            _require_allowed(judgement)


def _require_allowed(judgement: ClosedLoopJudgement) -> None:
    benchmark = find(judgement.benchmark)
    steps = judgement.max_steps or benchmark.steps
    try:
        check_run(
            benchmark,
            judgement.tasks,
            judgement.episodes,
            steps,
            None,
            size=judgement.size,
            shift=judgement.shift,
        )
    except GwpError as error:
        field = str(error).replace("--max-steps", "max_steps").replace("--", "")
        raise GwpError(f"judge.{judgement.name}: {field}") from error


def require_judgeable(plan: StudyPlan) -> None:
    """GwpError where an arm cannot be judged as asked, or has trained on what judges it."""
    for judgement in plan.study.judge:
        for cell in _one_of_each_arm(plan, judgement):
            if isinstance(judgement, ClosedLoopJudgement | LatencyJudgement):
                _require_robot(plan, cell, judgement.name, find(judgement.benchmark))
            if isinstance(judgement, ClosedLoopJudgement):
                _require_fitting(cell, judgement)
            for name in _seen(plan, cell):
                _require_apart(plan, judgement, name)


def _one_of_each_arm(plan: StudyPlan, judgement: Judgement) -> Iterator[Cell]:
    """Those of an arm see the same sets."""
    arms = {cell.arm: cell for cell in plan.cells.values() if judgement.of(cell.arm)}
    yield from arms.values()


def _require_robot(plan: StudyPlan, cell: Cell, name: str, benchmark: Benchmark) -> None:
    before = plan.shared[cell.parent].jobs if cell.parent else ()
    robots = dict.fromkeys(robot for job in (*before, cell.job) for robot in job.data.embodiments)
    if benchmark.embodiment.name not in robots:
        raise GwpError(
            f"judge.{name}: arm {cell.arm} does not know {benchmark.embodiment.name}, the robot of "
            f"{benchmark.name}, but {', '.join(robots) or 'none'}; give the judgement the `benchmark` "
            "of its recordings"
        )


def _require_fitting(cell: Cell, judgement: ClosedLoopJudgement) -> None:
    """GwpError where a latency that is known already takes longer than the chunks of an arm last."""
    if judgement.measured or judgement.chunking == "stop":
        return
    charge = judgement.charge
    ms = charge[cell.arm] if isinstance(charge, dict) else float(charge.removesuffix("ms"))
    try:
        fps = find(judgement.benchmark).embodiment.fps
        check_fits(Charge(ms), fps, cell.job.data.window.chunk)
    except GwpError as error:
        text = str(error).replace("--chunking stop", "chunking: stop")
        raise GwpError(f"judge.{judgement.name}, arm {cell.arm}: {text}") from error


def _seen(plan: StudyPlan, cell: Cell) -> list[str]:
    """Names of the sets that a cell, or what it starts from, trains on."""
    before = plan.shared[cell.parent].jobs if cell.parent else ()
    uris = {source.uri for job in (*before, cell.job) for source in job.data.sources}
    return [name for name in plan.study.data if plan.place(name) in uris]


def _require_apart(plan: StudyPlan, judgement: Judgement, seen: str) -> None:
    """seen: a set that one of its arms trains on"""
    one = plan.study.data[seen]
    if isinstance(judgement, ClosedLoopJudgement):
        starts = {trial.seed for trial in trials_of("policy", ["any"], judgement.episodes)}
        tasks = {*judgement.tasks} & {*one.tasks}
        if tasks and judgement.benchmark == one.benchmark and starts & _starts(one):
            raise GwpError(
                f"data.{seen}.seed: {one.seed} takes it into the starts of judge.{judgement.name}, from "
                f"{min(starts)} on; stay below 6000, or go above 10000"
            )
        return
    judged = getattr(judgement, "data", None)
    if judged is None:
        return
    if plan.place(judged) == plan.place(seen):
        raise GwpError(
            f"judge.{judgement.name}.data: {judged} is trained on; judge on a set that no stage sees"
        )
    other = plan.study.data[judged]
    same = one.benchmark == other.benchmark and {*one.tasks} & {*other.tasks}
    if same and _starts(one) & _starts(other):
        raise GwpError(
            f"data.{judged}.seed: it begins where data.{seen}, which is trained on, does; sets take "
            f"{TRIES} seeds for an episode, so keep {TRIES} * episodes apart"
        )


def _starts(one: SetConfig) -> set[int]:
    """Seeds that may be in a set; of one that others have made they are not known."""
    if one.uri is not None:
        return set()
    return set(range(one.seed, one.seed + TRIES * one.episodes))

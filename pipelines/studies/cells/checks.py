"""What would end a study after hours of training, or make it untrue: told before anything runs."""

from collections.abc import Iterator

from gwp.data.formats.files.listing import place_of
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import set_at
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.formats.robot_set import RobotSet
from gwp.data.ranges import parse_ranges
from gwp.data.source import Source
from gwp.data.sources import share_episodes
from gwp.errors import GwpError
from gwp.sim.benchmarks import find
from gwp.sim.charged import Charge, check_fits
from gwp.sim.interface import Benchmark
from gwp.sim.record import TRIES
from pipelines.evaluation.simulation import check_run, trials_of
from pipelines.jobs.train_job import TrainJob
from pipelines.studies.cells.pieces import Cell, StudyPlan
from pipelines.studies.cells.sets import first, key
from pipelines.studies.document.judgements import (
    ClosedLoopJudgement,
    Judgement,
    LatencyJudgement,
)
from pipelines.studies.document.sets import SetConfig
from pipelines.studies.document.study import Study


def require_tasks(study: Study) -> None:
    """GwpError for a task, or a shift, that its simulator does not have, and for a closed loop that
    it does not allow.
    """
    for one in study.data.values():
        if isinstance(one, SetConfig):
            find(one.benchmark).check(list(one.tasks))
    for judgement in study.judge:
        if isinstance(judgement, ClosedLoopJudgement):
            _require_allowed(judgement)


def require_there(plan: StudyPlan) -> None:
    """GwpError where recordings that are not made for the study are not there, or fewer of them than
    it asks for.
    """
    study, reader, seen = plan.study, FileReader(), plan.seen
    for name, one in study.data.items():
        if not isinstance(one, Source) or name not in seen:
            continue
        try:
            found = set_at(one, reader)
            numbers = _numbers(found)
            one.select(numbers)
        except GwpError as error:
            raise GwpError(
                f"data.{name}: {error} (--set data.{name}.uri=FOLDER says where it lies)"
            ) from error
        judged = any(getattr(judgement, "data", None) == name for judgement in study.judge)
        if not isinstance(found, RobotSet) and (judged or name == study.labelled):
            raise GwpError(f"data.{name}: {one.uri} holds plain videos, without states and actions")
        for count in study.demonstrations if name == study.labelled else ():
            there = len({*numbers} & {*_first(one, count)})
            if there < count:
                raise GwpError(
                    f"demonstrations: of the first {count} episodes that data.{name} chooses {there} are "
                    f"in {one.uri}; ask for fewer, or choose others with data.{name}.episodes"
                )


def _numbers(found: RobotSet | ClipSet) -> list[int]:
    """Of episodes, or of videos in the order of their names."""
    if isinstance(found, RobotSet):
        return [episode.index for episode in found.episodes]
    return list(range(len(found.clips)))


def _first(one: Source, count: int) -> list[int]:
    return [number for part in parse_ranges(first(one.episodes, count)) for number in part]


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
    for cell in {cell.arm: cell for cell in plan.cells.values()}.values():
        _require_validated(plan, cell)
    for judgement in plan.study.judge:
        for cell in _one_of_each_arm(plan, judgement):
            if isinstance(judgement, ClosedLoopJudgement | LatencyJudgement):
                _require_robot(plan, cell, judgement.name, find(judgement.benchmark))
            if isinstance(judgement, ClosedLoopJudgement):
                _require_fitting(cell, judgement)
            for name in _seen(plan, cell):
                _require_apart(plan, judgement, name)
            _require_unseen(plan, judgement, cell)


def _one_of_each_arm(plan: StudyPlan, judgement: Judgement) -> Iterator[Cell]:
    """Those of an arm see the same sets."""
    arms = {cell.arm: cell for cell in plan.cells.values() if judgement.of(cell.arm)}
    yield from arms.values()


def _require_robot(plan: StudyPlan, cell: Cell, name: str, benchmark: Benchmark) -> None:
    robots = dict.fromkeys(robot for job in _jobs(plan, cell) for robot in job.data.embodiments)
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


def _jobs(plan: StudyPlan, cell: Cell) -> tuple[TrainJob, ...]:
    """Of a cell, and of what it starts from."""
    before = plan.shared[cell.parent].jobs if cell.parent else ()
    return (*before, cell.job)


def _seen(plan: StudyPlan, cell: Cell) -> list[str]:
    """Names of the sets that a cell, or what it starts from, trains on."""
    keys = {key(plan.study, source) for job in _jobs(plan, cell) for source in job.data.sources}
    return [name for name in plan.study.data if key(plan.study, plan.source(name)) in keys]


def _require_apart(plan: StudyPlan, judgement: Judgement, seen: str) -> None:
    """seen: a set that one of its arms trains on"""
    one = plan.study.data[seen]
    if isinstance(one, Source):
        return
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
    if judged is None or isinstance(other := plan.study.data[judged], Source):
        return
    if plan.place(judged) == plan.place(seen):
        raise GwpError(
            f"judge.{judgement.name}.data: {judged} is trained on; judge on a set that no stage sees"
        )
    same = one.benchmark == other.benchmark and {*one.tasks} & {*other.tasks}
    if same and _starts(one) & _starts(other):
        raise GwpError(
            f"data.{judged}.seed: it begins where data.{seen}, which is trained on, does; sets take "
            f"{TRIES} seeds for an episode, so keep {TRIES} * episodes apart"
        )


def _require_unseen(plan: StudyPlan, judgement: Judgement, cell: Cell) -> None:
    """GwpError where a cell trains on an episode of the set that judges it."""
    name = getattr(judgement, "data", None)
    if name is None:
        return
    judged = plan.source(name)
    for source in (source for job in _jobs(plan, cell) for source in job.data.sources):
        if _overlap(judged, source):
            raise GwpError(
                f"judge.{judgement.name}.data: arm {cell.arm} trains on episodes of {name}; choose others "
                "with `episodes` in one of the sets"
            )


def _require_validated(plan: StudyPlan, cell: Cell) -> None:
    """GwpError where a stage validates by what it trains on."""
    for job in _jobs(plan, cell):
        sources = job.validation.sources if job.validation else ()
        if any(_overlap(one, other) for one in sources for other in job.data.sources):
            raise GwpError(
                f"arm {cell.arm}: a stage trains on episodes of its `validation`; choose others with "
                "`episodes` in one of the sets"
            )


def _overlap(one: Source, other: Source) -> bool:
    """Whether two sources hold the same episode, as far as is known without reading them."""
    for chosen in ({one.split, other.split}, {one.only, other.only}):
        # All of a set holds what a split or an outcome chooses; of two of them nothing is known.
        if len(chosen) > 1 and None not in chosen:
            return False
    return place_of(one.uri) == place_of(other.uri) and share_episodes(one, other)


def _starts(one: SetConfig) -> set[int]:
    """Seeds that may be in a set; of one that others have made they are not known."""
    if one.uri is not None:
        return set()
    return set(range(one.seed, one.seed + TRIES * one.episodes))

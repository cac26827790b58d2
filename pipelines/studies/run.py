"""A study from its document to its page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gwp import storage
from gwp.errors import GwpError
from gwp.policy.policy import Policy
from gwp.sim.benchmarks import find
from pipelines.console import event, warn
from pipelines.evaluation.charge import measured_ms
from pipelines.studies.cells.checks import require_judgeable, require_tasks, require_there
from pipelines.studies.cells.data import (
    make_caches,
    make_codec,
    record_missing,
    require_nested,
)
from pipelines.studies.cells.hashes import digest
from pipelines.studies.cells.judge import judged
from pipelines.studies.cells.pieces import Cell, StudyPlan
from pipelines.studies.cells.plan import make_plan
from pipelines.studies.cells.results import (
    FAILED,
    Standing,
    done,
    judged_uri,
    read,
    reason_of,
    result_uri,
    standing,
    write,
)
from pipelines.studies.cells.trial import ChunkOf, Task, broken, note
from pipelines.studies.cells.tune import run_trials, start
from pipelines.studies.document.judgements import ClosedLoopJudgement, LatencyJudgement
from pipelines.studies.document.study import Study
from pipelines.studies.outcome.figures import study_figures
from pipelines.studies.outcome.page import as_text, write_study
from pipelines.tracking.artefacts import set_note
from pipelines.tracking.runs import (
    STOPPED_TAG,
    UnansweredError,
    client,
    create_run,
    explained,
    finish_run,
    tracking_uri,
)

_DOCUMENT = "document.json"
_MEASURED = 3
"""Cells of an arm whose latency is measured before it is charged; their median counts."""


@dataclass(frozen=True)
class StudyResult:
    """A study that came to its end.

    figures: as in `study.json`; text: its tables; broken: what is not there, with the reason;
    page: where it lies
    """

    figures: dict[str, Any]
    text: str
    broken: dict[str, str]
    page: str


def run_study(
    study: Study, *, resume: bool = False, factor: float = 1.0, only: Sequence[str] = ()
) -> StudyResult:
    """Do all that a study asks for and is not there, and write what came of it.

    resume: go on with a study that is there; factor: how much of it is done; only: patterns of
    the cells that are done now. GwpError for a study that is there, without `resume`.
    """
    require_tasks(study)
    whole = make_plan(study, factor)
    require_judgeable(whole)
    require_there(whole)
    plan = whole.chosen(only)
    _open(whole, resume)
    record_missing(whole)
    require_nested(whole)
    at_once = start(plan.jobs)
    make_codec(whole)
    make_caches(plan)
    study_run = _study_run(whole)
    task = Task(plan, tracking_uri(), study_run, {})
    try:
        gone = _work(plan, task, at_once, whole)
        result = report(whole, gone)
    except BaseException as error:
        if study_run:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            finish_run(study_run, {STOPPED_TAG: reason_of(error)}, status)
        raise
    if study_run:
        _describe(study_run, result)
        state = "FAILED" if result.broken else "FINISHED"
        finish_run(study_run, {"gwp.page": result.page}, state)
    return result


def _describe(study_run: str, result: StudyResult) -> None:
    """Put the tables at the top of the study's page in MLflow."""
    try:
        with explained():
            set_note(client(), study_run, f"```\n{result.text}```")
    except GwpError as error:
        warn(f"{error}. The tables are in {result.page}")


def _work(plan: StudyPlan, task: Task, at_once: int, whole: StudyPlan) -> dict[str, str]:
    """All pieces of `plan`, a part of `whole`; those that failed with the reason."""
    before = standing(plan)
    for name in before.stale:
        event("stale", id=name, text="made by another document; it is made anew")
    event("study", study=whole.study.name, cells=len(plan.cells), at_once=at_once, place=whole.root)
    failed = _train(plan, before, task, at_once)
    _alone(plan)
    return failed | charge(plan, task, at_once)


def report(plan: StudyPlan, failed: Mapping[str, str]) -> StudyResult:
    """Figures, table and page of what there is. failed: pieces whose trial failed, and why"""
    now = standing(plan)
    broken = now.broken()
    # Of a process that was killed while it judged nothing is on disk.
    told = {name.split()[0] for name in broken}
    broken |= {name: why for name, why in failed.items() if name not in told}
    figures = study_figures(plan, now) | {"broken": broken}
    page = write_study(plan, figures)
    return StudyResult(figures, as_text(figures), broken, page)


def _open(plan: StudyPlan, resume: bool) -> None:
    uri = storage.join(plan.root, _DOCUMENT)
    there = storage.exists(uri)
    if there and not resume:
        raise GwpError(
            f"{plan.root}: this study is there already; --resume goes on with it, and does again "
            "what another document made (or give the study another name)"
        )
    document = plan.study.model_dump(mode="json")
    storage.write_bytes(uri, json.dumps(document, indent=1).encode())


def _study_run(plan: StudyPlan) -> str | None:
    """The MLflow run that those of all cells are below; None while MLflow is away."""
    name = plan.study.name
    # Parameters never change in MLflow, as a document may: it is told in the note.
    params = {"study": name}
    try:
        return create_run(name, f"study/{name}", params, plan.root, key=digest(plan.root))
    except UnansweredError as error:
        warn(f"{error}. The study goes on, and its runs stand side by side there")
        return None


def _train(plan: StudyPlan, before: Standing, task: Task, at_once: int) -> dict[str, str]:
    """Shared stages first; then cells and controls, each judged by all that runs beside others."""
    failed = run_trials([n for n in plan.shared if not before.finished(n)], task, at_once)
    after = standing(plan)
    cells = []
    for cell in plan.cells.values():
        lost = cell.parent and not after.finished(cell.parent)
        if lost and not after.finished(cell.id):
            why = after.pieces.get(cell.parent or "", {}).get("error", "it was not trained")
            broken(plan, cell, GwpError(f"{cell.parent}, which it starts from, broke: {why}"))
        elif _left(plan, cell, after):
            cells.append(cell.id)
    controls = [name for name in plan.controls if not after.finished(name)]
    return failed | run_trials([*cells, *controls], task, at_once)


def _left(plan: StudyPlan, cell: Cell, now: Standing) -> bool:
    """Whether something of a cell can be made while others run beside it."""
    if not now.finished(cell.id):
        return True
    return any(
        judgement.of(cell.arm)
        and not isinstance(judgement, LatencyJudgement)
        and not getattr(judgement, "measured", False)
        and now.judged[cell.id].get(judgement.name, {"state": FAILED})["state"] == FAILED
        for judgement in plan.study.judge
    )


def _alone(plan: StudyPlan) -> None:
    """Latencies, of one cell after the other, while nothing else of the study runs."""
    for cell in plan.cells.values():
        result = read_done(plan, cell)
        for judgement in plan.study.judge:
            made_by = plan.judgement_hash(cell, judgement)
            uri = judged_uri(plan, cell, judgement)
            wanted = isinstance(judgement, LatencyJudgement) and judgement.of(cell.arm)
            if result is None or not wanted or done(read(uri), made_by):
                continue
            try:
                figures = judged(plan, cell, judgement, Policy.load(result["bundle"]), None)
            except Exception as error:  # noqa: BLE001  told of this judgement
                write(uri, made_by, {"error": reason_of(error)}, FAILED)
                continue
            write(uri, made_by, figures)
            note(result["run_id"], judgement.name, figures)


def read_done(plan: StudyPlan, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell; None where it is not done."""
    result = read(result_uri(plan, cell))
    return result if done(result, cell.hash) else None


def charge(plan: StudyPlan, task: Task, at_once: int) -> dict[str, str]:
    """Closed loops that pay what a chunk takes here: measured for each arm, then driven."""
    late = [
        one for one in plan.study.judge if isinstance(one, ClosedLoopJudgement) and one.measured
    ]
    now = standing(plan)
    ms: dict[ChunkOf, float] = {}
    left: dict[str, None] = {}
    for judgement in late:
        for cell in plan.cells.values():
            state = now.judged[cell.id].get(judgement.name, {}).get("state", FAILED)
            if not judgement.of(cell.arm) or not now.finished(cell.id) or state != FAILED:
                continue
            key = cell.arm, judgement.steps, judgement.benchmark
            try:
                ms[key] = ms.get(key) or _arm_ms(plan, *key)
            except Exception as error:  # noqa: BLE001  told of this judgement
                made_by = plan.judgement_hash(cell, judgement)
                why = {"error": reason_of(error)}
                write(judged_uri(plan, cell, judgement), made_by, why, FAILED)
                continue
            left[cell.id] = None
    return run_trials(list(left), replace(task, ms=ms), at_once)


def _arm_ms(plan: StudyPlan, arm: str, steps: int, benchmark: str) -> float:
    """Milliseconds of one chunk of an arm: the median of some of its cells."""
    times: list[float] = []
    for cell in plan.cells.values():
        result = read_done(plan, cell) if cell.arm == arm and len(times) < _MEASURED else None
        if result:
            policy = Policy.load(result["bundle"]).with_steps(steps)
            times.append(measured_ms(policy, find(benchmark)))
    return float(np.median(times))

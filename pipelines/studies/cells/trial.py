"""One piece of a study, as a trial of Ray Tune does it: in a process of its own, with one thread.

What it makes is on disk; to Tune it says only what became of it. A piece that breaks is a result,
too, so that no trial ends a study.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gwp import storage
from gwp.errors import GwpError
from pipelines.studies.cells.pieces import Cell, Control, Shared, StudyPlan
from pipelines.studies.cells.plan import parameters
from pipelines.studies.cells.results import (
    DONE,
    FAILED,
    done,
    judged_uri,
    read,
    reason_of,
    result_uri,
    write,
)

ERROR = "validation/action_error"
"""Figure of a checkpoint: error of actions, in units of a range."""

ChunkOf = tuple[str, int, str]
"""Arm, solver steps and benchmark: what the time of a chunk depends on."""


@dataclass(frozen=True)
class Task:
    """What every trial is given.

    tracking: of MLflow; study_run: its run, of which those of all cells are children, None while
    MLflow is away; ms: milliseconds of a chunk, where they are measured: judgements that need them
    are made then
    """

    plan: StudyPlan
    tracking: str
    study_run: str | None
    ms: Mapping[ChunkOf, float]


def run_piece(config: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Do the piece `config["piece"]` and say what became of it: {"state", "error"}."""
    os.environ["MLFLOW_TRACKING_URI"] = task.tracking
    import torch

    # Cells share the cores of a machine.
    torch.set_num_threads(1)
    piece = task.plan.pieces[config["piece"]]
    begin = time.time()
    try:
        if isinstance(piece, Shared):
            _train_shared(piece, task)
        elif isinstance(piece, Cell):
            return _train_and_judge(piece, task)
        else:
            _control(piece, task)
    except Exception as error:  # noqa: BLE001  whatever breaks is told of this piece
        broken(task.plan, piece, error, time.time() - begin)
        return {"state": FAILED, "error": reason_of(error)}
    return {"state": DONE, "error": ""}


def broken(
    plan: StudyPlan, piece: Shared | Cell | Control, error: BaseException, seconds: float = 0.0
) -> None:
    """Note that a piece broke, and why. What is done stays: it was something behind it."""
    if done(read(result_uri(plan, piece)), piece.hash):
        return
    figures = {"error": reason_of(error), "seconds": round(seconds, 1)}
    write(result_uri(plan, piece), piece.hash, figures, FAILED)


def _train_shared(piece: Shared, task: Task) -> None:
    from pipelines.training.train import train

    results = []
    for job in piece.jobs:
        results.append(train(job))
        _nest(results[-1].run_id, task)
    figures = {
        "steps": sum(result.steps for result in results),
        "seconds": round(sum(result.seconds for result in results), 1),
        "runs": [result.uri for result in results],
        "run_ids": [result.run_id for result in results],
    }
    write(result_uri(task.plan, piece), piece.hash, figures)


def _control(piece: Control, task: Task) -> None:
    from pipelines.studies.cells.judge import controlled

    begin = time.time()
    figures = {"agent": piece.agent, **controlled(piece)}
    seconds = {"seconds": round(time.time() - begin, 1)}
    write(result_uri(task.plan, piece), piece.hash, figures | seconds)


def _train_and_judge(cell: Cell, task: Task) -> dict[str, Any]:
    uri = result_uri(task.plan, cell)
    result = read(uri)
    if not done(result, cell.hash):
        figures = _trained(cell, task)
        write(uri, cell.hash, figures)
        result = read(uri)
    assert result is not None
    errors = _judge(cell, result, task)
    return {"state": FAILED if errors else DONE, "error": "; ".join(errors)}


def _trained(cell: Cell, task: Task) -> dict[str, Any]:
    from pipelines.training.export import export
    from pipelines.training.train import train

    trained = train(cell.job)
    _nest(trained.run_id, task)
    # By its hash: a bundle never changes.
    place = storage.join(task.plan.root, "cells", cell.id, f"bundle-{cell.hash}")
    policy_id = _policy_id(place) or export(trained.uri, place)
    return {
        "arm": cell.arm,
        "demonstrations": cell.demonstrations,
        "seed": cell.seed,
        "run": trained.uri,
        "run_id": trained.run_id,
        "policy_id": policy_id,
        "bundle": place,
        "steps": trained.steps,
        "samples": trained.samples,
        "parameters": parameters(cell.job),
        "seconds": round(trained.seconds, 1),
        **_validated(trained.uri, trained.steps),
    }


def _policy_id(place: str) -> str | None:
    """Of a bundle that an interrupted trial has exported already."""
    from gwp.policy.bundle import MANIFEST, read_bundle

    if not storage.exists(storage.join(place, MANIFEST)):
        return None
    with TemporaryDirectory() as scratch:
        return read_bundle(storage.download(place, Path(scratch) / "bundle")).id


def _validated(run: str, steps: int) -> dict[str, Any]:
    """What validation said of a run: `curve`, (step, error of actions) of its checkpoints, empty where
    it has none; `validation`, all figures of the last one.
    """
    from pipelines.tracking.curves import read_figures, read_verdicts

    told = [*read_figures(run, 0, steps), read_verdicts(run)]
    every = [(key, value, step) for part in told for key, value, _, step in part]
    curve = {step: value for key, value, step in every if key == ERROR}
    last = {k: value for k, value, step in every if step == steps and k.startswith("validation")}
    return {"curve": sorted(curve.items()), "validation": last}


def _judge(cell: Cell, result: Mapping[str, Any], task: Task) -> list[str]:
    """Make the judgements that are not there. What broke, one line each."""
    from gwp.policy.policy import Policy
    from pipelines.studies.cells.judge import judged

    plan = task.plan
    policy = None
    errors = []
    for judgement in plan.study.judge:
        # Latencies are measured when nothing runs beside them, and charged when they are known.
        benchmark = getattr(judgement, "benchmark", "")
        ms = task.ms.get((cell.arm, judgement.steps, benchmark))
        later = judgement.kind == "latency" or (
            getattr(judgement, "measured", False) and ms is None
        )
        made_by = plan.judgement_hash(cell, judgement)
        uri = judged_uri(plan, cell, judgement)
        if later or not judgement.of(cell.arm) or done(read(uri), made_by):
            continue
        begin = time.time()
        try:
            policy = policy or Policy.load(result["bundle"])
            figures = judged(plan, cell, judgement, policy, ms)
            write(uri, made_by, figures | {"seconds": round(time.time() - begin, 1)})
            note(result["run_id"], judgement.name, figures)
        except Exception as error:  # noqa: BLE001  the other judgements are made all the same
            write(uri, made_by, {"error": reason_of(error)}, FAILED)
            errors.append(f"{judgement.name}: {reason_of(error)}")
    return errors


def note(run_id: str | None, name: str, figures: Mapping[str, Any]) -> None:
    """Tell MLflow the mean of a judgement, beside the run that it judges."""
    from pipelines.pages.intervals import mean_of
    from pipelines.tracking.runs import client, explained

    if not run_id:
        return
    value = mean_of(figures["groups"])
    try:
        with explained():
            if value is not None:
                client().log_metric(run_id, f"judge/{name}", value)
    except GwpError:
        # Results are on disk, and told by the study's page.
        return


def _nest(run_id: str, task: Task) -> None:
    """Make a run a child of the study's."""
    from pipelines.tracking.runs import put_below

    if run_id and task.study_run:
        put_below(run_id, task.study_run)

"""A process that judges beside the steps may die, or find no place: training does not mind, and what
had no verdict gets it later.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray.util.state import list_actors

from clusters.mini import MiniCluster
from gwp import storage
from pipelines.console import heard
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.registry import BEST_TAG
from pipelines.tracking.runs import client, metric_history
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.checkpoint.retention import best
from pipelines.training.checkpoint.table import read_table
from pipelines.training.checkpoint.verdict import VERDICT, awaited
from pipelines.training.control.watch import failures, worker_progress
from pipelines.training.judge import beside
from pipelines.training.train import StageResult, train
from tests.cluster.test_stops import job

SERVE = "{cpus: 0.5, pool: serve}"


def judging(mini: MiniCluster, folder: Path, name: str, worker: str, *more: str) -> TrainJob:
    """A run that one episode trains and the other judges."""
    source = f"uri: {mini.bucket}/stops/set, embodiment: arm"
    held_out = f"{{sources: [{{{source}, episodes: '1'}}], samples: 5, worker: {worker}}}"
    sets = [f"data.sources=[{{{source}, episodes: '0'}}]", f"validation={held_out}", *more]
    return job(mini, folder, name, *sets)


def trained(found: TrainJob) -> tuple[StageResult, list[str]]:
    """The finished run, and what was warned of validation."""
    warned: list[str] = []

    def note(name: str, fields: dict[str, Any]) -> None:
        if name == "warning" and "validation" in fields["text"]:
            warned.append(fields["text"])

    with heard(note):
        result = train(found)
    assert not awaited(result.uri)
    return result, warned


def judged(run: str) -> set[int]:
    names = [n for n in storage.list_files(f"{run}/checkpoints") if n.endswith(VERDICT)]
    return {int(name.split("_")[1].split("-")[0]) for name in names}


def after(run: str, known: set[int]) -> set[int]:
    """The steps that are judged, as soon as others are than those known."""
    limit = time.monotonic() + 300
    while not judged(run) - known:
        assert time.monotonic() < limit
        time.sleep(0.05)
    return judged(run)


def validator() -> int:
    """Its process."""
    (actor,) = list_actors(filters=[("class_name", "=", "Validator"), ("state", "=", "ALIVE")])
    assert actor.pid
    return actor.pid


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_that_is_killed_is_started_again_and_no_step_is_lost(
    mini: MiniCluster, tmp_path: Path
) -> None:
    found = judging(
        mini, tmp_path, "killed", SERVE, "run.steps=160", "run.checkpoint_every=16", "run.keep=20"
    )
    run = f"{mini.bucket}/stops/killed"
    at: list[int] = []

    def kill() -> None:
        at.extend(after(run, set()))
        os.kill(validator(), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result, warned = trained(found)
    killer.join(10)
    assert at
    # One line, and the workers took no notice.
    (line,) = warned
    assert "its process is gone" in line
    assert "it is tried again at the next checkpoint" in line
    assert (result.steps, failures(run)) == (160, [])
    later = judged(run) - set(at)
    assert 160 in later
    # Of each that has a verdict the figures are in MLflow, at its step; and no other.
    losses = {m.step: m.validation for _, m in find_committed(run) if m.validation is not None}
    assert losses.keys() == judged(run)
    assert dict(metric_history(result.run_id, "validation_loss")) == losses
    assert client().get_run(result.run_id).data.tags[BEST_TAG] == best(find_committed(run))
    assert {r["step"]: r["validation"] for r in read_table(run) if r["validation"]} == losses


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_it_lives_through_a_restart_of_the_workers(mini: MiniCluster, tmp_path: Path) -> None:
    found = judging(
        mini, tmp_path, "outlived", SERVE, "run.steps=160", "run.checkpoint_every=16", "run.keep=20"
    )
    run = f"{mini.bucket}/stops/outlived"
    processes: list[int] = []

    def kill() -> None:
        known = after(run, set())
        processes.append(validator())
        os.kill(worker_progress(run)[1]["pid"], signal.SIGKILL)
        # Of checkpoints that the workers take when they are back, too.
        while 160 not in (known := after(run, known)):
            processes.append(validator())

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result, warned = trained(found)
    killer.join(10)
    assert warned == []
    assert (result.steps, len(failures(run))) == (160, 1)
    assert len(processes) > 1
    assert len(set(processes)) == 1
    losses = {m.step: m.validation for _, m in find_committed(run) if m.validation is not None}
    assert 160 in losses
    assert dict(metric_history(result.run_id, "validation_loss")) == losses


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_one_without_a_place_is_told_of_and_the_verdict_comes_when_there_is_one(
    mini: MiniCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No machine here has a GPU. The same run with another worker judges what was left."""
    lasting = ["run.steps=60", "run.checkpoint_every=20", "run.keep=1"]
    with monkeypatch.context() as impatient:
        impatient.setattr(beside, "_ROOM_S", 2.0)
        result, warned = trained(judging(mini, tmp_path, "nowhere", "{gpus: 1}", *lasting))
    assert result.steps == 60
    assert warned[-1].startswith("validation: no machine in any pool has room for its worker")
    assert "the same command asks again" in warned[-1]
    # At most once while it trained.
    assert len(warned) <= 2
    assert judged(result.uri) == set()
    assert [m.step for _, m in find_committed(result.uri)] == [60]
    assert metric_history(result.run_id, "validation_loss") == []

    again, warned = trained(judging(mini, tmp_path, "nowhere", SERVE, *lasting))
    assert (again.run_id, warned) == (result.run_id, [])
    assert judged(result.uri) == {60}
    ((uri, manifest),) = find_committed(result.uri)
    assert metric_history(result.run_id, "validation_loss") == [(60, manifest.validation)]
    run = client().get_run(result.run_id)
    assert (run.info.status, run.data.tags[BEST_TAG]) == ("FINISHED", uri)

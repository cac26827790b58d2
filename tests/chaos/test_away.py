"""MLflow and object storage go away while a run trains, and come back: it ends as one that
nothing happened to.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from clusters.mini import MiniCluster
from gwp import storage
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.runs import client
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from pipelines.training.train import StageResult, train
from tests.support.dot import job, weights
from tests.support.servers import silent

STEPS, EVERY = 40, 10
PAUSE_S = 12.0


def short(mini: MiniCluster, uri: str, name: str, *more: str) -> TrainJob:
    return job(mini, uri, name, f"run.steps={STEPS}", f"run.checkpoint_every={EVERY}", *more)


@pytest.fixture(scope="module")
def calm(mini: MiniCluster, recordings: str) -> tuple[StageResult, dict[str, np.ndarray]]:
    result = train(short(mini, recordings, "undisturbed"))
    return result, weights(result)


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)


def until(holds: Callable[[], bool], within_s: float = 300.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def steps(run: str) -> int:
    """Of the slowest rank."""
    reports = worker_progress(run)
    return min((r["step"] for r in reports), default=0) if len(reports) == 2 else 0


class Aside:
    """Works in a thread beside the training; what went wrong there is raised at the end."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.errors: list[BaseException] = []
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  raised by `end`
            self.errors.append(error)

    def end(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        for error in self.errors:
            raise error


@pytest.mark.timeout(600)
def test_mlflow_is_away_at_the_start_and_a_worker_is_killed(
    mini: MiniCluster,
    recordings: str,
    calm: tuple[StageResult, dict[str, np.ndarray]],
) -> None:
    """It is away until the first checkpoint is whole, comes back, and is away again when a worker
    dies.
    """
    shaken = short(mini, recordings, "unseen", "cluster.max_failures=1")
    run = run_uri(shaken)
    mini.mlflow.stop()

    def work() -> None:
        until(lambda: len(find_committed(run)) >= 1)
        until(lambda: steps(run) >= EVERY + 3)
        os.kill(worker_progress(run)[1]["pid"], signal.SIGKILL)
        until(lambda: bool(resumptions(run)))
        mini.mlflow.start()
        mini.mlflow.wait(120)

    aside = Aside(work)
    try:
        result = train(shaken)
    finally:
        aside.end()
    assert same(weights(result), calm[1])
    (found,) = client().search_runs(
        [client().get_experiment_by_name(shaken.run.experiment).experiment_id],
        f"tags.`gwp.place` = '{result.uri}'",
    )
    assert (found.info.run_id, found.info.status) == (result.run_id, "FINISHED")
    for key in ("loss", "learning_rate", "samples_seen"):
        counts = Counter(m.step for m in client().get_metric_history(result.run_id, key))
        assert counts == dict.fromkeys(range(1, STEPS + 1), 1)
    losses, theirs = (
        {m.step: m.value for m in client().get_metric_history(r.run_id, "loss")}
        for r in (result, calm[0])
    )
    assert losses == theirs


@pytest.mark.timeout(600)
def test_storage_that_goes_away_changes_nothing_but_the_time(
    mini: MiniCluster,
    recordings: str,
    calm: tuple[StageResult, dict[str, np.ndarray]],
) -> None:
    """It is away while the run is prepared, around a checkpoint, and while the end is written."""
    paused = short(mini, recordings, "paused", "cluster.max_failures=0")
    run = run_uri(paused)
    pauses: dict[str, tuple[float, float]] = {}

    def away(where: str) -> None:
        begin = time.time()
        with silent(mini.s3):
            time.sleep(PAUSE_S)
            pauses[where] = (begin, time.time())

    def work() -> None:
        # Taken before anything is prepared.
        until(lambda: bool(storage.list_files(f"{run}/lease")))
        away("prepare")
        until(lambda: steps(run) >= EVERY - 1)
        away("checkpoint")
        until(lambda: any(m.step == STEPS for _, m in find_committed(run)))
        away("final")

    aside = Aside(work)
    try:
        result = train(paused)
    finally:
        aside.end()
    assert same(weights(result), calm[1])
    assert not resumptions(run)
    begin, end = pauses["checkpoint"]
    times = [m.timestamp / 1000 for m in client().get_metric_history(result.run_id, "loss")]
    meanwhile = sum(begin < moment < end for moment in times)
    # Beyond the next checkpoint that is due, or to the last step.
    assert meanwhile > EVERY, meanwhile

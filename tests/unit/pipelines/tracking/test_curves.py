"""Curves hold each step once and all of them, whatever became of MLflow, of a worker or of its
machine; and MLflow costs training nothing.
"""

import itertools
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.tracking import run_log
from pipelines.tracking import runs as tracking
from pipelines.tracking.curves import STEP_TAG, Curves, read_figures, write_figures
from pipelines.tracking.run_log import RunLog


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One sqlite store for all tests: creating its schema takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def new_run(folder: Path) -> str:
    return tracking.create_run("gwp", "a", {}, str(folder))


def history(run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracking.client().get_metric_history(run_id, key)]


class Attempt:
    """A rank 0 that logs `10 * number + step` as the loss of each step."""

    def __init__(self, run_id: str, uri: str, folder: Path, number: int, resumed: int = 0) -> None:
        self.log = RunLog(lambda: run_id, uri, str(folder), every_s=60.0)
        self.number = number
        self.step = resumed
        if resumed:
            self.log.goes_on(resumed)

    def take(self, until: int) -> None:
        while self.step < until:
            self.step += 1
            self.log.log_metrics(self.step, {"loss": 100.0 * self.number + self.step})

    def checkpoint(self) -> None:
        self.log.cover(self.step, self.number)
        self.log.set_tags({STEP_TAG: str(self.step)})


AWAY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the waits of the HTTP client."""

    def client(uri: str) -> Any:
        if uri == AWAY:
            raise ConnectionRefusedError
        return tracking.client(uri)

    monkeypatch.setattr(run_log, "client", client)
    monkeypatch.setattr(run_log, "_RETRY_S", 0.0)


@pytest.mark.parametrize("away", itertools.product([False, True], repeat=3))
def test_each_step_is_there_once(away: tuple[bool, bool, bool], store: str, tmp_path: Path) -> None:
    """Two attempts are killed behind a checkpoint, the third ends; MLflow is away during any of
    them, and at the end it is there.
    """
    run_id = new_run(tmp_path)
    for number, gone in enumerate(away):
        attempt = Attempt(run_id, AWAY if gone else store, tmp_path, number, 10 * number)
        attempt.take(10 * number + 5)
        # A round in the middle: what comes behind it waits for the next.
        assert attempt.log.flush() is not gone
        attempt.take(10 * number + 10)
        attempt.checkpoint()
        attempt.take(10 * number + 13)
        # Sent, and lost with the process: these steps are taken again.
        if number != 1:
            attempt.log.flush()
    Curves(tracking.client(), run_id).fill(str(tmp_path), 30)
    counts = Counter(step for step, _ in history(run_id))
    assert {step: counts[step] for step in range(1, 31)} == dict.fromkeys(range(1, 31), 1)
    # What was taken again kept its first figure.
    values = dict(history(run_id))
    assert values[11] == (11.0 if not away[0] else 111.0)


def test_figures_from_before_a_change_of_the_job_do_not_count(store: str, tmp_path: Path) -> None:
    run_id = new_run(tmp_path)
    now = time.time_ns() // 1_000_000
    Curves(tracking.client(), run_id).send([("loss", 1.0, now - 1000, 5)])
    Curves(tracking.client(), run_id, since=now - 10).send([("loss", 2.0, now, 5)])
    Curves(tracking.client(), run_id, since=now - 10).send([("loss", 3.0, now + 9, 5)])
    assert history(run_id) == [(5, 1.0), (5, 2.0)]
    assert tracking.metric_history(run_id, "loss") == [(5, 2.0)]


def test_memory_holds_what_no_checkpoint_has(store: str, tmp_path: Path) -> None:
    run_id = new_run(tmp_path)
    attempt = Attempt(run_id, AWAY, tmp_path, 1)
    for step in range(10, 1001, 10):
        attempt.take(step)
        attempt.checkpoint()
        attempt.log.flush()
    assert not attempt.log._points
    assert sum(len(points) for points in read_figures(str(tmp_path), 0, 1000)) == 1000
    assert [p[0][3] for p in read_figures(str(tmp_path), 980, 990)] == [981]


def test_a_run_is_opened_when_mlflow_is_back(store: str, tmp_path: Path) -> None:
    answers: list[Any] = [tracking.UnansweredError("away"), tracking.UnansweredError("away")]

    def opened() -> str:
        if answers:
            raise answers.pop()
        return new_run(tmp_path)

    log = RunLog(opened, store, str(tmp_path), every_s=60.0)
    log.log_metrics(1, {"loss": 1.0})
    assert not log.flush()
    log.log_metrics(2, {"loss": 2.0})
    log.cover(2, 1)
    assert not log.flush()
    log.log_metrics(3, {"loss": 3.0})
    assert log.flush()
    log.close()
    assert history(log._run_id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_an_attempt_opens_its_run_again(store: str, tmp_path: Path) -> None:
    run_id = new_run(tmp_path)
    tracking.finish_run(run_id, {}, "FAILED")
    log = RunLog(lambda: run_id, store, str(tmp_path))
    log.close()
    assert tracking.client().get_run(run_id).info.status == "RUNNING"


def test_a_hanging_server_holds_nobody_up(silent: str, tmp_path: Path) -> None:
    log = RunLog(lambda: "0" * 32, silent, str(tmp_path), batch=1)
    start = time.monotonic()
    for step in range(200):
        log.log_metrics(step, {"loss": 0.0})
    log.cover(199, 1)
    assert not log.flush(0.3)
    log.close(timeout_s=0.3)
    assert time.monotonic() - start < 5.0
    (points,) = read_figures(str(tmp_path), -1, 199)
    assert [point[3] for point in points] == list(range(200))


def test_files_of_several_attempts_come_in_order(tmp_path: Path) -> None:
    for step, attempt in ((20, 1), (30, 1), (20, 2), (3000000, 2)):
        write_figures(str(tmp_path), step, attempt, [("loss", float(attempt), 1, step)])
    (tmp_path / "figures" / "step_000020-a1.json.part").write_text("half")
    found = [points[0] for points in read_figures(str(tmp_path), 19, 3000000)]
    assert [(step, value) for _, value, _, step in found] == [
        (20, 1.0),
        (20, 2.0),
        (30, 1.0),
        (3000000, 2.0),
    ]

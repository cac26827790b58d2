"""Ray Train is started again when what it lost is its own, and as often as workers may fail."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from gwp.errors import GwpError
from pipelines.training import workers as workers_module
from pipelines.training.control.failures import lost_of_ray
from pipelines.training.control.stopped import StoppedError
from pipelines.training.measure.startup import StartUp
from pipelines.training.workers import run_workers
from tests.unit.pipelines.training.test_prepare import job

FULL = ControllerError(OutOfMemoryError("8 worker(s) were killed\nMemory on the node ..."))
GONE = ActorDiedError()
WAITS = ControllerError(WorkerGroupStartupTimeoutError(2))
CLOSED = WorkerGroupError("traceback", {0: RuntimeError("Connection closed by peer")})


class Starts:
    """What becomes of each start of Ray Train: an error of it, or None."""

    def __init__(self, run: Path, *ends: BaseException | None) -> None:
        self._run = run
        self._ends = list(ends)
        # How many failures of workers each was allowed.
        self.allowed: list[int] = []

    def __call__(self, _: Any, __: Any, max_failures: int, ___: Any) -> None:
        self.allowed.append(max_failures)
        end = self._ends.pop(0)
        if end:
            raise end


def run(
    folder: Path, patch: pytest.MonkeyPatch, most: int, *ends: BaseException | None
) -> tuple[list[int], list[str]]:
    """Allowed failures at each start, and what was warned of."""
    starts, warned = Starts(folder, *ends), list[str]()
    patch.setattr(workers_module, "_start", starts)
    patch.setattr(workers_module, "warn", warned.append)
    prepared: Any = SimpleNamespace(uri=str(folder), job=job(f"cluster.max_failures={most}"))
    record: Any = None
    run_workers(prepared, record, StartUp())
    return starts.allowed, warned


def test_what_ray_lost_is_told_from_what_workers_did() -> None:
    def kind(error: BaseException) -> str | None:
        lost = lost_of_ray(error)
        assert lost is None or "\n" not in lost["text"]
        return lost and lost["kind"]

    assert kind(FULL) == "memory"
    assert kind(GONE) == kind(ControllerError(RayActorError())) == "killed"
    assert kind(WorkerGroupError("x", {0: OutOfMemoryError("x")})) is None
    assert kind(ControllerError(RuntimeError("x"))) is None


def test_ray_train_is_started_again_when_its_own_processes_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, warned = run(tmp_path, monkeypatch, 3, FULL, GONE, None)
    assert allowed == [3, 2, 1]
    assert "memory ran out on a machine" in warned[0]
    assert "a process of Ray is gone" in warned[1]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_it_is_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    with pytest.raises(GwpError, match="the workers failed at each of") as caught:
        run(tmp_path, monkeypatch, most, *[FULL] * (most + 1))
    assert "memory ran out on a machine" in str(caught.value)
    assert "the same command goes on from the last checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_failures_of_workers_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that Ray Train mended itself before it went."""
    starts = Starts(tmp_path, GONE, None)

    def start(*args: Any) -> None:
        (tmp_path / "events").mkdir(exist_ok=True)
        for name in ("failed-1", "failed-2"):
            note = {"kind": "killed", "text": "", "time": 1.0}
            (tmp_path / "events" / f"{name}.json").write_text(json.dumps(note))
        starts(*args)

    monkeypatch.setattr(workers_module, "_start", start)
    prepared: Any = SimpleNamespace(uri=str(tmp_path), job=job("cluster.max_failures=3"))
    record: Any = None
    run_workers(prepared, record, StartUp())
    assert starts.allowed == [3, 1]


def test_room_is_waited_for_without_end_and_without_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, warned = run(tmp_path, monkeypatch, 0, WAITS, WAITS, WAITS, None)
    assert allowed == [0, 0, 0, 0]
    assert warned == ["no machine has room for all 2 workers: waiting"] * 3


def test_what_lasts_and_what_is_wrong_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoppedError, match="step 3"):
        run(tmp_path, monkeypatch, 3, ControllerError(StoppedError("step 3: the loss is nan")))
    with pytest.raises(GwpError, match="rank 0: RuntimeError: Connection closed"):
        run(tmp_path, monkeypatch, 3, CLOSED)
    # Of a fault in the program the traceback says more.
    with pytest.raises(ControllerError):
        run(tmp_path, monkeypatch, 3, ControllerError(TypeError("x")))


def test_an_interrupt_between_two_starts_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        KeyboardInterrupt, match="the same command goes on from the last checkpoint"
    ):
        run(tmp_path, monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match=r"^stopped at step 7$"):
        run(tmp_path, monkeypatch, 3, KeyboardInterrupt("stopped at step 7"))

"""What is asked of a run reaches rank 0, is answered once, and is not waited for for ever."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gwp import storage
from pipelines.training.control import stop
from pipelines.training.control.stop import (
    StopWatch,
    ask_to_stop,
    forget_asked,
    save_and_pause,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_POLL_S", 0.01)
    monkeypatch.setattr(stop, "_PAUSE_S", 0.02)


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def test_a_resize_waits_for_the_checkpoint_and_each_one_is_asked_for_anew(tmp_path: Path) -> None:
    run = str(tmp_path)
    watch, other = StopWatch(run, 0, True), StopWatch(run, 1, True)
    for _ in range(2):
        told: list[bool] = []
        asking = threading.Thread(target=lambda t=told: t.append(save_and_pause(run, 20)))
        asking.start()
        until(lambda: watch.flags()[1])
        assert not watch.flags()[0]
        assert other.flags() == (False, False, False)
        assert asking.is_alive()
        # The steps' part: a checkpoint, whole. Nobody ends us, so it goes on.
        watch.saved()
        asking.join(20)
        assert told == [True]
        assert not watch.flags()[1]
    watch.close()


def test_a_resize_goes_on_when_nobody_answers(tmp_path: Path) -> None:
    assert not save_and_pause(str(tmp_path), 0.05)
    assert not storage.list_files(str(tmp_path))


def test_storage_that_is_away_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(storage, "write_bytes", away)
    assert not save_and_pause(str(tmp_path), 20)


def test_a_run_that_ends_answers_whoever_waits(tmp_path: Path) -> None:
    run = str(tmp_path)
    watch = StopWatch(run, 0, True)
    told: list[bool] = []
    asking = threading.Thread(target=lambda: told.append(save_and_pause(run, 20)))
    asking.start()
    until(lambda: storage.list_files(run))
    watch.finished()
    asking.join(20)
    assert told == [True]
    watch.close()


def test_what_was_asked_of_an_earlier_start_is_forgotten(tmp_path: Path) -> None:
    run = str(tmp_path)
    ask_to_stop(run)
    save_and_pause(run, -1)
    storage.write_bytes(f"{run}/save", b"x")
    forget_asked(run)
    assert not storage.list_files(run)


def test_a_stop_is_seen_and_nobody_looks_for_resizes_of_a_fixed_number(tmp_path: Path) -> None:
    run = str(tmp_path)
    watch = StopWatch(run, 0, False)
    storage.write_bytes(f"{run}/save", b"x")
    ask_to_stop(run)
    until(lambda: watch.flags()[0])
    assert not watch.flags()[1]
    watch.finished()
    assert storage.exists(f"{run}/save")


def test_whether_a_machine_leaves_is_asked_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = StopWatch(str(tmp_path), 0, False)
    now = [0.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])

    def asked_at(time_s: float) -> bool:
        now[0] = time_s
        return watch.flags()[2]

    asked = [asked_at(time_s) for time_s in (100.0, 100.2, 100.9, 101.1, 101.2, 102.3)]
    assert asked == [True, False, False, True, False, True]
    watch.close()

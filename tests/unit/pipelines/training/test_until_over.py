"""The driver waits for its workers: the first interrupt asks them to stop, the second one ends."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.training import workers as workers_module
from pipelines.training.control.processes import Process
from pipelines.training.workers import _until_over
from tests.unit.pipelines.training.test_watch import report, write


class Trainer:
    """Its `fit` lasts until it may end."""

    def __init__(self, may_end: Callable[[], bool]) -> None:
        self._may_end = may_end
        self.began = threading.Event()

    def fit(self) -> None:
        self.began.set()
        end = time.monotonic() + 60
        while not self._may_end():
            assert time.monotonic() < end
            time.sleep(0.01)


def after(holds: Callable[[], bool], number: int) -> None:
    """Raise a signal in the main thread as soon as it holds."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_WAIT_S", 0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_asks_the_workers_to_stop(tmp_path: Path, number: int) -> None:
    note = tmp_path / "stop"
    write(tmp_path, report(0, 7) | asdict(Process.own()))
    trainer: Any = Trainer(note.exists)
    after(trainer.began.is_set, number)
    _until_over(trainer, str(tmp_path))
    assert note.exists()


def test_the_second_one_ends_also_while_storage_does_not_take_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, over = threading.Event(), threading.Event()

    def slow(_: str) -> None:
        asked.set()
        over.wait(60)

    monkeypatch.setattr(workers_module, "ask_to_stop", slow)
    trainer: Any = Trainer(over.is_set)
    after(trainer.began.is_set, signal.SIGINT)
    after(asked.is_set, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="ended at once; the same command goes on from the"):
        _until_over(trainer, str(tmp_path))
    over.set()


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
def test_one_ends_at_once_while_no_worker_is_there(tmp_path: Path, before: bool) -> None:
    """They wait for machines; so does who asks them to stop, for ever."""
    if before:
        own = Process.own()
        write(tmp_path, report(0, 7) | asdict(replace(own, born=own.born - 60)))
    over = threading.Event()
    trainer: Any = Trainer(over.is_set)
    after(trainer.began.is_set, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="ended at once; the same command goes on from the"):
        _until_over(trainer, str(tmp_path))
    over.set()

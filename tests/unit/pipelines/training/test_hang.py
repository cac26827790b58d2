"""Who stands still is named, whoever waits for it is not; clocks of machines need not agree."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from gwp.errors import GwpError
from pipelines.training.control import watchdog as watchdog_module
from pipelines.training.control.hang import Clock
from pipelines.training.control.journal import DATA, ENDED, FETCHING, STEPPING
from pipelines.training.control.processes import Process, end
from pipelines.training.control.watchdog import Watchdog, clear_earlier
from tests.unit.pipelines.training.test_watch import write

LIMIT = 60.0


def report(rank: int, phase: str = STEPPING, lasts: float = 0.0, beat: int = 1) -> dict[str, Any]:
    return {
        "rank": rank,
        "host": f"node{rank}",
        "pid": 100 + rank,
        "step": 12,
        "phase": phase,
        "phase_s": lasts,
        "beat": beat,
        "start": "s",
    }


def told(clock: Clock, now: float, *reports: dict[str, Any]) -> str | None:
    clock.see(list(reports), now)
    found = clock.standing(now, LIMIT)
    return found.text if found else None


def test_a_rank_whose_process_stands_is_named_and_not_the_one_that_waits() -> None:
    clock = Clock(LIMIT)
    assert told(clock, 0, report(0), report(1)) is None
    # Rank 1 reports no more; rank 0 lives, and is in its step for as long.
    assert told(clock, 50, report(0, lasts=50, beat=2), report(1)) is None
    text = told(clock, 61, report(0, lasts=61, beat=3), report(1))
    assert text == "rank 1 (node1, pid 101) has been in 'stepping' since step 12 for 61 s"


def test_the_silent_one_is_named_also_when_the_one_that_waits_is_late_before_it() -> None:
    clock = Clock(LIMIT)
    told(clock, 0, report(0), report(1))
    # The last report of rank 1 came later, so that it has been in its step for less, as far as
    # is known.
    told(clock, 3, report(0, lasts=3, beat=2), report(1, beat=2))
    text = told(clock, 61, report(0, lasts=61, beat=3), report(1, beat=2))
    assert text == "rank 1 (node1, pid 101) has been in 'stepping' since step 12 for 58 s"


def test_a_rank_that_lives_and_does_not_come_to_the_step_is_named() -> None:
    clock = Clock(LIMIT)
    text = told(clock, 5, report(0, lasts=70), report(1, DATA, 71.4))
    assert text == "rank 1 (node1, pid 101) has been in 'waiting for data' since step 12 for 71 s"
    # Within a step nobody can tell who keeps whom waiting.
    both = told(Clock(LIMIT), 5, report(0, lasts=70), report(1, lasts=70))
    assert both is not None
    assert both.startswith("rank 0 ")
    assert "; rank 1 " in both


def test_all_that_are_silent_are_named_when_the_first_of_them_is_late() -> None:
    clock = Clock(LIMIT)
    told(clock, 0, report(0), report(1), report(2))
    told(clock, 20, report(0), report(1, beat=2), report(2, beat=2))
    text = told(clock, 61, report(0), report(1, beat=2), report(2, lasts=61, beat=3))
    assert text is not None
    assert "rank 0 " in text
    assert "rank 1 " in text
    assert "rank 2 " not in text


def test_silence_that_could_not_be_heard_is_excused() -> None:
    clock = Clock(LIMIT)
    assert not clock.all_silent(0)
    assert told(clock, 0, report(0), report(1)) is None
    clock.see([report(0), report(1)], 10)
    assert clock.all_silent(10)
    # Nothing new of anybody, for an hour.
    clock.excuse(3600)
    assert told(clock, 3600, report(0), report(1)) is None
    # One is back before the other.
    assert told(clock, 3601, report(0, lasts=0.2, beat=9), report(1)) is None
    assert not clock.all_silent(3601)
    text = told(clock, 3665, report(0, lasts=64, beat=10), report(1))
    assert text == "rank 1 (node1, pid 101) has been in 'stepping' since step 12 for 65 s"


def test_who_is_done_stands_still_rightly_and_fewer_ranks_are_no_dead_ones() -> None:
    clock = Clock(LIMIT)
    told(clock, 0, report(0), report(1), report(2))
    # A new start with two ranks, one of which is done.
    assert told(clock, 1, report(0, beat=2), report(1, ENDED)) is None
    assert told(clock, 100, report(0, beat=3), report(1, ENDED)) is None


def sleeping() -> tuple[subprocess.Popen[bytes], Process]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    own = Process.own()
    born = psutil.Process(child.pid).create_time()
    return child, Process(own.host, "", child.pid, born)


def test_a_stopped_process_is_ended_and_another_of_its_number_is_not() -> None:
    child, process = sleeping()
    try:
        other = Process(process.host, "", child.pid, process.born - 60)
        # It is no more.
        assert end(other)
        assert child.poll() is None
        # Without Ray there is nobody to ask on other machines.
        assert not end(Process("elsewhere", "", child.pid, process.born))
        os.kill(child.pid, signal.SIGSTOP)
        assert end(process)
        assert not psutil.pid_exists(child.pid)
        assert end(process)
    finally:
        child.kill()
        child.wait()


def test_the_driver_warns_once_and_ends_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(watchdog_module, "warn", warned.append)
    child, process = sleeping()
    watch = Watchdog(str(tmp_path), LIMIT)
    # By hand instead of by its thread.
    watch.close()
    try:
        write(tmp_path, {**report(0), **asdict(Process.own())})
        write(tmp_path, {**report(1), **asdict(process)})
        for now, beat in ((0, 1), (7, 2), (8, 3), (61, 4), (62, 5)):
            write(tmp_path, {**report(0, lasts=now, beat=beat), **asdict(Process.own())})
            watch.look(1000.0 + now)
        assert not psutil.pid_exists(child.pid)
    finally:
        child.kill()
        child.wait()
    first, second = warned
    assert "'stepping' since step 12 for 7 s; at 60 s (cluster.hang_s) the workers" in first
    assert f"pid {child.pid}) has been in 'stepping' since step 12 for 61 s: ended" in second
    assert "rank 1" in str(watch.hung())
    # A later start failed otherwise.
    write(tmp_path, {**report(0), "start": "later"})
    assert watch.hung() is None


@pytest.mark.parametrize("notes", ["taken", "refused", "slow"])
def test_ranks_that_all_stand_are_ended_unless_storage_takes_no_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: str
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(watchdog_module, "warn", warned.append)
    if notes == "slow":
        monkeypatch.setattr(watchdog_module, "_PROMPT_S", 0.0)
    child, process = sleeping()
    watch = Watchdog(str(tmp_path), LIMIT)
    # By hand instead of by its thread.
    watch.close()
    try:
        begin = time.monotonic()
        write(tmp_path, {**report(0), **asdict(process)})
        watch.look(begin)
        if notes == "refused":
            (tmp_path / "progress" / "watchdog.json").mkdir()
        for seconds in (10, 30, 61, 62):
            with suppress(GwpError):
                watch.look(begin + seconds)
        assert psutil.pid_exists(child.pid) == (notes != "taken")
    finally:
        child.kill()
        child.wait()
    if notes != "taken":
        assert not warned
        return
    first, second = warned
    assert "'stepping' since step 12 for 10 s; at 60 s (cluster.hang_s) the workers" in first
    assert f"pid {child.pid}) has been in 'stepping' since step 12 for 61 s: ended" in second


def test_ranks_that_have_all_gone_do_not_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(watchdog_module, "warn", warned.append)
    child, process = sleeping()
    child.kill()
    child.wait()
    watch = Watchdog(str(tmp_path), LIMIT)
    watch.close()
    write(tmp_path, {**report(0), **asdict(process)})
    for seconds in (0, 10, 61):
        watch.look(1000.0 + seconds)
    assert warned == ["no worker is there any more; they start again when machines have room"]
    # Their next start is looked after.
    write(tmp_path, {**report(0), **asdict(Process.own()), "start": "next"})
    watch.look(1062.0)
    watch.look(1072.0)
    assert len(warned) == 2


def test_workers_of_a_driver_that_was_killed_are_ended_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "_LEFT_S", 0.1)
    child, process = sleeping()
    try:
        write(tmp_path, {**report(0, FETCHING), **asdict(process)})
        clear_earlier(str(tmp_path))
        assert not psutil.pid_exists(child.pid)
    finally:
        child.kill()
        child.wait()
    assert not list((tmp_path / "progress").glob("*"))
    # And where there were none.
    clear_earlier(str(tmp_path / "new"))

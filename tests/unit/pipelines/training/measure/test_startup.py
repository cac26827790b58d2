"""The parts of a start are those of this start, and add up."""

import time
from collections.abc import Callable

import pytest

from pipelines.training.measure import startup as measured
from pipelines.training.measure.startup import StartUp


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the moment, of both clocks."""
    moment = [0.0]
    monkeypatch.setattr(measured.time, "perf_counter", lambda: 50 + moment[0])
    monkeypatch.setattr(measured.time, "time", lambda: 1e9 + moment[0])

    def set_to(seconds: float) -> None:
        moment[0] = seconds

    return set_to


def handed(at: Callable[[float], None]) -> StartUp:
    at(0)
    start = StartUp()
    for moment, part in ((1, "machines"), (4, "list"), (9, "plan")):
        at(moment)
        start.over(part)  # type: ignore[arg-type]
    at(10)
    return start.hand_over()


def test_parts_add_up_from_the_command_to_the_first_step(at: Callable[[float], None]) -> None:
    start = handed(at)
    at(17)
    start.reached([])
    at(20)
    start.over("weights")
    start.add("first batch", 2)
    start.add("first step", 1)
    assert start.told() == {
        "start/machines": 1,
        "start/list": 3,
        "start/plan": 5,
        "start/workers": 8,
        "start/weights": 3,
        "start/first batch": 2,
        "start/first step": 1,
        "start/total": 23,
    }


def test_workers_that_start_again_count_from_what_ended_them(at: Callable[[float], None]) -> None:
    start = handed(at)
    at(500)
    start.reached([1e9 + 490, 1e9 - 70])
    assert start.told() == {"start/workers": 10, "start/total": 10}
    # One of an earlier command is none of this.
    start = handed(at)
    at(12)
    start.reached([1e9 - 70])
    assert start.told()["start/total"] == 12


def test_those_who_start_after_them_begin_with_nothing(at: Callable[[float], None]) -> None:
    at(0)
    start = StartUp()
    at(3)
    start.over("list")
    assert start.hand_over().seconds["list"] == 3
    # They work for two hours.
    at(7203)
    start.again()
    at(7208)
    assert start.hand_over().seconds == {"workers": 5}


def test_a_clock_that_is_behind_gives_no_negative_time() -> None:
    start = StartUp()
    start.handed = time.time() + 1000
    start.reached([])
    assert start.told()["start/workers"] == 0

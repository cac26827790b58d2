"""Phases add up to the whole, whatever is nested in what."""

import time
from collections.abc import Callable

import pytest

from pipelines.training.measure import clock as measured
from pipelines.training.measure.clock import PHASES, Clock


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the moment."""
    moment = [100.0]
    monkeypatch.setattr(measured.time, "perf_counter", lambda: moment[0])

    def set_to(seconds: float) -> None:
        moment[0] = 100.0 + seconds

    return set_to


def test_phases_add_up_to_the_time_that_passed(at: Callable[[float], None]) -> None:
    clock = Clock()
    at(1)
    with clock.within("forward"):
        at(3)
        with clock.within("exchange"):
            at(3.5)
        at(4)
    clock.to("data")
    at(10)
    told = clock.read()
    assert set(told) == set(PHASES)
    shares = {name: seconds for name, seconds in told.items() if seconds}
    assert shares == {"rest": 1, "forward": 2.5, "exchange": 0.5, "data": 6}
    assert sum(told.values()) == 10
    # It goes on in the phase that it was in, from there on.
    at(12)
    assert {name: s for name, s in clock.read().items() if s} == {"data": 2}
    assert not any(clock.read().values())


def test_a_phase_ends_with_an_error(at: Callable[[float], None]) -> None:
    clock = Clock()

    def fails() -> None:
        at(2)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), clock.within("backward"):
        fails()
    at(3)
    told = clock.read()
    assert (told["backward"], told["rest"]) == (2, 1)


def test_real_time_is_told_whole() -> None:
    begin = time.perf_counter()
    clock = Clock()
    made = time.perf_counter()
    for phase in PHASES * 50:
        clock.to(phase)
    last = time.perf_counter()
    told = sum(clock.read().values())
    assert last - made <= told <= time.perf_counter() - begin

"""What a display knows of a run: curves have each step once, a restart begins a new pace."""

from typing import Any

import pytest

from pipelines.training.screen.seen import Seen


def report(step: int, start: str = "a", **more: Any) -> dict[str, Any]:
    return {"rank": 0, "step": step, "logged": step, "start": start, **more}


def seen() -> Seen:
    return Seen("policy", "arm", total=100, every=20, now=0.0)


def test_nothing_is_known_before_the_first_report() -> None:
    fresh = seen()
    assert (fresh.step, fresh.left(), fresh.checkpoint(5.0)) == (0, None, None)
    assert (fresh.figures, fresh.started) == ({}, {})


def test_the_rest_takes_what_the_steps_of_the_last_two_minutes_took() -> None:
    found = seen()
    for moment in range(11):
        # Two steps a second at first, then one.
        found.look([report(2 * moment)], 2 * moment, "", float(moment))
    assert found.left() == pytest.approx(80 / 2)
    for moment in range(11, 61):
        found.look([report(20)], 20 + (moment - 10), "", 10 + 10.0 * (moment - 10))
    assert found.left() == pytest.approx(30 * 10)
    # No step comes: nothing is learnt, and nothing forgotten.
    found.look([report(20)], 70, "waiting for data for 60 s", 900.0)
    assert found.left() == pytest.approx(300)


def test_a_restart_has_a_pace_of_its_own_and_takes_steps_again() -> None:
    found = seen()
    for step in (10, 20, 30):
        found.look([report(step, loss=1 / step)], step, "", float(step))
    found.look([report(20, "b", logged=20, loss=0.5)], 20, "", 100.0)
    assert list(found.losses) == [(10, 0.1), (20, 0.5)]
    assert found.left() is None
    found.look([report(40, "b", loss=0.1)], 40, "", 110.0)
    assert found.left() == pytest.approx(60 / 20 * 10)


def test_a_loss_that_was_logged_once_is_one_point() -> None:
    found = seen()
    for step in (10, 11, 12):
        found.look([report(step, logged=10, loss=0.5)], step, "", float(step))
    assert list(found.losses) == [(10, 0.5)]


def test_checkpoints_age_on_the_clock_of_the_display() -> None:
    found = seen()
    saved = {"step": 20, "time": 1e9}
    found.look([report(25, checkpoint=saved)], 25, "", 50.0)
    found.look([report(30, checkpoint=saved)], 30, "", 60.0)
    assert found.checkpoint(65.0) == (20, 15.0)
    found.look([report(41, checkpoint={"step": 40, "time": 1.0})], 41, "", 70.0)
    assert found.checkpoint(71.0) == (40, 1.0)
    # Workers that start again have taken none yet.
    found.look([report(41, "b")], 41, "", 80.0)
    assert found.checkpoint(81.0) == (40, 11.0)


def test_the_newest_warnings_stay() -> None:
    found = seen()
    for number in range(5):
        found.warn(f"w{number}", float(number))
    assert [text for _, text in found.warnings] == ["w2", "w3", "w4"]

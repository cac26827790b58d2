"""What a robot reports of itself: all that it did is told once, whatever became of requests."""

from typing import Any

import numpy as np
import pytest

from gwp.client import ActionChunk, ChunkBuffer, Observation
from gwp.client.buffering.tally import Tally
from gwp.client.connection.wire import ClientError, to_message
from gwp.protocol.fields import FIELDS
from gwp.protocol.report import MOST, NAMES, Report
from tests.support.scripted import SEEN


def observe() -> Observation:
    return Observation({}, np.zeros(1, np.float32))


class Policy:
    """Answers with chunks of six rows, or fails; keeps the reports that came with answers."""

    def __init__(self, failing: set[int]) -> None:
        self.failing = failing
        self.asked = 0
        self.heard: list[Report] = []

    def __call__(self, observation: Observation) -> ActionChunk:
        self.asked += 1
        if self.asked in self.failing:
            raise ClientError("busy", "busy")
        assert observation.report is not None
        self.heard.append(observation.report)
        return ActionChunk(np.ones((6, 1), np.float32), "p", observation.delay)


def test_the_first_request_has_nothing_to_tell_and_the_next_all_since() -> None:
    policy = Policy(set())
    now = [0.0]
    buffer = ChunkBuffer(policy, replan=4, clock=lambda: now[0])
    for _ in range(9):
        buffer.next_action(observe)
        now[0] += 0.1
    first, second, third = policy.heard
    assert first == Report()
    assert second == Report(executed=4, age_s=pytest.approx(0.3))
    assert third == Report(executed=4, age_s=pytest.approx(0.3))


def test_a_request_under_way_at_a_reset_has_told_its_part() -> None:
    policy = Policy(set())
    now = [0.0]
    steps = 0
    with ChunkBuffer(policy, replan=4, delay=2, clock=lambda: now[0]) as buffer:
        for _ in range(5):
            # Ends while the next chunk is asked for.
            for _ in range(5):
                buffer.next_action(observe)
                now[0] += 0.1
                steps += 1
            buffer.reset()
        buffer.next_action(observe)
    told = sum(policy.heard[1:], policy.heard[0])
    assert told.executed <= steps


def test_what_a_failed_request_told_goes_with_the_next_one() -> None:
    """And whatever befell the robot meanwhile: nothing is lost, nothing told twice."""
    policy = Policy({2, 3, 4})
    now = [0.0]
    buffer = ChunkBuffer(policy, replan=3, rate=10, wait_s=0.0, clock=lambda: now[0])
    for _ in range(60):
        buffer.next_action(observe)
        now[0] += 0.1
    told = sum(policy.heard[1:], policy.heard[0])
    assert told.failed == buffer.failed == 3
    assert told.held == buffer.dry > 0
    assert told.dry == 1
    # What came behind the newest request is still to be told.
    assert 60 - 3 <= told.executed + told.held <= 60


def test_blended_and_skipped_steps_and_late_replies_are_told() -> None:
    policy = Policy(set())
    now = [0.0]
    buffer = ChunkBuffer(policy, replan=3, rate=10, blend=2, clock=lambda: now[0])
    for step in range(30):
        buffer.next_action(observe)
        # Once the loop stands still for three steps.
        now[0] += 0.4 if step == 10 else 0.1
    told = sum(policy.heard[1:], policy.heard[0])
    assert told.skipped == buffer.skipped == 3
    assert 0 < told.blended < told.executed


def test_a_report_of_the_robots_own_is_left_alone() -> None:
    policy = Policy(set())
    own = Report(held=5)
    buffer = ChunkBuffer(policy, replan=2)
    for _ in range(4):
        buffer.next_action(lambda: Observation({}, np.zeros(1, np.float32), report=own))
    assert policy.heard == [own, own]


def test_it_travels_as_a_map_of_what_says_something_to_who_knows_it() -> None:
    seen: Any = SEEN
    told = Report(executed=3, held=2 * MOST, age_s=-1.0)
    message = to_message(Observation(seen.images, seen.state, report=told), FIELDS)
    assert message["report"] == {"executed": 3, "held": MOST, "age_s": 0.0}
    assert set(message["report"]) <= set(NAMES)
    for fields, report in (((), told), (FIELDS, Report()), (FIELDS, None)):
        assert "report" not in to_message(
            Observation(seen.images, seen.state, report=report), fields
        )


def test_a_tally_is_told_until_it_is_answered() -> None:
    tally = Tally()
    tally.add(Report(held=1, age_s=0.5))
    assert tally.report() == tally.report() == Report(held=1, age_s=0.5)
    tally.add(Report(held=2, age_s=0.25))
    tally.answered()
    # What came behind the report that was answered.
    assert tally.report() == Report(held=2, age_s=0.25)

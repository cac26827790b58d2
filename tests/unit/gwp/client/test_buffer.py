"""The chunk buffer: which row is executed at which control step, and who waits for whom."""

import threading
from typing import Any

import numpy as np
import pytest

from gwp.client import ActionChunk, ChunkBuffer, Observation
from gwp.client.buffering.fetch import Waiting
from gwp.errors import GwpError

WAIT_S = 10


class Robot:
    """A world whose only state is the number of the control step."""

    def __init__(self) -> None:
        self.step = 0
        self.observed: list[int] = []

    def observe(self) -> Observation:
        self.observed.append(self.step)
        return Observation({}, np.array([self.step], np.float32))

    def run(self, buffer: ChunkBuffer, steps: int) -> list[float]:
        done = []
        for _ in range(steps):
            done.append(float(buffer.next_action(self.observe)[0]))
            self.step += 1
        return done


def clock(length: int = 6) -> Any:
    """A policy whose row i says the control step that it was made for."""

    def act(observation: Observation) -> ActionChunk:
        return ActionChunk(
            observation.state + np.arange(length, dtype=np.float32)[:, None], "p", observation.delay
        )

    return act


@pytest.mark.parametrize("replan", [1, 3, 6, 9])
def test_waiting_mode_asks_every_replan_steps_and_never_shifts(replan: int) -> None:
    robot = Robot()
    assert robot.run(ChunkBuffer(clock(6), replan), 20) == list(range(20))
    assert robot.observed == list(range(0, 20, min(replan, 6)))


@pytest.mark.parametrize(("replan", "delay"), [(3, 1), (3, 3), (1, 1), (4, 5), (5, 2)])
def test_overlapping_executes_each_row_at_its_own_step(replan: int, delay: int) -> None:
    robot = Robot()
    with ChunkBuffer(clock(8), replan, delay) as buffer:
        assert robot.run(buffer, 40) == list(range(40))


def test_the_request_carries_the_actions_that_are_executed_meanwhile() -> None:
    requests: list[Observation] = []

    def act(observation: Observation) -> ActionChunk:
        requests.append(observation)
        # Fresh rows are marked; committed ones are what the robot was already doing.
        rows = (
            np.full((8, 1), 100.0 * len(requests), np.float32)
            + np.arange(8, dtype=np.float32)[:, None]
        )
        if observation.prefix_actions is not None:
            rows[: observation.delay] = observation.prefix_actions[: observation.delay]
        return ActionChunk(rows, "p", observation.delay)

    robot = Robot()
    with ChunkBuffer(act, replan=4, delay=2) as buffer:
        done = robot.run(buffer, 8)
    assert requests[0].prefix_actions is None
    assert requests[0].delay == 0
    second = requests[1]
    assert robot.observed == [0, 4]
    assert second.delay == 2
    assert second.prefix_actions is not None
    assert second.prefix_actions[:, 0].tolist() == [104, 105, 106, 107]
    assert done[4:6] == [104, 105]
    assert done[6:] in ([202, 203], [106, 203], [106, 107])


def test_a_late_reply_skips_the_rows_whose_time_has_passed() -> None:
    asked, answer = threading.Event(), threading.Event()
    plain = clock(8)

    def act(observation: Observation) -> ActionChunk:
        if observation.delay:
            asked.set()
            assert answer.wait(WAIT_S)
        return plain(observation)

    robot = Robot()
    with ChunkBuffer(act, replan=2, delay=1) as buffer:
        first = robot.run(buffer, 6)
        assert asked.is_set()
        assert buffer.late == 0
        answer.set()
        # Two steps of the first chunk are left; the answer is taken when they run out at the
        # latest.
        first += robot.run(buffer, 3)
        assert first == list(range(9))
        assert buffer.late == 1


def test_a_robot_out_of_actions_waits_for_the_answer() -> None:
    answer = threading.Event()
    plain = clock(3)

    def act(observation: Observation) -> ActionChunk:
        if observation.delay:
            assert answer.wait(WAIT_S)
        return plain(observation)

    robot = Robot()
    with ChunkBuffer(act, replan=2, delay=1) as buffer:
        assert robot.run(buffer, 3) == [0, 1, 2]
        threading.Timer(0.05, answer.set).start()
        assert robot.run(buffer, 1) == [3]


def test_an_error_of_the_policy_reaches_the_control_loop() -> None:
    plain = clock(4)

    def act(observation: Observation) -> ActionChunk:
        if observation.executed_action is not None:
            raise GwpError("state: NaN")
        return plain(observation)

    robot = Robot()
    with ChunkBuffer(act, replan=2, delay=1) as buffer, pytest.raises(GwpError, match="state: NaN"):
        robot.run(buffer, 9)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_failed_request_costs_no_valid_row_and_is_told_once_when_none_is_left(delay: int) -> None:
    answers, asked = clock(4), []

    def act(observation: Observation) -> ActionChunk:
        asked.append(observation)
        if 2 <= len(asked) <= 4:
            raise GwpError("no answer within 30 s")
        return answers(observation)

    with ChunkBuffer(act, replan=2, delay=delay, fetch=Waiting()) as buffer:
        robot = Robot()
        assert robot.run(buffer, 4) == [0, 1, 2, 3]
        assert buffer.error is not None
        with pytest.raises(GwpError, match="no answer"):
            robot.run(buffer, 1)
        # The step of the failure has passed; the next looks anew.
        robot.step += 1
        assert robot.run(buffer, 3) == [5, 6, 7]
        assert buffer.failed == 3


@pytest.mark.parametrize("delay", [0, 2])
def test_reset_asks_anew(delay: int) -> None:
    robot = Robot()
    with ChunkBuffer(clock(8), 4, delay) as buffer:
        robot.run(buffer, 5)
        buffer.reset()
        robot.step = 50
        assert robot.run(buffer, 3) == [50, 51, 52]
        assert robot.observed[-1] == 50


def test_a_chunk_shorter_than_its_delay_is_an_error_with_a_fix() -> None:
    short = clock(2)

    def act(observation: Observation) -> ActionChunk:
        return (
            ActionChunk(np.zeros((1, 1), np.float32), "p")
            if observation.delay
            else short(observation)
        )

    with ChunkBuffer(act, 1, 1) as buffer, pytest.raises(GwpError, match="lower the delay"):
        Robot().run(buffer, 4)


@pytest.mark.parametrize(("replan", "delay"), [(0, 0), (3, -1)])
def test_settings_that_make_no_sense_are_refused(replan: int, delay: int) -> None:
    with pytest.raises(GwpError):
        ChunkBuffer(clock(), replan, delay)

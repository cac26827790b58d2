"""Time that passes while a chunk is computed: the robot goes on, and what it lacks is counted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.charged import Ask, Charge, run_charged, standing
from gwp.sim.metaworld import DISPLACEMENTS, EMBODIMENT
from gwp.sim.rollout import EpisodeResult, run_episode
from tests.support.fake_sim import FakeSim, seeing

STEP_MS = 12.5  # 80 Hz
REPLAN, CHUNK = 6, 12


class Numbered:
    """Answers with rows that say where they come from: request, then row; the last is the gripper's
    and never 0. It keeps what it was asked.
    """

    def __init__(self) -> None:
        self.asked: list[Observation] = []

    def __call__(self, observation: Observation) -> Callable[[], ActionChunk]:
        self.asked.append(observation)
        request = len(self.asked)
        rows = np.zeros((CHUNK, 4), np.float32)
        rows[:, 0], rows[:, 1] = request, np.arange(CHUNK)
        rows[:, 2:] = 0.5
        if observation.delay and observation.prefix_actions is not None:
            rows[: observation.delay] = observation.prefix_actions[: observation.delay]
        return lambda: ActionChunk(rows, "numbered")


class Endless(FakeSim):
    """Nothing is ever won."""

    def step(self, action: np.ndarray) -> bool:
        super().step(action)
        return False


def drive(
    env: FakeSim, ask: Ask, charge: Charge, *, seed: int, max_steps: int = 150
) -> EpisodeResult:
    return run_charged(
        env, ask, charge, EMBODIMENT, DISPLACEMENTS, seed=seed, max_steps=max_steps, replan=REPLAN
    )


def run(ask: Ask, charge: Charge, steps: int = 40) -> tuple[np.ndarray, int, int, int, int]:
    result = drive(Endless("reach"), ask, charge, seed=1, max_steps=steps)
    assert not result.success
    counts = (result.requests, result.waited, result.dry, result.late)
    return np.stack(result.actions), *counts


@pytest.mark.parametrize(
    ("ms", "steps"), [(0.1, 1), (12.5, 1), (12.6, 2), (25.0, 2), (37.5, 3), (100, 8)]
)
def test_a_latency_takes_as_many_steps_as_it_touches(ms: float, steps: int) -> None:
    assert Charge(ms).steps(EMBODIMENT.fps) == steps


@pytest.mark.parametrize("steps", range(1, CHUNK))
def test_a_row_is_executed_at_its_step_and_what_is_missing_is_counted(steps: int) -> None:
    numbered = Numbered()
    actions, requests, waited, dry, _ = run(numbered, Charge(steps * STEP_MS))
    # Nothing can act before the first answer: the robot stands still.
    assert waited == steps
    assert not actions[:steps].any()
    assert requests == len(numbered.asked)
    assert [o.seed for o in numbered.asked] == list(range(requests))
    # Behind the last row of a chunk there is nothing until the next one has come.
    assert (dry > 0) == (steps > CHUNK - REPLAN)
    held = [i for i in range(steps, len(actions)) if not actions[i, np.array(DISPLACEMENTS)].any()]
    assert len(held) == dry
    for i in held:
        assert actions[i, 3] == actions[i - 1, 3]


def test_naive_switching_takes_the_row_of_the_step_and_skips_what_has_passed() -> None:
    delay = 3
    actions, *_ = run(Numbered(), Charge(delay * STEP_MS))
    # Asked at step 0, there at step 3; asked again when 6 rows have passed, there at step 9.
    assert actions[8, 0] == 1
    assert actions[8, 1] == 8
    assert actions[9, 0] == 2
    assert actions[9, 1] == delay


def test_real_time_chunking_executes_what_it_promised_and_the_next_chunk_goes_on_there() -> None:
    delay = 4
    numbered = Numbered()
    actions, *_, dry, late = run(numbered, Charge(delay * STEP_MS, delay=delay))
    assert (dry, late) == (0, 0)
    promised = [o for o in numbered.asked if o.delay]
    assert promised
    for i, observation in enumerate(promised):
        begin = (i + 1) * REPLAN
        assert observation.delay == delay
        assert observation.prefix_actions is not None
        n = min(delay, len(actions) - begin)
        np.testing.assert_array_equal(actions[begin : begin + n], observation.prefix_actions[:n])


def test_an_answer_later_than_promised_is_counted() -> None:
    *_, late = run(Numbered(), Charge(5 * STEP_MS, delay=2))
    assert late > 0


def test_no_clock_has_a_part_in_it() -> None:
    """Answers that are computed at once, and those computed when they are waited for, are the same
    to the robot, and nothing of this machine's time travels along.
    """
    asked: list[Observation] = []

    def eager(observation: Observation) -> Callable[[], ActionChunk]:
        asked.append(observation)
        chunk = seeing(observation)
        return lambda: chunk

    runs = [
        drive(FakeSim("reach"), ask, Charge(40.0), seed=3)
        for ask in (eager, lambda o: lambda: seeing(o))
    ]
    np.testing.assert_array_equal(*(np.stack(r.actions) for r in runs))
    assert replace(runs[0], actions=[]) == replace(runs[1], actions=[])
    assert {(o.observed_at, o.max_age_s, o.deadline_s) for o in asked} == {(None, None, None)}


def test_latency_costs_steps_of_the_same_episode() -> None:
    fast, slow = (
        drive(FakeSim("reach"), lambda o: lambda: seeing(o), Charge(ms), seed=3)
        for ms in (1.0, 75.0)
    )
    assert fast.success
    assert slow.success
    assert slow.steps > fast.steps


@pytest.mark.parametrize("steps", [CHUNK, 100])
def test_a_chunk_that_is_over_before_it_comes_is_refused(steps: int) -> None:
    with pytest.raises(GwpError, match="each would be over before it came"):
        run(Numbered(), Charge(steps * STEP_MS), steps=200)


def test_a_robot_that_stops_executes_whole_chunks_however_late_they_are() -> None:
    ask = Numbered()
    # 20 steps, and a chunk has 12.
    actions, requests, waited, dry, late = run(ask, Charge(20 * STEP_MS, stops=True), steps=60)
    assert (requests, waited, dry, late) == (3, 48, 0, 0)
    moving = [(int(request), int(row)) for request, row, *_ in actions if request]
    assert moving == [(1, row) for row in range(REPLAN)] + [(2, row) for row in range(REPLAN)]
    # It stands: no displacement, and the gripper keeps its effort.
    assert (actions[:20] == 0).all()
    assert (actions[26:46] == [0, 0, 0, 0.5]).all()
    assert [observation.seed for observation in ask.asked] == [0, 1, 2]


def test_a_robot_that_stops_for_nothing_is_one_for_which_the_world_waits() -> None:
    def ask(observation: Observation) -> Callable[[], ActionChunk]:
        return lambda: seeing(observation)

    for seed in range(5):
        charged = drive(FakeSim("reach"), ask, Charge(0.0, stops=True), seed=seed)
        waiting = run_episode(
            FakeSim("reach"), seeing, EMBODIMENT, seed=seed, max_steps=150, replan=REPLAN
        )
        assert charged.success == waiting.success
        np.testing.assert_array_equal(np.stack(charged.actions), np.stack(waiting.actions))


def test_a_robot_of_positions_stands_still_where_it_is() -> None:
    names = {"state_names": ("a", "b", "open"), "action_names": ("b", "a", "speed")}
    robot = EMBODIMENT.model_copy(update=names)
    first = Observation({}, np.array([1.0, 2.0, 3.0], np.float32), "", "")
    np.testing.assert_array_equal(standing(robot, first), [2.0, 1.0, 0.0])
    arm = Observation({}, np.ones(4, np.float32), "", "")
    assert not standing(EMBODIMENT, arm).any()

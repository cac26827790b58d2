"""The chunk buffer under every order of arrivals, failures, delays and stalls: seeded, with a clock
that the test turns.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gwp.client import ActionChunk, ChunkBuffer, ClientError, Observation
from gwp.errors import GwpError

RATE = 20.0


@dataclass
class World:
    """A clock, requests under way, and a policy whose row says at which moment it belongs.

    Values: dimension 0 is the number of the step in time, 1 a displacement, 2 the episode.
    """

    random: np.random.Generator
    now: float = 100.0
    under_way: list[tuple[Observation, "Future[ActionChunk]"]] = field(default_factory=list)
    episode: int = 0
    length: int = 8

    def clock(self) -> float:
        return self.now

    def observe(self) -> Observation:
        at = self.now * RATE
        return Observation({}, np.array([at, 0, self.episode], np.float64))

    def submit(self, _act: Any, observation: Observation) -> "Future[ActionChunk]":
        future: Future[ActionChunk] = Future()
        self.under_way.append((observation, future))
        return future

    def answer(self, i: int, error: Exception | None = None) -> None:
        observation, future = self.under_way.pop(i)
        if error is not None:
            future.set_exception(error)
            return
        at, _, episode = observation.state
        rows = np.zeros((self.length, 3), np.float64)
        rows[:, 0] = at + np.arange(self.length)
        rows[:, 1] = 1 + np.arange(self.length)
        rows[:, 2] = episode
        future.set_result(ActionChunk(rows.astype(np.float32), "p", observation.delay))

    def buffer(self, replan: int, **options: Any) -> ChunkBuffer:
        def never(_: Observation) -> ActionChunk:
            raise AssertionError

        return ChunkBuffer(
            never,
            replan,
            rate=RATE,
            wait_s=0.0,
            zero=[False, True, False],
            mixed=[False] * 3,
            fetch=self,
            clock=self.clock,
            **options,
        )


def something(world: World) -> dict[str, Any]:
    replan = int(world.random.integers(1, world.length + 1))
    delay = int(world.random.integers(0, 5))
    return {"replan": replan, "delay": delay, "refill": int(world.random.integers(0, 5))}


FAILURES = (
    lambda: ClientError("busy", "busy"),
    lambda: ClientError("no answer"),
    lambda: ClientError("late", "deadline"),
    lambda: ClientError("old", "stale"),
)


@pytest.mark.parametrize("block", range(10))
def test_whatever_comes_when_no_row_of_the_past_and_none_of_another_episode(block: int) -> None:
    for seed in range(block * 300, (block + 1) * 300):
        world = World(np.random.default_rng(seed))
        options = something(world)
        buffer = world.buffer(**options)
        last: np.ndarray | None = None
        for _ in range(60):
            draw = world.random.random
            while world.under_way and draw() < 0.5:
                i = int(world.random.integers(len(world.under_way)))
                world.answer(i, FAILURES[int(draw() * 4)]() if draw() < 0.3 else None)
            if draw() < 0.04:
                buffer.reset()
                last = None
                world.episode += 1
            action = given(buffer, world)
            if action is None:
                assert last is None, seed
            else:
                check(buffer, world, action, last, seed)
                last = action
            world.now += step_length(world) / RATE


def given(buffer: ChunkBuffer, world: World) -> np.ndarray | None:
    """The action of this step; None when there is none yet, which only a start may bring."""
    try:
        return buffer.next_action(world.observe)
    except ClientError as error:
        if error.code != "dry":
            raise
        return None


def step_length(world: World) -> float:
    """Of the control loop, in steps: mostly one with jitter, sometimes a stall or a hurry."""
    kind = world.random.random()
    if kind < 0.06:
        return float(world.random.uniform(1.5, 12))
    if kind < 0.1:
        return float(world.random.uniform(0.05, 0.5))
    return float(world.random.uniform(0.8, 1.2))


def check(
    buffer: ChunkBuffer, world: World, action: np.ndarray, last: np.ndarray | None, seed: int
) -> None:
    done = buffer.executed
    assert done is not None
    assert np.array_equal(done.action, action)
    # Never of an episode before, held or not.
    assert action[2] == world.episode, seed
    if done.held:
        # All that is absolute stays; what is a displacement is none.
        assert last is not None, seed
        assert (action[0], action[1]) == (last[0], 0), seed
        return
    # A row belongs to this step: float32 of a number of some thousands, and less than a step of
    # jitter on either side.
    behind = world.now * RATE - action[0]
    assert -2 < behind < 2, (seed, behind)
    # The age is that of the observation that the row was made for.
    assert done.row is not None
    assert abs(done.age_s * RATE - (done.row + behind)) < 1e-2, seed
    assert action[1] == done.row + 1, seed


def test_it_holds_when_dry_and_recovers_with_the_next_chunk() -> None:
    world = World(np.random.default_rng(0))
    buffer = world.buffer(4, refill=2)
    with pytest.raises(ClientError, match="no chunk has come"):
        buffer.next_action(world.observe)
    world.now += 1 / RATE
    world.answer(0)
    held = []
    for _ in range(13):
        buffer.next_action(world.observe)
        assert buffer.executed is not None
        held.append(buffer.executed.held)
        world.now += 1 / RATE
    assert held == [False] * 7 + [True] * 6
    assert buffer.dry == 6
    # The request of step 4 is answered when its rows have passed, the next one in time.
    world.answer(0)
    buffer.next_action(world.observe)
    assert isinstance(buffer.error, ClientError)
    assert buffer.late == 1
    world.now += 1 / RATE
    world.answer(0)
    world.now += 1 / RATE
    buffer.next_action(world.observe)
    assert buffer.executed is not None
    assert not buffer.executed.held
    assert buffer.error is None


def test_a_robot_that_stood_still_catches_up_instead_of_jumping() -> None:
    world = World(np.random.default_rng(0), now=0.0, length=16)
    buffer = ChunkBuffer(
        lambda _: ActionChunk(np.zeros((1, 1)), "p"),
        4,
        rate=RATE,
        wait_s=0.0,
        refill=1,
        fetch=world,
        clock=world.clock,
    )
    with pytest.raises(ClientError):
        buffer.next_action(world.observe)
    # The first chunk comes after six steps: row 6 would be a jump of six.
    world.now += 6 / RATE
    world.answer(0)
    done = []
    for _ in range(10):
        done.append(float(buffer.next_action(world.observe)[0]))
        world.now += 1 / RATE
    assert done[6:] == [12, 13, 14, 15]
    steps = np.diff([0.0, *done])
    assert steps.max() < 3
    assert (steps > 0).all()


def test_a_loop_that_stood_still_goes_on_without_a_jump() -> None:
    world = World(np.random.default_rng(0), now=0.0, length=30)

    def act(observation: Observation) -> ActionChunk:
        rows = np.arange(30, dtype=np.float32)[:, None] + np.float32(observation.state[0])
        return ActionChunk(rows, "p")

    buffer = ChunkBuffer(act, 30, rate=RATE, clock=world.clock)
    done = []
    for step in range(20):
        done.append(float(buffer.next_action(world.observe)[0]))
        world.now += (9 if step == 4 else 1) / RATE
    assert done[:5] == [0, 1, 2, 3, 4]
    # Eight steps passed; eight steps later it is where it would have been.
    assert done[13:] == [21, 22, 23, 24, 25, 26, 27]
    assert np.diff(done).max() < 3
    assert buffer.skipped == 8


def test_a_request_is_worth_no_more_than_the_rows_that_it_brings() -> None:
    world = World(np.random.default_rng(0))
    buffer = world.buffer(4)
    with pytest.raises(ClientError):
        buffer.next_action(world.observe)
    assert world.under_way[0][0].max_age_s is None
    world.answer(0)
    for _ in range(5):
        world.now += 1 / RATE
        buffer.next_action(world.observe)
    (request, _) = world.under_way[0]
    assert request.max_age_s == pytest.approx(world.length / RATE)
    assert (request.steps_left, request.rate) == (4, RATE)
    assert request.executed_action is not None
    assert request.executed_action[0] + 1 == pytest.approx(request.state[0])


def test_a_lasting_refusal_is_raised_when_the_rows_are_gone_and_asked_again_with_pauses() -> None:
    world = World(np.random.default_rng(0))
    buffer = world.buffer(4, refill=2)
    with pytest.raises(ClientError):
        buffer.next_action(world.observe)
    world.answer(0)
    asked, told, done = 0, 0, 0
    for _ in range(200):
        while world.under_way:
            asked += 1
            world.answer(0, ClientError("state: NaN in x", "observation"))
        try:
            buffer.next_action(world.observe)
            done += 1
        except ClientError as error:
            told += error.code == "observation"
        world.now += 1 / RATE
    # 10 s at 20 Hz: not at every step.
    assert 5 < told <= asked < 30
    assert done + told == 200
    assert buffer.failed == asked


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_one_lost_request_under_real_time_chunking_costs_nothing_but_itself(delay: int) -> None:
    world = World(np.random.default_rng(0), now=0.0)
    buffer = world.buffer(3, delay=delay)
    with pytest.raises(ClientError):
        buffer.next_action(world.observe)
    world.answer(0)
    for step in range(1, 30):
        world.now += 1 / RATE
        action = buffer.next_action(world.observe)
        assert action[0] == step
        if world.under_way:
            prefix = world.under_way[0][0].prefix_actions
            assert prefix is not None
            # What is promised is what will be executed, and the first of it is now.
            assert prefix[0, 0] == step
            world.answer(0, ClientError("lost", "unavailable") if step == 3 else None)
    assert (buffer.failed, buffer.dry, buffer.late) == (1, 0, 0)


def test_a_new_chunk_takes_over_gradually_in_what_may_be_blended() -> None:
    offsets = iter([0.0, 10.0])
    world = World(np.random.default_rng(0))

    def act(observation: Observation) -> ActionChunk:
        rows = np.full((8, 2), next(offsets), np.float32)
        return ActionChunk(rows, "p")

    with ChunkBuffer(act, 4, blend=3, mixed=[True, False]) as buffer:
        done = [buffer.next_action(world.observe) for _ in range(8)]
    assert [float(action[0]) for action in done[4:]] == [2.5, 5, 7.5, 10]
    assert [float(action[1]) for action in done[4:]] == [10, 10, 10, 10]
    assert buffer.seams == 1


def test_relative_rows_are_added_to_the_observation_that_made_them() -> None:
    requests: list[Observation] = []
    states = iter([10.0, 20.0, 30.0])

    def act(observation: Observation) -> ActionChunk:
        requests.append(observation)
        return ActionChunk(np.ones((6, 2), np.float32), "p")

    def observe() -> Observation:
        return Observation({}, np.array([next(states), 5.0, 7.0]))

    with ChunkBuffer(act, 3, delay=1, relative=[True, False], fetch=None) as buffer:
        first = [buffer.next_action(observe) for _ in range(4)]
    assert [action.tolist() for action in first] == [[11, 1]] * 4
    prefix = requests[1].prefix_actions
    assert prefix is not None
    # As the policy has them: relative to the new observation.
    assert prefix[0].tolist() == [-9, 1]


def test_a_caller_that_counts_decides_which_row_is_due() -> None:
    def act(observation: Observation) -> ActionChunk:
        return ActionChunk(observation.state + np.arange(8, dtype=np.float32)[:, None], "p")

    buffer = ChunkBuffer(act, 8, mixed=[False])
    first = Observation({}, np.array([5], np.float32))
    done = [float(buffer.next_action(lambda: first, step)[0]) for step in (5, 6, 9, 9, 12)]
    assert done == [5, 6, 9, 9, 12]
    assert buffer.skipped == 4
    with pytest.raises(GwpError, match="step 3 after step 12"):
        buffer.next_action(lambda: Observation({}, np.zeros(1)), 3)


@pytest.mark.parametrize(
    "options", [{"rate": 0.0}, {"rate": float("nan")}, {"wait_s": -1.0}, {"blend": -1}]
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(GwpError):
        ChunkBuffer(lambda _: ActionChunk(np.zeros((1, 1)), "p"), 1, **options)


def test_masks_of_another_width_are_refused() -> None:
    def act(_: Observation) -> ActionChunk:
        return ActionChunk(np.zeros((4, 3), np.float32), "p")

    buffer = ChunkBuffer(act, 2, zero=[True])
    with pytest.raises(GwpError, match="zero has 1 entries, an action 3"):
        buffer.next_action(lambda: Observation({}, np.zeros(3)))

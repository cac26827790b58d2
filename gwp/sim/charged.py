"""Closed loop where time passes while a chunk is computed: the robot goes on meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from gwp.client.buffering.buffer import ChunkBuffer
from gwp.client.buffering.fetch import Act
from gwp.client.connection.wire import ClientError
from gwp.data.robot.embodiment import Embodiment
from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.interface import Simulator
from gwp.sim.rollout import EpisodeResult, check_chunk

Ask = Callable[[Observation], Callable[[], ActionChunk]]
"""Begins a request; what it gives waits for the answer."""


@dataclass(frozen=True)
class Charge:
    """What a chunk costs in simulated time, and how the robot bridges it.

    latency_ms: from an observation to its chunk, milliseconds of simulated time
    delay:      rows promised with a request, which the next chunk continues (real-time chunking);
                0: the next chunk knows nothing of the one under way
    blend:      rows over which a chunk takes over gradually
    mixed:      `[d]`, true where values between two are values too; None: everywhere
    stops:      the robot stands still until its chunk has come, and executes it from its first row
                on: the one way for a chunk that would be over before it came
    """

    latency_ms: float
    delay: int = 0
    blend: int = 0
    mixed: tuple[bool, ...] | None = None
    stops: bool = False

    def steps(self, fps: float) -> int:
        """Control steps that pass before a chunk can act, rounded up, for a robot of that rate
        (Hz).
        """
        # A rounding error above a whole step is that step.
        return int(np.ceil(self.latency_ms / 1e3 * fps - 1e-6))


class _Simulated:
    """Answers come when their steps have passed in the simulation, however long they take here.

    It is the `Fetch` of a buffer.
    """

    def __init__(self, ask: Ask, steps: int) -> None:
        self._ask = ask
        self._steps = steps
        self._under_way: tuple[int, Callable[[], ActionChunk], Future[ActionChunk]] | None = None
        self.now = 0
        self.requests = 0

    def submit(self, _act: Act, observation: Observation, /) -> "Future[ActionChunk]":
        """Begin a request; its noise seed is its number in the episode."""
        # Times of this machine say nothing of the simulation.
        plain = replace(
            observation, seed=self.requests, observed_at=None, max_age_s=None, report=None
        )
        future: Future[ActionChunk] = Future()
        self._under_way = (self.now + self._steps, self._ask(plain), future)
        self.requests += 1
        return future

    def pass_to(self, step: int) -> None:
        """The control step begins."""
        self.now = step
        if self._under_way is not None and self._under_way[0] <= step:
            _, answer, future = self._under_way
            self._under_way = None
            future.set_result(answer())

    def finish(self) -> None:
        """Take an answer that nobody needs any more: the next episode's must not meet it."""
        if self._under_way is not None:
            self._under_way[1]()


def run_charged(
    env: Simulator,
    ask: Ask,
    charge: Charge,
    robot: Embodiment,
    held: tuple[bool, ...],
    *,
    seed: int,
    max_steps: int,
    replan: int,
) -> EpisodeResult:
    """As `run_episode`, with `charge.latency_ms` between an observation and the chunk made of it.

    The robot's own `ChunkBuffer` decides what is executed: the rows of the chunk under way, then,
    when it runs dry, the last action with zeros for displacements (`held`, as in `Benchmark`).
    Before the first chunk it stands still. A control step is a step of the simulation, so the
    result depends on no clock.

    GwpError when a chunk would be over before it came, unless the robot `stops` for it.
    """
    if charge.stops:
        return _run_stopping(
            env, ask, charge, robot, held, seed=seed, max_steps=max_steps, replan=replan
        )

    seen: list[Observation] = []

    def checked(observation: Observation) -> Callable[[], ActionChunk]:
        if not seen:
            seen.append(observation)
        answer = ask(observation)
        return lambda: _checked(answer(), env.task, charge, robot)

    simulated = _Simulated(checked, charge.steps(robot.fps))
    buffer = ChunkBuffer(
        _never,
        replan,
        charge.delay,
        refill=max(1, charge.delay),
        blend=charge.blend,
        rate=robot.fps,
        wait_s=0.0,
        zero=held,
        mixed=charge.mixed,
        fetch=simulated,
        clock=lambda: simulated.now / robot.fps,
    )
    env.reset(seed)
    done: list[np.ndarray] = []
    waited, success = 0, False
    try:
        while not success and len(done) < max_steps:
            simulated.pass_to(len(done))
            try:
                action = buffer.next_action(env.observe, len(done))
            except ClientError as error:
                # Nothing has come yet, and there is nothing to hold.
                if error.code != "dry":
                    raise
                action, waited = standing(robot, seen[0]), waited + 1
            done.append(action)
            success = env.step(action)
    finally:
        simulated.finish()
    return EpisodeResult(
        success,
        len(done),
        simulated.requests,
        [charge.latency_ms] * simulated.requests,
        actions=done,
        waited=waited,
        dry=buffer.dry,
        late=buffer.late,
    )


def _run_stopping(
    env: Simulator,
    ask: Ask,
    charge: Charge,
    robot: Embodiment,
    held: tuple[bool, ...],
    *,
    seed: int,
    max_steps: int,
    replan: int,
) -> EpisodeResult:
    """As `run_charged`, of a robot that stands still while a chunk is computed."""
    steps = charge.steps(robot.fps)
    env.reset(seed)
    done: list[np.ndarray] = []
    requests = waited = 0
    success = False
    while not success and len(done) < max_steps:
        observation = env.observe()
        answer = ask(replace(observation, seed=requests))
        requests += 1
        # At the start where it is; later its last action, less displacements.
        still = np.where(held, 0.0, done[-1]) if done else standing(robot, observation)
        still = still.astype(np.float32)
        chunk = _checked(answer(), env.task, charge, robot)
        rows = [still] * steps + list(chunk.actions[:replan])
        for number, action in enumerate(rows[: max_steps - len(done)]):
            done.append(action)
            waited += number < steps
            success = env.step(action)
            if success:
                break
    latencies = [charge.latency_ms] * requests
    return EpisodeResult(success, len(done), requests, latencies, actions=done, waited=waited)


def standing(robot: Embodiment, first: Observation) -> np.ndarray:
    """The action `[d]` that keeps a robot where the first observation has it: what is a part of the
    state stays as it is, and all else is 0.
    """
    state = dict(zip(robot.state_names, np.asarray(first.state), strict=True))
    return np.array([state.get(name, 0.0) for name in robot.action_names], np.float32)


def _checked(chunk: ActionChunk, task: str, charge: Charge, robot: Embodiment) -> ActionChunk:
    check_chunk(chunk, task, robot)
    if not charge.stops:
        check_fits(charge, robot.fps, len(chunk.actions))
    return chunk


def check_fits(charge: Charge, fps: float, chunk: int) -> None:
    """GwpError when a latency cannot be charged to chunks of so many actions."""
    steps = charge.steps(fps)
    if steps < chunk:
        return
    raise GwpError(
        f"{charge.latency_ms:g} ms are {steps} control steps, and a chunk has {chunk} "
        "actions: each would be over before it came; charge less, use a policy of longer chunks, or "
        "let the robot stop for each (--chunking stop)"
    )


def _never(_observation: Observation) -> ActionChunk:
    raise AssertionError("the simulated fetch asks")

"""The engine under failures: at every line of a tick, once and for ever, each request is
answered once and rightly.

A trace function raises in the engine's thread before a line of the engine, its schedule, its
rows or its recordings is run. One engine lives through all of it, so each round also shows that
the one before left nothing behind.
"""

import linecache
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import FrameType
from typing import Any

import numpy as np
import pytest

from gwp.errors import ClosedError, ExpiredError, GwpError
from gwp.policy.batching import runner as runner_module
from gwp.policy.batching.engine import Engine
from gwp.policy.batching.schedule import BatchingConfig, Schedule
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from tests.support.tiny import make_tiny_bundle

LIMIT = 60
TRACED = (
    "batching/engine.py",
    "batching/runner.py",
    "batching/schedule.py",
    "batching/slots.py",
    "policy/graphs.py",
    "policy/solver.py",
)
# What answers after a failure; it is beneath the promise, so it cannot be held to it.
HANDLERS = ("_recover", "_answer", "_end", "free_rows", "clear", "_wait", "_run_tick")

Line = tuple[str, int]


class Injected(RuntimeError):
    """What a broken device might raise."""


@dataclass
class Faults:
    """Raises in the engine's thread before `line` is run, at its `at`-th run (from 0), or at
    every run.

    The engine asks its clock first in every tick, which is where the trace is armed again:
    Python drops it when it raises.
    """

    error: type[BaseException] = Injected
    line: Line | None = None
    at: int = 0
    always: bool = False
    seen: dict[Line, int] = field(default_factory=dict)
    raised: int = 0
    ticks: int = 0
    on: bool = False

    def inject(
        self, error: type[BaseException], line: Line | None, at: int = 0, always: bool = False
    ) -> None:
        self.error, self.line, self.at, self.always = error, line, at, always
        self.seen = {}

    def clock(self) -> float:
        if threading.current_thread().name == "gwp-engine" and self.on:
            sys.settrace(self._enter)
        return 0.0

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        self.ticks += code.co_name == "_tick"
        ours = code.co_filename.endswith(TRACED) and code.co_name not in HANDLERS
        return self._line if ours and self.on else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line":
            here = (frame.f_code.co_filename, frame.f_lineno)
            if _is_with(*here):
                # Also visited on the way out, where raising would skip what the `with` is there
                # for.
                return self._line
            count = self.seen[here] = self.seen.get(here, -1) + 1
            if here == self.line and (self.always or count == self.at):
                self.raised += 1
                raise self.error("injected")
        return self._line


def _is_move(file: str, line: int) -> bool:
    return "tensor[target] = tensor[source]" in linecache.getline(file, line)


@cache
def _is_with(file: str, line: int) -> bool:
    return linecache.getline(file, line).lstrip().startswith("with ")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), num_layers=1), steps=2)


def observe(seed: int, **changes: Any) -> Observation:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    state = rng.uniform(-0.5, 0.5, 4).astype(np.float32)
    return replace(
        Observation({"observation.images.top": image}, state, f"lift cube {seed % 3}", seed=seed),
        **changes,
    )


def promised(seed: int) -> Observation:
    return observe(
        seed, prefix_actions=np.linspace(-0.5, 0.5, 12, dtype=np.float32).reshape(3, 4), delay=2
    )


GOOD = [observe(0), promised(1), observe(2), observe(3), promised(4), observe(5)]
UNENCODABLE, UNUSABLE, LEAVER = observe(6), observe(7), observe(10)


@dataclass
class Crowd:
    """More robots than rows, of all kinds, taken in together."""

    good: "list[Future[ActionChunk]]"
    unencodable: "Future[ActionChunk]"
    unusable: "Future[ActionChunk]"
    late: "Future[ActionChunk]"
    cancelled: "Future[ActionChunk]"
    leaver: "Future[ActionChunk]"

    @property
    def all(self) -> "list[Future[ActionChunk]]":
        return [*self.good, self.unencodable, self.unusable, self.late, self.cancelled, self.leaver]


def join(engine: Engine) -> Crowd:
    """Rows 0 .. 3 first hold the leaver, a good one, the unencodable one and another good one."""
    with engine._lock:
        leaver = engine.submit(LEAVER)
        first = engine.submit(GOOD[0])
        unencodable = engine.submit(UNENCODABLE)
        second = engine.submit(GOOD[1])
        late, cancelled = engine.submit(observe(8), deadline_s=-1.0), engine.submit(observe(9))
        third, unusable = engine.submit(GOOD[2]), engine.submit(UNUSABLE)
        rest = [engine.submit(o) for o in GOOD[3:]]
        assert cancelled.cancel()
    return Crowd([first, second, third, *rest], unencodable, unusable, late, cancelled, leaver)


@dataclass
class House:
    """One engine, its faults, what robots get when nothing fails, and how many ticks that
    takes.
    """

    engine: Engine
    faults: Faults
    expected: list[np.ndarray]
    baseline_ticks: int
    lines: dict[Line, int]
    crowd: Crowd | None = None

    def round(self, exact: bool) -> Crowd:
        """A crowd joins; everyone is answered once, with the right value or a reason."""
        self.faults.ticks, self.faults.raised, self.faults.on = 0, 0, True
        crowd = self.crowd = join(self.engine)
        _, waiting = wait(crowd.all, LIMIT)
        self.faults.on = False
        assert not waiting, "not answered"
        assert self.engine.alive
        # Each tick that breaks off answers somebody, so they cannot go on for ever.
        assert self.faults.ticks <= self.baseline_ticks + len(crowd.all)
        for future, expected in zip(crowd.good, self.expected, strict=True):
            error = future.exception()
            assert error is None or self._injected(error), error
            if error is None:
                actions = future.result().actions
                same = (
                    np.array_equal(actions, expected)
                    if exact
                    else np.allclose(actions, expected, atol=1e-5)
                )
                assert same, "another robot's chunk"
        for future, kinds in (
            (crowd.unencodable, OSError),
            (crowd.unusable, ArithmeticError),
            (crowd.late, ExpiredError),
        ):
            error = future.exception()
            assert isinstance(error, kinds) or self._injected(error), error
        with pytest.raises(CancelledError):
            crowd.cancelled.result()
        assert (
            crowd.leaver.cancelled()
            or crowd.leaver.exception() is None
            or self._injected(crowd.leaver.exception())
        )
        return crowd

    def _injected(self, error: BaseException | None) -> bool:
        return isinstance(error, self.faults.error) or isinstance(
            getattr(error, "__cause__", None), self.faults.error
        )


@contextmanager
def house(policy: Policy, settings: BatchingConfig, patch: pytest.MonkeyPatch) -> Iterator[House]:
    """A running engine, with rows that are taken over while others are at work.

    One robot cannot be encoded, one gets no chunk, and one gives up when the third good one is
    encoded.
    """
    encode, chunk = policy.codec.encode, policy.chunk
    unencodable, third = (
        policy.inputs.admit(UNENCODABLE).canvas,
        policy.inputs.admit(GOOD[2]).canvas,
    )

    def broken_encode(frames: Any) -> Any:
        if any(np.array_equal(frame, unencodable) for frame in frames.numpy()):
            raise OSError("no latents for this one")
        if here.crowd and any(np.array_equal(frame, third) for frame in frames.numpy()):
            here.crowd.leaver.cancel()
        return encode(frames)

    def broken_chunk(admitted: Any, chunk_pd: np.ndarray) -> ActionChunk:
        if admitted.observation.seed == UNUSABLE.seed:
            raise ArithmeticError("no chunk for this one")
        return chunk(admitted, chunk_pd)

    patch.setattr(policy.codec, "encode", broken_encode)
    patch.setattr(policy, "chunk", broken_chunk)
    # One shape of batch for all: a product of other shape rounds its last bit otherwise.
    patch.setattr(Schedule, "rows", lambda self, count: self.slots)
    faults = Faults()
    with Engine(policy, settings, faults.clock) as engine:
        here = House(engine, faults, [], 1000, {})
        alone = [engine.act(o).actions for o in GOOD]
        here.expected = alone
        here.round(exact=settings.group == 1)
        here.baseline_ticks, here.lines = faults.ticks, dict(faults.seen)
        assert len(here.lines) > 100
        assert any(
            file.endswith("slots.py") and _is_move(file, line) for file, line in here.lines
        ), "no row has moved"
        yield here


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("always", "error", "group", "where"),
    [
        pytest.param(False, Injected, 1, TRACED, id="once, to the last bit"),
        pytest.param(False, MemoryError, 2, TRACED[:1], id="once, in groups"),
        pytest.param(True, SystemExit, 2, TRACED, id="for ever"),
    ],
)
def test_a_failure_at_any_line_of_a_tick_leaves_nobody_unanswered(
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    always: bool,
    error: type[BaseException],
    group: int,
    where: tuple[str, ...],
) -> None:
    wrong = []
    with house(policy, BatchingConfig(slots=4, group=group, max_delay=5.0), monkeypatch) as here:
        for line, count in [(line, n) for line, n in here.lines.items() if line[0].endswith(where)]:
            # In the middle rows have been taken over by others.
            here.faults.inject(error, line, at=0 if always else count // 2, always=always)
            try:
                here.round(exact=group == 1)
                assert here.faults.raised, "the line was not run"
            except AssertionError as complaint:
                wrong.append(f"{line[0].rsplit('/', 1)[1]}:{line[1]}: {complaint}")
        here.faults.inject(error, None)
        last = here.round(exact=group == 1)
    assert not wrong, "\n".join(wrong)
    assert not any(future.exception() for future in last.good), "an earlier failure is felt later"
    assert here.engine.load == (0, 0)


def test_what_answers_failing_itself_closes_the_engine_and_answers_all(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with Engine(policy, BatchingConfig(slots=2)) as engine:
        monkeypatch.setattr(engine, "_tick", raises(Injected))
        monkeypatch.setattr(engine, "_recover", raises(Injected))
        with engine._lock:
            futures = [engine.submit(o) for o in GOOD]
        assert not wait(futures, LIMIT).not_done
        assert {type(future.exception()) for future in futures} == {ClosedError}
        engine._thread.join(LIMIT)
        assert not engine.alive
        with pytest.raises(ClosedError):
            engine.submit(GOOD[0])


@pytest.mark.parametrize(
    ("error", "seen"),
    [(Injected, Injected), (MemoryError, MemoryError), (SystemExit, RuntimeError)],
)
def test_an_engine_that_cannot_start_says_so(
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    seen: type[Exception],
) -> None:
    monkeypatch.setattr(runner_module, "recorded", raises(error))
    before = set(threading.enumerate())
    with pytest.raises(seen, match="injected"):
        Engine(policy)
    for thread in set(threading.enumerate()) - before:
        thread.join(LIMIT)
        assert not thread.is_alive()


def test_a_callback_that_fails_or_closes_costs_nobody_an_answer(policy: Policy) -> None:
    with Engine(policy, BatchingConfig(slots=1)) as engine:
        with engine._lock:
            first, second, third = (engine.submit(o) for o in GOOD[:3])
            first.add_done_callback(raises(SystemExit))
            second.add_done_callback(lambda _: engine.close())
        assert not wait([first, second, third], LIMIT).not_done
        assert isinstance(first.result(), ActionChunk)
        assert isinstance(second.result(), ActionChunk)
        with pytest.raises(ClosedError):
            third.result()
        engine._thread.join(LIMIT)
        assert not engine.alive


def test_who_waits_for_a_cancelled_request_waits_no_longer(policy: Policy) -> None:
    with Engine(policy) as engine:
        with engine._lock:
            future = engine.submit(GOOD[0])
            assert future.cancel()
        assert not wait([future], LIMIT).not_done


def test_warming_up_with_nothing_is_told(policy: Policy) -> None:
    with Engine(policy) as engine, pytest.raises(GwpError, match="at least one"):
        engine.warm_up([])


def raises(error: type[BaseException]) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error("injected")

    return failing

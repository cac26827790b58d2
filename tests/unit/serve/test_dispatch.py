"""Between gateway and model, without a cluster: deadlines, lost replicas, and batches with a
bad member.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError
from torch import Tensor

from gwp.errors import GwpError
from gwp.policy.batching.engine import Engine
from gwp.policy.contract import PolicyContract
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from serve.config import ServeApp
from serve.dispatch import Dispatcher, Refusal, RefusedError
from serve.guarded import MAX_FAILURES, GuardedEngine
from serve.replica import Replica
from serve.warmup import observation_for
from tests.support.tiny import TINY_ARM, make_tiny_bundle

CHUNK = ActionChunk(np.zeros((8, 4), np.float32), "id")
OBSERVATION = replace(observation_for(TINY_ARM), seed=1)


class Handle:
    """Stands where Serve's handle to the replicas stands; each call takes the next outcome."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes, self.calls, self.cancelled = list(outcomes), 0, 0
        self.act, self.breaks_off = self, False

    def remote(self, _: Observation) -> "Handle":
        self.calls += 1
        return self

    def cancel(self) -> None:
        self.cancelled += 1
        if self.breaks_off:
            # What Serve's own `cancel` does when the request has failed meanwhile.
            raise BackPressureError(64, 64)

    def __await__(self) -> Generator[Any, None, Any]:
        outcome = self.outcomes.pop(0)
        if outcome == "never":
            yield from asyncio.Event().wait().__await__()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def ask(bundle: Path) -> Callable[..., Any]:
    def ask(handle: Handle, timeout_s: float = 5, **changes: Any) -> ActionChunk:
        config = ServeApp.model_validate(
            {"policy": str(bundle), "limits": {"request_timeout_s": timeout_s}}
        )
        dispatcher = Dispatcher(handle, PolicyContract.read(str(bundle)), config)  # type: ignore[arg-type]
        return asyncio.run(dispatcher.act(replace(OBSERVATION, **changes)))

    return ask


@pytest.mark.parametrize(
    "lost", [ActorDiedError(), ActorUnavailableError("gone", None), WorkerCrashedError()]
)
def test_a_request_lost_with_its_replica_is_sent_once_more(
    ask: Callable[..., Any], lost: Exception
) -> None:
    handle = Handle(lost, CHUNK)
    assert ask(handle) is CHUNK
    assert handle.calls == 2
    with pytest.raises(RefusedError, match="lost twice") as caught:
        ask(Handle(lost, lost))
    assert caught.value.code == "unavailable"


def test_a_full_queue_is_told_at_once(ask: Callable[..., Any]) -> None:
    handle = Handle(BackPressureError(64, 64))
    with pytest.raises(RefusedError, match="try again") as caught:
        ask(handle)
    assert (caught.value.code, handle.calls) == ("busy", 1)


@pytest.mark.parametrize(
    ("asked", "code"), [({"deadline_s": 0.05}, "deadline"), ({}, "unavailable")]
)
def test_a_reply_out_of_time_is_given_up_and_its_work_cancelled(
    ask: Callable[..., Any], asked: dict[str, float], code: str
) -> None:
    handle = Handle("never")
    with pytest.raises(RefusedError, match=r"no chunk within 0.05 s") as caught:
        ask(handle, timeout_s=5 if asked else 0.05, **asked)
    assert (caught.value.code, handle.cancelled) == (code, 1)


def test_work_that_fails_while_it_is_given_up_changes_no_answer(ask: Callable[..., Any]) -> None:
    handle = Handle("never")
    handle.breaks_off = True
    with pytest.raises(RefusedError, match=r"no chunk within 0.05 s"):
        ask(handle, timeout_s=0.05)


@pytest.mark.parametrize("dropped", [asyncio.CancelledError(), TaskCancelledError()])
def test_a_request_that_serve_drops_is_answered(
    ask: Callable[..., Any], dropped: BaseException
) -> None:
    with pytest.raises(RefusedError, match="dropped") as caught:
        ask(Handle(dropped))
    assert caught.value.code == "unavailable"


def test_a_robot_that_hangs_up_stops_its_work(bundle: Path) -> None:
    handle = Handle("never")
    config = ServeApp.model_validate({"policy": str(bundle)})
    dispatcher = Dispatcher(handle, PolicyContract.read(str(bundle)), config)  # type: ignore[arg-type]

    async def hang_up() -> None:
        asking = asyncio.ensure_future(dispatcher.act(OBSERVATION))
        while not handle.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(hang_up())
    assert handle.cancelled == 1


def test_the_endpoint_s_own_limit_holds_whatever_a_robot_asks(ask: Callable[..., Any]) -> None:
    with pytest.raises(RefusedError, match=r"within 0.05 s"):
        ask(Handle("never"), timeout_s=0.05, deadline_s=1e9)


def test_a_refusal_of_the_replica_keeps_its_code(ask: Callable[..., Any]) -> None:
    with pytest.raises(RefusedError, match="not finite") as caught:
        ask(Handle(Refusal("policy", "not finite")))
    assert caught.value.code == "policy"


def settings(bundle: Path) -> dict[str, Any]:
    return ServeApp.model_validate({"policy": str(bundle), "engine": {"slots": 4}}).model_dump(
        mode="json"
    )


@pytest.fixture
def engine(bundle: Path) -> Generator[Engine, None, None]:
    with Engine(Policy.load(bundle)) as engine:
        yield engine


def gather(guarded: GuardedEngine, *observations: Observation) -> list[Any]:
    async def together() -> list[Any]:
        async with asyncio.timeout(60):
            return await asyncio.gather(*(guarded.act(o) for o in observations))

    return asyncio.run(together())


def test_one_bad_observation_does_not_fail_the_others_of_its_batch(engine: Engine) -> None:
    guarded = GuardedEngine(engine, stuck_after_s=60)
    bad = replace(OBSERVATION, state=OBSERVATION.state * np.nan)
    first, refused, last = gather(guarded, OBSERVATION, bad, replace(OBSERVATION, seed=2))
    assert isinstance(first, ActionChunk)
    assert isinstance(last, ActionChunk)
    assert not np.array_equal(first.actions, last.actions)
    assert isinstance(refused, Refusal)
    assert refused.code == "observation"
    assert "state" in refused.message
    guarded.check_health()


def test_an_expired_observation_is_told_so(engine: Engine) -> None:
    (refused,) = gather(
        GuardedEngine(engine, stuck_after_s=60), replace(OBSERVATION, deadline_s=1e-9)
    )
    assert isinstance(refused, Refusal)
    assert refused.code == "deadline"


def test_repeated_failures_are_unhealthy_and_tell_robots_nothing_of_the_inside(
    engine: Engine,
) -> None:
    guarded = GuardedEngine(engine, stuck_after_s=60)
    with pytest.MonkeyPatch.context() as patch:
        # As after a device error: the weights are there, computing fails.
        patch.setattr(engine.policy, "codec", None)
        for _ in range(MAX_FAILURES):
            guarded.check_health()
            (refused,) = gather(guarded, OBSERVATION)
            assert isinstance(refused, Refusal)
            assert refused.code == "internal"
            assert "NoneType" not in refused.message
        with pytest.raises(RuntimeError, match="last 3 observations failed"):
            guarded.check_health()
    assert isinstance(gather(guarded, OBSERVATION)[0], ActionChunk)
    guarded.check_health()


def test_a_step_that_never_ends_is_unhealthy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = GuardedEngine(engine, stuck_after_s=0)
    complaints: list[str] = []
    real = engine.policy.latents

    def latents(canvas: Tensor) -> Tensor:
        with pytest.raises(RuntimeError, match="takes longer") as caught:
            guarded.check_health()
        complaints.append(str(caught.value))
        return real(canvas)

    monkeypatch.setattr(engine.policy, "latents", latents)
    assert isinstance(gather(guarded, OBSERVATION)[0], ActionChunk)
    assert complaints
    # The chunk is there a moment before its tick is over.
    until = time.monotonic() + 60
    while engine.busy_for and time.monotonic() < until:
        time.sleep(0.001)
    guarded.check_health()


def test_a_robot_that_gives_up_frees_its_row(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that gives up while its observation is still being prepared."""
    guarded, real = GuardedEngine(engine, stuck_after_s=60), engine.submit
    submitted: list[Future[ActionChunk]] = []

    def submit(observation: Observation) -> "Future[ActionChunk]":
        submitted.append(real(observation))
        return submitted[-1]

    monkeypatch.setattr(engine, "submit", submit)
    # Or the chunk might be there first.
    given_up, latents = threading.Event(), engine.policy.latents

    def late(canvas: Tensor) -> Tensor:
        assert given_up.wait(60)
        return latents(canvas)

    monkeypatch.setattr(engine.policy, "latents", late)

    async def give_up() -> None:
        # The engine can neither accept nor take in anything while this is held.
        with engine._lock:
            waiting = asyncio.ensure_future(guarded.act(OBSERVATION))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not submitted
        async with asyncio.timeout(60):
            while not (submitted and submitted[0].done()):
                await asyncio.sleep(0)
        given_up.set()

    asyncio.run(give_up())
    assert submitted[0].cancelled()
    monkeypatch.undo()
    assert isinstance(engine.act(OBSERVATION), ActionChunk)
    assert engine.load == (0, 0)


def test_a_replica_that_ends_says_that_another_may_answer_and_is_unhealthy(bundle: Path) -> None:
    engine = Engine(Policy.load(bundle))
    guarded = GuardedEngine(engine, stuck_after_s=60)
    engine.close()
    (refused,) = gather(guarded, OBSERVATION)
    assert isinstance(refused, Refusal)
    assert refused.code == "unavailable"
    with pytest.raises(RuntimeError, match="has ended"):
        guarded.check_health()


def test_another_bundle_at_the_same_place_is_refused(bundle: Path) -> None:
    other = (
        PolicyContract.read(str(bundle))
        .model_copy(update={"policy_id": "0" * 64})
        .model_dump(mode="json")
    )
    with pytest.raises(GwpError, match="deploy again"):
        Replica.func_or_class(str(bundle), other, settings(bundle))  # type: ignore[attr-defined]


def test_the_arguments_of_a_replica_are_plain_json(bundle: Path) -> None:
    contract = PolicyContract.read(str(bundle))
    assert (
        PolicyContract.model_validate(json.loads(json.dumps(contract.model_dump(mode="json"))))
        == contract
    )

"""The engine behind asyncio: batches with a bad member, deadlines, robots that give up, and a
device that fails.
"""

import asyncio
import json
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from gwp.errors import GwpError
from gwp.policy.batching.engine import Engine
from gwp.policy.composed import ComposedObservation, compose_observation
from gwp.policy.contract import PolicyContract
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from serve.config import ServeApp
from serve.deployments.replica import Replica
from serve.guarded import MAX_FAILURES, GuardedEngine
from serve.identity import Identity
from serve.refusal import RefusedError
from serve.warmup import observation_for
from tests.support.tiny import TINY_ARM, make_tiny_bundle

OBSERVATION = replace(observation_for(TINY_ARM), seed=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


def settings(bundle: Path) -> dict[str, Any]:
    return ServeApp.model_validate({"policy": str(bundle), "engine": {"slots": 4}}).model_dump(
        mode="json"
    )


@pytest.fixture
def engine(bundle: Path) -> Generator[Engine, None, None]:
    with Engine(Policy.load(bundle)) as engine:
        yield engine


def composed(observation: Observation, engine: Engine) -> ComposedObservation:
    return compose_observation(observation, engine.policy.contract)


def gather(guarded: GuardedEngine, *given: ComposedObservation, allowed_s: float = 60) -> list[Any]:
    async def together() -> list[Any]:
        async with asyncio.timeout(60):
            asked = (guarded.act(each, allowed_s) for each in given)
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(together())


def test_one_bad_observation_does_not_fail_the_others_of_its_batch(engine: Engine) -> None:
    guarded = GuardedEngine(engine, stuck_after_s=60)
    good = composed(OBSERVATION, engine)
    # Of another embodiment than the gateway thought: it is found before it enters a batch.
    bad = replace(good, observation=replace(good.observation, embodiment="hand"))
    other = composed(replace(OBSERVATION, seed=2), engine)
    first, refused, last = gather(guarded, good, bad, other)
    assert isinstance(first, ActionChunk)
    assert isinstance(last, ActionChunk)
    assert not np.array_equal(first.actions, last.actions)
    assert isinstance(refused, RefusedError)
    assert refused.code == "observation"
    assert "hand" in str(refused)
    guarded.check_health()


def test_an_expired_observation_is_told_so(engine: Engine) -> None:
    guarded = GuardedEngine(engine, stuck_after_s=60)
    (refused,) = gather(guarded, composed(OBSERVATION, engine), allowed_s=1e-9)
    assert isinstance(refused, RefusedError)
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
            (refused,) = gather(guarded, composed(OBSERVATION, engine))
            assert isinstance(refused, RefusedError)
            assert refused.code == "internal"
            assert "NoneType" not in str(refused)
        with pytest.raises(RuntimeError, match="last 3 observations failed"):
            guarded.check_health()
    assert isinstance(gather(guarded, composed(OBSERVATION, engine))[0], ActionChunk)
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
    assert isinstance(gather(guarded, composed(OBSERVATION, engine))[0], ActionChunk)
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
    given = composed(OBSERVATION, engine)
    submitted: list[Future[ActionChunk]] = []

    def submit(given: ComposedObservation, allowed_s: float) -> "Future[ActionChunk]":
        submitted.append(real(given, allowed_s))
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
            waiting = asyncio.ensure_future(guarded.act(given, 60))
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
    (refused,) = gather(guarded, composed(OBSERVATION, engine))
    assert isinstance(refused, RefusedError)
    assert refused.code == "unavailable"
    with pytest.raises(RuntimeError, match="has ended"):
        guarded.check_health()


def test_another_bundle_at_the_same_place_is_refused(bundle: Path) -> None:
    other = (
        PolicyContract.read(str(bundle))
        .model_copy(update={"policy_id": "0" * 64})
        .model_dump(mode="json")
    )
    who = Identity(policy_id="0" * 64).model_dump()
    with pytest.raises(GwpError, match="deploy again"):
        Replica.func_or_class(str(bundle), other, who, settings(bundle), "token", None)  # type: ignore[attr-defined]


def test_the_arguments_of_a_replica_are_plain_json(bundle: Path) -> None:
    contract = PolicyContract.read(str(bundle))
    assert (
        PolicyContract.model_validate(json.loads(json.dumps(contract.model_dump(mode="json"))))
        == contract
    )

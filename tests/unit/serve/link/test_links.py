"""Between gateways and replicas: one connection each, and what happens when one is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk
from serve.link.pool import ReplicaPool
from serve.link.server import LinkServer
from serve.refusal import RefusedError
from serve.warmup import observation_for
from tests.support.tiny import TINY_ARM

TOKEN = "secret"
SEEN = replace(observation_for(TINY_ARM), images={}, prompt="go", seed=1)
GIVEN = ComposedObservation(SEEN, np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3))


def given(seed: int) -> ComposedObservation:
    return replace(GIVEN, observation=replace(SEEN, seed=seed))


class Engine:
    """Stands where a model stands: the chunk says which observation it is for."""

    def __init__(self) -> None:
        self.asked: list[ComposedObservation] = []
        self.allowed: list[float] = []
        self.given_up = 0
        self.refusal: RefusedError | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.load, self.wait_s, self.batch, self.ready = 0, 0.0, 1.0, True

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        self.asked.append(given)
        self.allowed.append(allowed_s)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.refusal:
            raise self.refusal
        rows = np.full((2, 4), given.observation.seed, np.float32)
        return ActionChunk(rows, "id", 1, {"vae": 1.5}, ("clipped:x",))


class Fleet:
    """Replicas and one gateway's pool, in one loop."""

    def __init__(self, window: int = 8, queue: int = 64) -> None:
        self.pool = ReplicaPool(TOKEN, window, queue)
        self.engines: list[Engine] = []
        self.servers: list[LinkServer] = []
        self.addresses: list[str] = []

    async def add(self, token: str = TOKEN) -> Engine:
        engine = Engine()
        server = LinkServer(engine, token)  # type: ignore[arg-type]
        self.addresses.append(f"127.0.0.1:{await server.listen('127.0.0.1')}")
        self.engines.append(engine)
        self.servers.append(server)
        self.pool.found(self.addresses)
        return engine

    async def connected(self, count: int) -> None:
        await until(lambda: len(self.pool._links) == count)

    async def lose(self, number: int) -> None:
        """As a killed process looks from here: its connections break."""
        for link in list(self.servers[number]._links):
            link._socket.transport.abort()
        server = self.servers[number]._server
        assert server is not None
        server.close()


async def until(happened: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.005)


def run(test: Callable[[Fleet], Awaitable[None]], **options: int) -> None:
    async def body() -> None:
        fleet = Fleet(**options)
        try:
            async with asyncio.timeout(60):
                await test(fleet)
        finally:
            await fleet.pool.close()
            for server in fleet.servers:
                await server.leave(0)

    asyncio.run(body())


def test_everything_of_an_observation_and_of_a_chunk_arrives() -> None:
    prefix = np.ones((3, 4), np.float32)
    said = replace(SEEN, prefix_actions=prefix, delay=2, robot="r", observed_at=3.5, rate=20.0)

    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        chunk = await fleet.pool.act(replace(GIVEN, observation=said), 5)
        (got,) = engine.asked
        assert np.array_equal(got.canvas, GIVEN.canvas)
        assert got.canvas.dtype == np.uint8
        assert np.array_equal(got.observation.state, said.state)
        assert np.array_equal(got.observation.prefix_actions, prefix)  # type: ignore[arg-type]
        plain = {"state": None, "prefix_actions": None}
        assert replace(got.observation, **plain) == replace(said, **plain)  # type: ignore[arg-type]
        assert 4 < engine.allowed[0] <= 5
        assert np.array_equal(chunk.actions, np.ones((2, 4), np.float32))
        assert (chunk.policy_id, chunk.valid_from, chunk.timings, chunk.flags) == (
            "id",
            1,
            {"vae": 1.5},
            ("clipped:x",),
        )

    run(test)


def test_each_of_many_gets_its_own_answer_from_all_replicas() -> None:
    async def test(fleet: Fleet) -> None:
        for _ in range(3):
            await fleet.add()
        await fleet.connected(3)
        chunks = await asyncio.gather(*(fleet.pool.act(given(n), 20) for n in range(300)))
        assert [int(chunk.actions[0, 0]) for chunk in chunks] == list(range(300))
        assert all(len(engine.asked) > 50 for engine in fleet.engines)
        assert all(link.taken == 0 for link in fleet.pool._links.values())

    run(test, queue=300)


def test_what_a_lost_replica_had_is_answered_by_another() -> None:
    async def test(fleet: Fleet) -> None:
        first = await fleet.add()
        await fleet.connected(1)
        first.open.clear()
        asked = [asyncio.ensure_future(fleet.pool.act(given(n), 20)) for n in range(4)]
        await until(lambda: len(first.asked) == 4)
        second = await fleet.add()
        await fleet.connected(2)
        await fleet.lose(0)
        chunks = await asyncio.gather(*asked)
        assert [int(chunk.actions[0, 0]) for chunk in chunks] == [0, 1, 2, 3]
        assert len(second.asked) == 4
        # What is given up with its gateway is given up in the replica.
        await until(lambda: first.given_up == 4)

    run(test)


def test_a_request_that_is_lost_twice_is_refused() -> None:
    async def test(fleet: Fleet) -> None:
        for _ in range(2):
            (await fleet.add()).open.clear()
        await fleet.connected(2)
        asked = asyncio.ensure_future(fleet.pool.act(given(1), 20))
        await until(lambda: any(engine.asked for engine in fleet.engines))
        first = 0 if fleet.engines[0].asked else 1
        await fleet.lose(first)
        await until(lambda: fleet.engines[1 - first].asked)
        await fleet.lose(1 - first)
        with pytest.raises(RefusedError, match="lost twice") as caught:
            await asked
        assert caught.value.code == "unavailable"

    run(test)


def test_without_a_replica_a_request_waits_for_one() -> None:
    async def test(fleet: Fleet) -> None:
        assert not fleet.pool.ready
        asked = asyncio.ensure_future(fleet.pool.act(given(7), 20))
        await asyncio.sleep(0)
        assert not asked.done()
        await fleet.add()
        assert int((await asked).actions[0, 0]) == 7
        assert fleet.pool.ready

    run(test)


def test_those_who_wait_go_by_their_deadlines_and_a_full_line_is_told() -> None:
    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        engine.open.clear()
        asked = [asyncio.ensure_future(fleet.pool.act(given(0), 60))]
        await until(lambda: engine.asked)
        for seed, allowed_s in ((1, 50), (2, 20), (3, 40)):
            asked.append(asyncio.ensure_future(fleet.pool.act(given(seed), allowed_s)))
        # It has as much time as they like, but no actions.
        dry = replace(SEEN, seed=5, steps_left=2, rate=20.0)
        asked.append(asyncio.ensure_future(fleet.pool.act(replace(GIVEN, observation=dry), 60)))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="queue is full") as caught:
            await fleet.pool.act(given(4), 10)
        assert caught.value.code == "busy"
        assert caught.value.retry_after_s
        engine.open.set()
        await asyncio.gather(*asked)
        assert [each.observation.seed for each in engine.asked] == [0, 5, 2, 3, 1]

    run(test, window=1, queue=4)


def test_who_gives_up_frees_its_place_here_and_there() -> None:
    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        engine.open.clear()
        first, second = (asyncio.ensure_future(fleet.pool.act(given(n), 60)) for n in (1, 2))
        await until(lambda: engine.asked)
        second.cancel()
        await asyncio.sleep(0)
        assert not fleet.pool._line
        first.cancel()
        await until(lambda: engine.given_up == 1)
        engine.open.set()
        assert int((await fleet.pool.act(given(3), 60)).actions[0, 0]) == 3

    run(test, window=1)


def test_a_replica_that_leaves_answers_what_it_has_and_gets_nothing_more() -> None:
    async def test(fleet: Fleet) -> None:
        first, second = await fleet.add(), await fleet.add()
        await fleet.connected(2)
        first.open.clear()
        second.open.clear()
        asked = [asyncio.ensure_future(fleet.pool.act(given(n), 20)) for n in range(4)]
        await until(lambda: len(first.asked) + len(second.asked) == 4)
        had = len(first.asked)
        leaving = asyncio.ensure_future(fleet.servers[0].leave(20))
        await until(lambda: any(link.leaving for link in fleet.pool._links.values()))
        more = [asyncio.ensure_future(fleet.pool.act(given(n), 20)) for n in range(4, 8)]
        await until(lambda: len(second.asked) == 8 - had)
        first.open.set()
        second.open.set()
        chunks = await asyncio.gather(*asked, *more)
        assert [int(chunk.actions[0, 0]) for chunk in chunks] == list(range(8))
        await leaving
        assert (len(first.asked), first.given_up) == (had, 0)
        await fleet.connected(1)

    run(test)


def test_the_last_one_answers_while_it_leaves() -> None:
    async def test(fleet: Fleet) -> None:
        await fleet.add()
        await fleet.connected(1)
        leaving = asyncio.ensure_future(fleet.servers[0].leave(20))
        for seed in range(20):
            assert int((await fleet.pool.act(given(seed), 5)).actions[0, 0]) == seed
        await leaving

    run(test)


def test_an_engine_that_ends_is_no_answer_but_another_refusal_is() -> None:
    async def test(fleet: Fleet) -> None:
        first, second = await fleet.add(), await fleet.add()
        await fleet.connected(2)
        first.refusal = RefusedError("unavailable", "ending", 0.1)
        first.load = second.load = 0
        for seed in range(10):
            assert int((await fleet.pool.act(given(seed), 5)).actions[0, 0]) == seed
        first.refusal = second.refusal = RefusedError("policy", "not finite")
        with pytest.raises(RefusedError, match="not finite") as caught:
            await fleet.pool.act(given(1), 5)
        assert (caught.value.code, caught.value.retry_after_s) == ("policy", None)

    run(test)


def test_only_gateways_of_the_application_are_let_in() -> None:
    async def test(fleet: Fleet) -> None:
        stranger = await fleet.add("another")
        engine = await fleet.add()
        await fleet.connected(1)
        for seed in range(5):
            await fleet.pool.act(given(seed), 5)
        assert (len(engine.asked), len(stranger.asked)) == (5, 0)

    run(test)


def test_a_frame_holds_more_than_any_robot_may_send() -> None:
    rich: dict[str, Any] = {
        "prefix_actions": np.ones((3, 4), np.float32),
        "delay": 2,
        "robot": "r",
        "rate": 20.0,
    }

    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        asked = [replace(GIVEN, observation=replace(SEEN, seed=n, **rich)) for n in range(400)]
        chunks = await asyncio.gather(*(fleet.pool.act(one, 20) for one in asked))
        assert [int(chunk.actions[0, 0]) for chunk in chunks] == list(range(400))
        assert len(engine.asked) == 400

    run(test, window=400, queue=400)

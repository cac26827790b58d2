"""What either end of a link believes of the other, and what is left of requests that nobody waits for."""

import asyncio
from dataclasses import replace

import pytest

from serve.link.connection import LostError
from serve.link.frames import to_ask
from serve.refusal import RefusedError
from tests.unit.serve.link.test_links import GIVEN, SEEN, Fleet, given, run, until


def test_what_was_true_a_while_ago_keeps_nobody_away() -> None:
    """A gateway that was told of a long wait and asks nothing hears when it is over."""

    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        engine.wait_s, engine.load = 5.0, 40
        await fleet.pool.act(given(1), 20)
        assert fleet.pool.wait_s == 5
        engine.wait_s, engine.load = 0.0, 0
        await until(lambda: fleet.pool.wait_s == 0)
        (link,) = fleet.pool._links.values()
        assert link.load == 0

    run(test)


def test_a_replica_hears_when_those_who_waited_for_it_have_gone() -> None:
    """Or it would report a load for ever, and others be started for nobody."""

    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        engine.open.clear()
        asked = [asyncio.ensure_future(fleet.pool.act(given(n), 60)) for n in range(5)]
        await until(lambda: fleet.servers[0].load == 4)
        for one in asked[1:]:
            one.cancel()
        await until(lambda: fleet.servers[0].load == 0)
        engine.open.set()
        await asked[0]

    run(test, window=1)


def test_what_is_given_up_before_it_was_sent_is_not_computed() -> None:
    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        asked = [asyncio.ensure_future(fleet.pool.act(given(n), 60)) for n in range(4)]
        # They have been handed to the link, which sends in its next round.
        await asyncio.sleep(0)
        for one in asked:
            one.cancel()
        await fleet.pool.act(given(9), 60)
        assert [each.observation.seed for each in engine.asked] == [9]

    run(test)


def test_what_is_given_up_before_it_began_leaves_nothing_behind() -> None:
    async def test(fleet: Fleet) -> None:
        engine = await fleet.add()
        await fleet.connected(1)
        (link,) = fleet.servers[0]._links
        link._take({"line": 0, "asks": [to_ask(10**6, given(1), 5)]})
        link._take({"line": 0, "cancel": [10**6]})
        await until(lambda: not link._tasks)
        assert not engine.asked

    run(test)


def test_a_place_at_a_replica_that_is_lost_meanwhile_is_none() -> None:
    async def test(fleet: Fleet) -> None:
        await fleet.add()
        await fleet.connected(1)
        (link,) = fleet.pool._links.values()
        await fleet.lose(0)
        await fleet.connected(0)
        async with asyncio.timeout(5):
            with pytest.raises(LostError):
                await link.ask(given(1), 60)

    run(test)


def test_a_link_that_cannot_send_is_replaced() -> None:
    async def test(fleet: Fleet) -> None:
        await fleet.add()
        await fleet.connected(1)
        # No text of a message can hold this.
        unsendable = replace(GIVEN, observation=replace(SEEN, prompt="\ud800"))
        with pytest.raises(RefusedError, match="lost twice"):
            await fleet.pool.act(unsendable, 10)
        assert int((await fleet.pool.act(given(3), 10)).actions[0, 0]) == 3

    run(test)


def test_an_engine_that_has_ended_is_asked_no_more() -> None:
    async def test(fleet: Fleet) -> None:
        first, second = await fleet.add(), await fleet.add()
        await fleet.connected(2)
        first.ready, first.refusal = False, RefusedError("unavailable", "ended")
        await until(lambda: any(link.leaving for link in fleet.pool._links.values()))
        for seed in range(10):
            await fleet.pool.act(given(seed), 10)
        assert (len(first.asked), len(second.asked)) == (0, 10)

    run(test)

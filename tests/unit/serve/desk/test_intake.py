"""Turns at the decoders, and how often somebody may ask."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from serve.desk.intake import Intake
from serve.desk.rates import Rates
from serve.refusal import RefusedError


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(body())


class Desk:
    """Work that waits to be let go, and the order in which it was begun."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun: list[str] = []

    def work(self, name: str) -> Callable[[], str]:
        def do() -> str:
            self.begun.append(name)
            self.go.wait(20)
            return name

        return do


def test_turns_go_by_deadlines_and_everybody_gets_his_own_result() -> None:
    async def test() -> None:
        intake, desk = Intake(1, 10), Desk()
        asked = [asyncio.ensure_future(intake.run("first", 0, desk.work("first")))]
        await asyncio.sleep(0)
        for name, deadline in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
            asked.append(asyncio.ensure_future(intake.run(name, deadline, desk.work(name))))
            await asyncio.sleep(0)
        desk.go.set()
        assert await asyncio.gather(*asked) == ["first", "c", "a", "b"]
        assert desk.begun == ["first", "a", "b", "c"]
        intake.close()

    run(test)


def test_who_has_had_more_than_a_fair_share_comes_behind() -> None:
    async def test() -> None:
        intake, desk = Intake(1, 10), Desk()
        desk.go.set()
        # As if it had decoded for a while.
        intake._had["greedy"] = (5.0, intake._now())
        desk.go.clear()
        asked = [asyncio.ensure_future(intake.run("x", 0, desk.work("x")))]
        await asyncio.sleep(0)
        for name, deadline in (("modest", 9.0), ("greedy", 1.0), ("shy", 8.0)):
            asked.append(asyncio.ensure_future(intake.run(name, deadline, desk.work(name))))
            await asyncio.sleep(0)
        desk.go.set()
        await asyncio.gather(*asked)
        assert desk.begun == ["x", "shy", "modest", "greedy"]
        intake.close()

    run(test)


def test_a_full_line_is_told_and_nothing_is_lost_by_those_who_give_up() -> None:
    async def test() -> None:
        intake, desk = Intake(2, 3), Desk()
        asked = [asyncio.ensure_future(intake.run(str(n), n, desk.work(str(n)))) for n in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="wait to be decoded") as caught:
            await intake.run("late", 0, desk.work("late"))
        assert caught.value.code == "busy"
        # One that is being worked on, and one that waits.
        asked[0].cancel()
        asked[3].cancel()
        await asyncio.sleep(0)
        desk.go.set()
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert [d for d in done if isinstance(d, str)] == ["1", "2", "4"]
        assert "3" not in desk.begun
        # Both threads are free again.
        while intake._free < 2:
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*(intake.run("z", 0, desk.work(str(n))) for n in range(5)))
        intake.close()

    run(test)


def test_who_gives_up_keeps_nobody_out_of_the_line() -> None:
    async def test() -> None:
        intake, desk = Intake(1, 3), Desk()
        asked = [asyncio.ensure_future(intake.run(str(n), n, desk.work(str(n)))) for n in range(4)]
        await asyncio.sleep(0)
        for one in asked[1:]:
            one.cancel()
        await asyncio.sleep(0)
        later = asyncio.ensure_future(intake.run("later", 0, desk.work("later")))
        await asyncio.sleep(0)
        desk.go.set()
        assert await later == "later"
        assert desk.begun == ["0", "later"]
        intake.close()

    run(test)


def test_what_is_raised_in_a_thread_is_raised_here() -> None:
    async def test() -> None:
        intake = Intake(1, 1)

        def wrong() -> None:
            raise ZeroDivisionError

        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await intake.run("a", 0, wrong)
        assert await intake.run("a", 0, lambda: 5) == 5
        intake.close()

    run(test)


def test_a_burst_of_a_second_passes_and_then_so_many_a_second() -> None:
    now = [0.0]
    rates = Rates(4, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(5)] == [0, 0, 0, 0, 0.25]
    assert rates.wait_s("b") == 0
    now[0] = 0.25
    assert [rates.wait_s("a") for _ in range(2)] == [0, 0.25]
    passed = 0
    for step in range(1000):
        now[0] = 0.25 + step * 0.01
        passed += rates.wait_s("a") == 0
    assert 39 <= passed <= 41
    assert Rates(None).wait_s("a") == 0


def test_what_came_with_a_request_is_owed() -> None:
    now = [0.0]
    rates = Rates(4, lambda: now[0])
    assert rates.wait_s("a") == 0
    rates.owe("a", 7)
    assert rates.wait_s("a") == pytest.approx(1.25)
    now[0] = 1.25
    assert rates.wait_s("a") == 0

"""Where messages are unpacked and pictures decoded: a few threads, shared fairly by all clients."""

import asyncio
import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from serve.desk.pace import Pace
from serve.refusal import RefusedError

T = TypeVar("T")
_HALVES_S = 2.0
"""A second of decoding long ago counts half as much after so long."""
_MOST_CLIENTS = 10_000


class Intake:
    """Takes work off the event loop. Lives in one loop; a gateway has one.

    Who has had more than a fair share of late comes behind those who have not; among these it is
    the earliest deadline first. Memory is bounded by the number of threads: what waits is still
    compressed.

    threads: at a time
    queue:   messages that may wait
    """

    def __init__(self, threads: int, queue: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gwp-intake")
        self._free = threads
        self._queue = queue
        self._line: list[tuple[bool, float, int, str, asyncio.Future[None]]] = []
        self._order = itertools.count()
        # Client -> (seconds of threads it has had, when that was reckoned), and those waiting.
        self._had: dict[str, tuple[float, float]] = {}
        self._waiting: Counter[str] = Counter()
        self._pace = Pace()

    @property
    def wait_s(self) -> float:
        """Seconds until a message that came now would have its turn; about."""
        return len(self._line) * self._pace.seconds

    async def run(self, client: str, deadline: float, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread when it is the client's turn. RefusedError
        `busy` where too many wait.

        deadline: on the loop's clock
        """
        await self._turn(client, deadline)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._pool, _timed, work)
        try:
            # A thread cannot be cancelled: its place is free when it is done.
            result, seconds = await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(lambda done: self._over(client, done))
            raise
        except BaseException:
            self._release(client, 0.0)
            raise
        self._release(client, seconds)
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """End the threads when they are done."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, client: str, deadline: float) -> None:
        if self._free and not self._line:
            self._free -= 1
            return
        if len(self._line) >= self._queue:
            raise RefusedError("busy", "too many messages wait to be decoded; try again", 0.1)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self._greedy(client), deadline, next(self._order), client, turn)
        heapq.heappush(self._line, entry)
        self._waiting[client] += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()
            else:
                # Or those who have gone would keep others out of the line.
                self._line = [waiting for waiting in self._line if waiting[-1] is not turn]
                heapq.heapify(self._line)
            raise
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client]

    def _next(self) -> None:
        """A thread is free: whose turn is it?"""
        while self._line:
            *_, turn = heapq.heappop(self._line)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _over(self, client: str, done: "asyncio.Future[Any]") -> None:
        seconds = 0.0 if done.cancelled() or done.exception() else done.result()[1]
        self._release(client, seconds)

    def _release(self, client: str, seconds: float) -> None:
        self._had[client] = (self._recent(client) + seconds, self._now())
        if len(self._had) > _MOST_CLIENTS:
            self._forget()
        self._pace.measure(1, waiting=bool(self._line))
        self._next()

    def _greedy(self, client: str) -> bool:
        """Whether the client has had more than twice what those have who are here, on average."""
        others = [self._recent(name) for name in self._waiting if name != client]
        return bool(others) and self._recent(client) > 2 * sum(others) / len(others) + 0.05

    def _recent(self, client: str) -> float:
        had, when = self._had.get(client, (0.0, 0.0))
        return had * math.exp2((when - self._now()) / _HALVES_S) if had else 0.0

    def _forget(self) -> None:
        kept = sorted(self._had, key=self._recent)[-_MOST_CLIENTS // 2 :]
        self._had = {name: self._had[name] for name in kept}

    @staticmethod
    def _now() -> float:
        return time.monotonic()


def _timed(work: Callable[[], T]) -> tuple[T | BaseException, float]:
    """What `work` gives or raises, and the seconds of this thread that it took."""
    begin = time.thread_time()
    try:
        result: T | BaseException = work()
    except Exception as error:  # noqa: BLE001  raised where the result is wanted
        result = error
    return result, time.thread_time() - begin

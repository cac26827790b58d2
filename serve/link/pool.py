"""All replicas that a gateway knows: who takes the next request, and what happens to those of a
replica that is lost.
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import Collection
from contextlib import suppress
from functools import partial

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk, dry_in_s
from serve.desk.pace import Pace
from serve.link.connection import Link, LostError, open_link
from serve.refusal import RefusedError

_AGAIN_S = 0.2
"""Between two tries to reach a replica that is said to be there."""


class ReplicaPool:
    """The `Backend` of a gateway. Lives in one event loop.

    Requests go to whoever has least to do. Where all have enough, they wait here for whoever is
    free first: earliest deadline first, or when the robot has nothing left to do.

    token:  the secret of the application
    window: requests that one replica is given at a time
    queue:  requests that may wait here
    """

    def __init__(self, token: str, window: int, queue: int) -> None:
        self._token = token
        self._window = window
        self._queue = queue
        self._links: dict[str, Link] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._known: set[str] = set()
        self._line: list[tuple[float, int, asyncio.Future[Link]]] = []
        self._order = itertools.count()
        self._pace = Pace()

    @property
    def ready(self) -> bool:
        """Whether a replica is connected."""
        return bool(self._links)

    @property
    def wait_s(self) -> float:
        """Seconds until a request that came now would be answered; about."""
        there = min((link.wait_s for link in self._links.values()), default=0.0)
        return there + len(self._line) * self._pace.seconds

    @property
    def batch(self) -> float:
        """Robots computed together, on average over replicas."""
        links = self._links.values()
        return sum(link.batch for link in links) / max(1, len(links))

    def found(self, addresses: Collection[str]) -> None:
        """Replicas are at these addresses, `host:port`, and nowhere else."""
        self._known = set(addresses)
        for address in self._known - self._keepers.keys():
            keeper = asyncio.ensure_future(self._keep(address))
            self._keepers[address] = keeper
            keeper.add_done_callback(partial(self._forget, address))

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        """The chunk, from whichever replica is free. A request that is lost with its replica is
        sent once more: it carries all that the answer depends on.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + allowed_s
        due = min(deadline, loop.time() + dry_in_s(given.observation))
        link: Link | None = None
        for last_try in (False, True):
            link = self._choose(link) or await self._wait(due)
            try:
                return await link.ask(given, max(0.0, deadline - loop.time()))
            except (LostError, RefusedError) as error:
                # An engine that ends has computed nothing; another may.
                if isinstance(error, RefusedError) and error.code != "unavailable":
                    raise
                if last_try:
                    raise RefusedError(
                        "unavailable", "the replica was lost twice; try again in a moment", 0.2
                    ) from error
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Hang up."""
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def _forget(self, address: str, _: "asyncio.Task[None]") -> None:
        self._keepers.pop(address, None)

    def _choose(self, failed: Link | None) -> Link | None:
        """Who has least to do, and rather not the one that just failed; None when all have
        enough, or when others have waited longer.
        """
        if self._line:
            return None
        return self._free_link(failed)

    def _free_link(self, failed: Link | None = None) -> Link | None:
        free = [link for link in self._links.values() if link.taken < self._window]
        # Who leaves still answers those who have nobody else.
        staying = [link for link in free if not link.leaving and link is not failed]
        # By chance among equals, or the gateways would all choose the same.
        return min(staying or free, key=lambda link: (link.load, random.random()), default=None)

    async def _wait(self, due: float) -> Link:
        if len(self._line) >= self._queue:
            raise RefusedError(
                "busy",
                "all replicas are busy and the queue is full; try again in a moment",
                max(0.05, self.wait_s),
            )
        turn: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (due, next(self._order), turn))
        try:
            link = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was given a place in the same moment: somebody else may have it.
                turn.result().promised -= 1
                self._free(0)
            else:
                self._line = [entry for entry in self._line if entry[2] is not turn]
                heapq.heapify(self._line)
            raise
        link.promised -= 1
        return link

    def _free(self, answered: int) -> None:
        """A replica has answered so many and may take others: hand places to those who wait."""
        if answered:
            self._pace.measure(answered, waiting=bool(self._line))
        while self._line:
            link = self._free_link()
            if link is None:
                return
            _, _, turn = heapq.heappop(self._line)
            if not turn.done():
                turn.set_result(link)
                link.promised += 1

    def _share(self) -> float:
        """Of those who wait here, how many come to each replica."""
        return len(self._line) / max(1, len(self._links))

    async def _keep(self, address: str) -> None:
        """Stay connected to a replica for as long as it is known to be there."""
        while address in self._known:
            link = await open_link(address, self._token, self._free, self._share)
            if link is not None:
                self._links[address] = link
                self._free(0)
                try:
                    await link.serve()
                finally:
                    del self._links[address]
                    with suppress(Exception):
                        await link.close()
            await asyncio.sleep(_AGAIN_S)

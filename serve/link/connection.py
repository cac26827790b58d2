"""A gateway's end of one link."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk
from gwp.protocol.msgpack_numpy import packb
from serve.link.frames import (
    HANG_UP_S,
    MAX_FRAME,
    PING_S,
    PONG_S,
    TOKEN_HEADER,
    awakened,
    end_with,
    from_answer,
    to_ask,
    unpack_frame,
)
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

CONNECT_S = 2.0


class LostError(Exception):
    """The replica went before it answered."""


class Link:
    """An open connection to one replica. The `ReplicaPool` keeps it.

    line: how many of the gateway's waiting requests count as this replica's
    promised: places that were given to requests which are about to be sent
    free: called with the number of requests that the replica has just answered
    """

    def __init__(
        self,
        address: str,
        socket: ClientConnection,
        free: Callable[[int], None],
        line: Callable[[], float],
    ) -> None:
        self.address = address
        self.leaving = False
        self.wait_s = self.batch = 0.0
        self.promised = 0
        self._socket = socket
        self._free = free
        self._line = line
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[ActionChunk]] = {}
        self._asks: list[dict[str, Any]] = []
        self._cancels: list[int] = []
        self._wake = asyncio.Event()
        # What others have there, as last told.
        self._others = 0
        self._lost = False

    @property
    def taken(self) -> int:
        """Places that requests of this gateway have there, or were promised."""
        return len(self._open) + self.promised

    @property
    def load(self) -> int:
        """Requests of everybody there, as far as this gateway knows."""
        return self.taken + self._others

    async def ask(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        """The answer. RefusedError as the replica gives it, LostError when it goes first."""
        # It may go between the moment when a place is given and the one when it is taken.
        if self._lost:
            raise LostError
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        self._asks.append(to_ask(number, given, allowed_s))
        self._wake.set()
        try:
            chunk: ActionChunk = await answer
            return chunk
        except asyncio.CancelledError:
            self._give_up(number)
            raise
        finally:
            self._open.pop(number, None)

    async def serve(self) -> None:
        """Until the replica hangs up or is lost."""
        sender = asyncio.ensure_future(self._send())
        end_with(sender, self._socket)
        try:
            async for frame in self._socket:
                self._take(unpack_frame(frame))
        except ConnectionClosed:
            return
        finally:
            sender.cancel()
            self._lost = True
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(LostError())

    async def close(self) -> None:
        """Hang up."""
        await self._socket.close()

    def _give_up(self, number: int) -> None:
        """Nobody waits for this answer."""
        unsent = [ask for ask in self._asks if ask["n"] != number]
        # What was not sent yet is not sent; the rest has to be told.
        if len(unsent) == len(self._asks):
            self._cancels.append(number)
            self._wake.set()
        self._asks = unsent

    def _take(self, state: dict[str, Any]) -> None:
        for entry in state["answers"]:
            number, found = from_answer(entry)
            waiting = self._open.pop(number, None)
            if waiting is None or waiting.done():
                # Given up meanwhile.
                continue
            if isinstance(found, RefusedError):
                waiting.set_exception(found)
            else:
                waiting.set_result(found)
        self.leaving = state["leaving"]
        self.wait_s = state["wait_s"]
        self.batch = state["batch"]
        self._others = max(0, state["load"] - len(self._open))
        self._free(len(state["answers"]))

    async def _send(self) -> None:
        """All requests of a moment in one frame; else how many wait, when that has changed."""
        told = 0.0
        while True:
            await awakened(self._wake)
            message: dict[str, Any] = {}
            if self._asks:
                message["asks"], self._asks = self._asks, []
            if self._cancels:
                message["cancel"], self._cancels = self._cancels, []
            line = self._line()
            if message or line != told:
                await self._socket.send(packb(message | {"line": line}))
                told = line


async def open_link(
    address: str, token: str, free: Callable[[int], None], line: Callable[[], float]
) -> Link | None:
    """The link to a replica at `host:port`; None when nothing answers there."""
    try:
        socket = await connect(
            f"ws://{address}/",
            additional_headers={TOKEN_HEADER: token},
            compression=None,
            proxy=None,
            max_size=MAX_FRAME,
            open_timeout=CONNECT_S,
            close_timeout=HANG_UP_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
        )
    except (OSError, TimeoutError, WebSocketException) as error:
        log.debug("no replica at %s: %s", address, error)
        return None
    return Link(address, socket, free, line)

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
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        self._asks.append(to_ask(number, given, allowed_s))
        self._wake.set()
        try:
            chunk: ActionChunk = await answer
            return chunk
        except asyncio.CancelledError:
            self._cancels.append(number)
            self._wake.set()
            raise
        finally:
            self._open.pop(number, None)

    async def serve(self) -> None:
        """Until the replica hangs up or is lost."""
        sender = asyncio.ensure_future(self._send())
        try:
            async for frame in self._socket:
                self._take(unpack_frame(frame))
        except ConnectionClosed:
            return
        finally:
            sender.cancel()
            for answer in self._open.values():
                if not answer.done():
                    answer.set_exception(LostError())

    async def close(self) -> None:
        """Hang up."""
        await self._socket.close()

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
        """All requests of a moment in one frame."""
        while True:
            await self._wake.wait()
            # One round of the loop later, so that robots that ask together travel together.
            await asyncio.sleep(0)
            self._wake.clear()
            message: dict[str, Any] = {}
            if self._asks:
                message["asks"], self._asks = self._asks, []
            if self._cancels:
                message["cancel"], self._cancels = self._cancels, []
            if message:
                message["line"] = self._line()
                await self._socket.send(packb(message))


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

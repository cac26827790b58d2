"""A replica's end of the links: requests of all gateways go to one engine."""

import asyncio
import hmac
import logging
from functools import partial
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from gwp.protocol.msgpack_numpy import packb
from serve.guarded import GuardedEngine
from serve.link.frames import (
    HANG_UP_S,
    MAX_FRAME,
    PING_S,
    PONG_S,
    TOKEN_HEADER,
    awakened,
    end_with,
    from_ask,
    to_answer,
    unpack_frame,
)
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

_QUIET_S = 0.2
"""A replica that leaves goes when nobody has asked for so long."""


class LinkServer:
    """Listens for gateways. Lives in one event loop.

    engine: answers; it is not closed here
    token:  the secret of the application
    """

    def __init__(self, engine: GuardedEngine, token: str) -> None:
        self._engine = engine
        self._token = token
        self._links: set[_Link] = set()
        self._server: Server | None = None
        self._leaving = False

    @property
    def load(self) -> float:
        """Requests that wait or are computed here, and those that wait for it in gateways."""
        return self._engine.load + sum(link.line for link in self._links)

    async def listen(self, host: str) -> int:
        """The port where gateways find this replica."""
        self._server = await serve(
            self._serve,
            host,
            0,
            process_request=self._admit,
            compression=None,
            max_size=MAX_FRAME,
            close_timeout=HANG_UP_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
        )
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    async def leave(self, patience_s: float) -> None:
        """Tell gateways that this replica goes, answer what they have sent and what they send
        because they have nobody else, then hang up; after `patience_s` in any case.
        """
        self._leaving = True
        for link in self._links:
            link.flush()
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        while self._links and loop.time() < end:
            if all(link.quiet_for > _QUIET_S for link in self._links):
                break
            await asyncio.sleep(_QUIET_S / 4)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        given = request.headers.get(TOKEN_HEADER, "")
        if hmac.compare_digest(given.encode(), self._token.encode()):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "not a gateway of this application\n")

    async def _serve(self, socket: ServerConnection) -> None:
        link = _Link(socket, self._engine, lambda: self._leaving)
        self._links.add(link)
        try:
            await link.serve()
        finally:
            self._links.discard(link)


class _Link:
    """One gateway: what it has asked, and the answers that wait to be sent together.

    line: how many wait in the gateway for this replica
    """

    def __init__(self, socket: ServerConnection, engine: GuardedEngine, leaving: Any) -> None:
        self._socket = socket
        self._engine = engine
        self._leaving = leaving
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._answers: list[dict[str, Any]] = []
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._loop.time()
        self.line = 0.0

    @property
    def quiet_for(self) -> float:
        """Seconds since the gateway has asked or waited for anything."""
        if self._tasks or self._answers or self.line:
            self._asked_at = self._loop.time()
        return self._loop.time() - self._asked_at

    def flush(self) -> None:
        """Say how it stands, with what answers there are."""
        self._wake.set()

    async def serve(self) -> None:
        """Until the gateway hangs up, or is lost; what it has asked is given up then."""
        sender = asyncio.ensure_future(self._send())
        end_with(sender, self._socket)
        self.flush()
        try:
            async for frame in self._socket:
                self._take(unpack_frame(frame))
        except ConnectionClosed:
            return
        finally:
            sender.cancel()
            for task in self._tasks.values():
                task.cancel()

    def _take(self, message: dict[str, Any]) -> None:
        self.line = message["line"]
        for number in message.get("cancel", ()):
            if task := self._tasks.get(number):
                task.cancel()
        for ask in message.get("asks", ()):
            self._asked_at = self._loop.time()
            task = asyncio.ensure_future(self._answer(ask))
            self._tasks[ask["n"]] = task
            # Also for one that is cancelled before it has begun.
            task.add_done_callback(partial(self._forget, ask["n"]))

    def _forget(self, number: int, _: "asyncio.Task[None]") -> None:
        self._tasks.pop(number, None)

    async def _answer(self, ask: dict[str, Any]) -> None:
        number = ask["n"]
        try:
            _, given, allowed_s = from_ask(ask)
            answer = to_answer(number, await self._engine.act(given, allowed_s))
        except RefusedError as error:
            answer = to_answer(number, error)
        except asyncio.CancelledError:
            # Given up by the gateway: nobody waits for an answer.
            return
        except Exception:
            log.exception("a request failed in the replica")
            failed = RefusedError("internal", "internal error; see the log of the replica")
            answer = to_answer(number, failed)
        self._answers.append(answer)
        self.flush()

    async def _send(self) -> None:
        """All answers of a moment in one frame, and how it stands; else that, when it has changed:
        a gateway that is kept away by what it was told asks nothing.
        """
        told: dict[str, Any] = {}
        while True:
            await awakened(self._wake)
            answers, self._answers = self._answers, []
            state = {
                "load": self._engine.load,
                "wait_s": self._engine.wait_s,
                "batch": self._engine.batch,
                # An engine that has ended refuses sooner than any other answers.
                "leaving": self._leaving() or not self._engine.ready,
            }
            if answers or state != told:
                await self._socket.send(packb(state | {"answers": answers}))
                told = state

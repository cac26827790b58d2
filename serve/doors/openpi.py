"""The openpi websocket, which most robot code speaks, with the `endpoint` field of vLLM-Omni.

The server speaks first: one binary frame with its metadata. Then one binary map per observation
in, one binary map out. An error is a text frame for a client that sends plain openpi maps, and
a map `{"type": "error", "code", "message"}` for one that sends `endpoint`; either way the
connection stays open. Arrays travel as in `gwp.protocol.msgpack_numpy`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse

from gwp.errors import GwpError
from gwp.protocol.msgpack_numpy import packb
from serve.desk.dispatch import Dispatcher, Peer
from serve.doors.announced import announced
from serve.doors.answers import INTERNAL, answer
from serve.doors.http import STATUS, name_of, retry_after
from serve.messages.replies import to_error
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

RESTART = 1012
"""Close code: come back at once, another process will answer."""
_AHEAD = 8
"""Frames of one robot that are taken before their turn."""


async def converse(socket: WebSocket, dispatcher: Dispatcher) -> None:
    """Serve one robot until it hangs up, or until the endpoint drains."""
    try:
        # Before the connection is accepted: a refusal then is an HTTP answer with a status.
        key = dispatcher.access.name_of(socket.headers)
        if key is None:
            raise RefusedError("access", "API key missing or unknown")
        embodiment = dispatcher.contract.agree(announced(socket.query_params))
        dispatcher.enter()
    except RefusedError as error:
        status = STATUS["unavailable"] if error.code == "busy" else STATUS[error.code]
        await _deny(socket, status, str(error), retry_after(error))
        return
    except GwpError as error:
        await _deny(socket, 409, str(error))
        return
    except Exception:
        log.exception("a handshake failed in the gateway")
        await _deny(socket, 500, INTERNAL)
        return
    peer = Peer(name_of(socket), key, embodiment.name if embodiment else None)
    try:
        await _Conversation(socket, dispatcher, peer).run()
    except WebSocketDisconnect:
        # The robot hung up while its reply was on the way.
        return
    finally:
        dispatcher.leave()


async def _deny(
    socket: WebSocket, status: int, text: str, headers: Mapping[str, str] | None = None
) -> None:
    await socket.send_denial_response(PlainTextResponse(text, status, headers))


def _size(event: Mapping[str, Any]) -> int:
    """Bytes of a frame."""
    return len(event.get("bytes") or b"")


class _Conversation:
    """One robot's socket. It is listened to while an answer is computed: a robot that hangs up
    frees its place.
    """

    def __init__(self, socket: WebSocket, dispatcher: Dispatcher, peer: Peer) -> None:
        self._socket = socket
        self._dispatcher = dispatcher
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        # Frames that came, with the times when they did.
        self._inbox: deque[tuple[float, Mapping[str, Any]]] = deque()
        self._hung_up = False
        # Whether the robot sends `endpoint` and reads refusals as maps.
        self._mapped = False
        self._previous_ms: float | None = None

    async def run(self) -> None:
        await self._socket.accept()
        await self._socket.send_bytes(packb(self._dispatcher.metadata(self._peer.embodiment)))
        listening: asyncio.Future[Any] = asyncio.ensure_future(self._socket.receive())
        draining = asyncio.ensure_future(self._dispatcher.draining.wait())
        try:
            while not self._hung_up:
                if self._inbox:
                    listening = await self._answer_next(listening)
                elif draining.done():
                    await self._socket.close(RESTART, "the endpoint restarts; reconnect")
                    return
                else:
                    await asyncio.wait({listening, draining}, return_when=asyncio.FIRST_COMPLETED)
                    listening = self._heard(listening)
        finally:
            listening.cancel()
            draining.cancel()
            self._dispatcher.uploads.bytes -= sum(_size(event) for _, event in self._inbox)

    @property
    def _full(self) -> bool:
        """Whether so much waits that the robot is not listened to: no more than it may send once,
        and less when all robots together have sent much.
        """
        size = sum(_size(event) for _, event in self._inbox)
        much = size >= self._dispatcher.max_bytes or (size and self._dispatcher.uploads.full)
        return bool(much) or len(self._inbox) >= _AHEAD

    def _heard(self, listening: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
        """Put what came into the inbox; whatever is listened to next."""
        if not listening.done():
            return listening
        event = listening.result()
        if event["type"] == "websocket.disconnect":
            self._hung_up = True
            return listening
        self._inbox.append((self._loop.time(), event))
        self._dispatcher.uploads.bytes += _size(event)
        return asyncio.ensure_future(self._socket.receive())

    async def _answer_next(self, listening: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
        """Answer the first frame of the inbox, with an ear on the robot."""
        arrival, event = self._inbox.popleft()
        self._dispatcher.uploads.bytes -= _size(event)
        answering = asyncio.ensure_future(self._reply(event, arrival))
        try:
            while not answering.done():
                if self._full:
                    await asyncio.wait({answering})
                    break
                await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
                listening = self._heard(listening)
                if self._hung_up:
                    return listening
            reply = answering.result()
        finally:
            answering.cancel()
        if isinstance(reply, str):
            await self._socket.send_text(reply)
        else:
            await self._socket.send_bytes(reply)
        # How long a reply took to be sent is known only after it: the next one says it.
        self._previous_ms = (self._loop.time() - arrival) * 1e3
        return listening

    async def _reply(self, event: Mapping[str, Any], arrival: float) -> bytes | str:
        data = event.get("bytes")
        if data is None:
            return self._refused(
                RefusedError(
                    "protocol",
                    "text frames are not understood; send one binary msgpack map per observation",
                ),
                None,
            )
        given = await answer(data, self._peer, arrival, self._dispatcher, self._previous_ms)
        self._mapped = self._mapped or given.mapped
        if isinstance(given.reply, RefusedError):
            return self._refused(given.reply, given.request_id)
        return given.reply

    def _refused(self, error: RefusedError, number: str | int | None) -> bytes | str:
        if not self._mapped:
            return f"{error.code}: {error}"
        return packb(to_error(error.code, str(error), number, error.retry_after_s))

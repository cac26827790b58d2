"""One websocket, with a bound on every wait: name look-up, connection, TLS, sending and receiving."""

import asyncio
from typing import Any, Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.protocol import State

from gwp.client.connection.steps import Drop, Exchange, LinkLostError, Open, ReplyLateError
from gwp.client.connection.wire import ClientError

_MAX_REPLY_BYTES = 64 << 20
_CLOSE_S = 1.0
_SILENT_S = 1.0
"""Longest time that an endpoint whose reply is late may take to say that it is there."""
Proxy = str | Literal[True] | None
"""Address of a proxy; None: no proxy; True: that of the environment."""


class Link:
    """Opens, uses and loses a connection. Its methods belong to one event loop."""

    def __init__(self, url: str, proxy: Proxy = None) -> None:
        self._url = url
        self._proxy = proxy
        self._socket: ClientConnection | None = None
        self._doubt: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent; any thread may ask."""
        socket = self._socket
        return socket is not None and socket.state is State.OPEN

    async def do(self, step: Open | Exchange | Drop) -> bytes | str | None:
        """Do one step. LinkLostError when that fails or takes too long, ReplyLateError where the
        connection is kept then; ClientError when the endpoint refuses the connection.
        """
        if isinstance(step, Drop):
            self.abort()
            return None
        try:
            if isinstance(step, Open):
                await self._open(step)
                return None
            return await self._exchange(step)
        except InvalidStatus as error:
            raise _refused(self._url, error) from error
        except LinkLostError:
            raise
        except TimeoutError as error:
            self.abort()
            raise LinkLostError(_nothing(step)) from error
        except (OSError, WebSocketException) as error:
            self.abort()
            raise LinkLostError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            # Cancelled: an answer that is under way must not meet the next request.
            self.abort()
            raise

    async def close(self) -> None:
        """Say goodbye, within a second."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    def abort(self) -> None:
        """Give the connection up at once."""
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.transport.abort()

    async def _open(self, step: Open) -> None:
        self.abort()
        self._socket = await connect(
            step.url,
            additional_headers=step.headers,
            # Deflating raw pictures takes longer than sending them over a robot's network.
            compression=None,
            max_size=_MAX_REPLY_BYTES,
            open_timeout=step.timeout_s,
            close_timeout=_CLOSE_S,
            proxy=self._proxy,
        )

    async def _exchange(self, step: Exchange) -> bytes | str:
        socket = self._socket
        if socket is None:
            raise ConnectionError("the connection is closed")
        end = asyncio.get_running_loop().time() + step.timeout_s
        if step.data is not None:
            async with asyncio.timeout_at(end):
                await socket.send(step.data)
        try:
            async with asyncio.timeout_at(end):
                frame: Any = await socket.recv()
        except TimeoutError as error:
            if not step.numbered:
                raise
            self._ask_whether_alive(socket)
            raise ReplyLateError(_nothing(step)) from error
        return bytes(frame) if isinstance(frame, (bytearray, memoryview)) else frame

    def _ask_whether_alive(self, socket: ClientConnection) -> None:
        """Nobody waits for the answer. Without one the connection breaks, and whoever uses it
        meanwhile connects anew.
        """
        if self._doubt is None or self._doubt.done():
            self._doubt = asyncio.ensure_future(self._is_alive(socket))

    async def _is_alive(self, socket: ClientConnection) -> None:
        try:
            async with asyncio.timeout(_SILENT_S):
                await (await socket.ping())
        except (TimeoutError, OSError, WebSocketException):
            socket.transport.abort()


def _nothing(step: Open | Exchange) -> str:
    return f"nothing came within {step.timeout_s:.1f} s"


def _refused(url: str, error: InvalidStatus) -> ClientError:
    status = error.response.status_code
    body = bytes(error.response.body or b"").decode(errors="replace").strip()
    if status in (401, 403):
        return ClientError(f"{url}: {body or 'access refused'}; check the API key", "handshake")
    if status in (404, 405, 426):
        return ClientError(
            f"{url}: nothing speaks openpi at this path (HTTP {status}); use ws://host:port/",
            "handshake",
        )
    if status in (400, 409):
        return ClientError(f"{url}: {body or 'the endpoint refused this robot'}", "handshake")
    # A proxy whose gateway restarts, for instance: this passes, and is tried again.
    wait = error.response.headers.get("Retry-After", "")
    seconds = float(wait) if wait.isdecimal() and len(wait) < 4 else None
    return ClientError(f"{url}: HTTP {status} {body}".strip(), "unavailable", seconds)

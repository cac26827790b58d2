"""The web server of one process, on a port that processes of one application share."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from gwp.errors import GwpError
from serve.compat import ImpatientHttp, bounded_websockets
from serve.desk.uploads import Uploads
from serve.loop import LoopThread

_START_S = 30.0
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Listener:
    """Serves an ASGI application in a `LoopThread`, until it is closed.

    Gateways of one machine listen on the same port: the kernel spreads connections over them, and
    a robot whose gateway is lost finds another behind the same address at once.

    Raises GwpError when the port cannot be had.
    """

    def __init__(
        self,
        app: Asgi,
        host: str,
        port: int,
        thread: LoopThread,
        max_bytes: int,
        uploads: Uploads,
    ) -> None:
        """max_bytes: of one websocket message"""
        self._thread = thread
        self._socket = _shared_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=ImpatientHttp,
            ws=bounded_websockets(uploads),
            ws_max_size=max_bytes,
            # Deflating pictures takes longer than sending them over a robot's network.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        # In a thread that is not the main one it leaves the signals of the process alone.
        self._serving = thread.start(self._server.serve([self._socket]))

    @property
    def alive(self) -> bool:
        """Whether it still listens."""
        return not self._serving.done()

    def await_started(self) -> None:
        """Return once connections are answered."""
        self._thread.run(self._started(), _START_S)

    async def refuse_new(self) -> None:
        """Take no more connections; those that are open go on."""
        for server in self._server.servers:
            server.close()
        self._socket.close()

    async def end(self) -> None:
        """Close what is still open."""
        self._server.should_exit = True
        await asyncio.wrap_future(self._serving)

    async def _started(self) -> None:
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise GwpError("the web server ended while it started")
            await asyncio.sleep(0.005)


def _shared_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise GwpError(
            f"cannot listen on {host}:{port} ({error.strerror}); another program may have the "
            "port: choose another one"
        ) from error
    return found

"""The protocols of uvicorn with bounds that it has no options for: on connections that say nothing,
and on what many connections hold together.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serve.desk import uploads as bounds
from serve.desk.uploads import Uploads

ASKED_S = 10.0
"""Who connects and has not asked for anything after so long is hung up on."""
_AGAIN = 1013
"""Close code: come back later."""


class ImpatientHttp(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """As uvicorn's, which waits without end for the first request and for the rest of any head:
    such connections would take all the descriptors that a process has.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # The request that was being answered when it was looked at last.
        self._before: Any = None
        self._looking = self.loop.call_later(ASKED_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        # A websocket has another protocol by now, which looks after itself.
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        cycle = self.cycle
        if cycle is self._before and (cycle is None or cycle.response_complete):
            self.transport.close()
            return
        self._before = cycle
        self._looking = self.loop.call_later(ASKED_S, self._look)


def bounded_websockets(uploads: Uploads) -> type[asyncio.Protocol]:
    """The class of uvicorn's websockets that count what has arrived of a message and is not whole
    yet. A connection that would go beyond the bound, or takes too long, is closed.
    """

    class Bounded(WebSocketsSansIOProtocol):
        _held = 0
        _late: Any = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._hold(len(self.conn.reader.buffer) + sum(map(len, self.frames)))
            if self._held and uploads.full:
                self._end("too much is being sent at once; try again")

        def connection_lost(self, exc: Exception | None) -> None:
            self._hold(0)
            super().connection_lost(exc)

        def _hold(self, size: int) -> None:
            uploads.bytes += size - self._held
            if size and self._late is None:
                self._late = self.loop.call_later(
                    bounds.ARRIVED_S, self._end, "the message took too long to arrive"
                )
            elif not size and self._late is not None:
                self._late.cancel()
                self._late = None
            self._held = size

        def _end(self, why: str) -> None:
            if self.close_sent or self.transport.is_closing():
                return
            self.conn.fail(_AGAIN, why)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.transport.close()

    return Bounded

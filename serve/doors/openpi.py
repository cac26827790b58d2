"""The openpi websocket, which most robot code speaks, with the `endpoint` field of vLLM-Omni.

The server speaks first: one binary frame with its metadata. Then one binary map per observation
in, one binary map out. An error is a text frame for a client that sends plain openpi maps, and
a map `{"type": "error", "code", "message"}` for one that sends `endpoint`; either way the
connection stays open. Arrays travel as in `gwp.protocol.msgpack_numpy`.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse

from gwp.errors import GwpError, ObservationError
from gwp.protocol.handshake import FIELDS, LISTS
from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb
from serve.dispatch import Dispatcher, RefusedError
from serve.doors.maps import infer

log = logging.getLogger("ray.serve")

INTERNAL = "internal error; see the log of the gateway"


async def converse(socket: WebSocket, dispatcher: Dispatcher) -> None:
    """Serve one robot until it hangs up."""
    try:
        # Before the connection is accepted: a refusal then is an HTTP answer with a status.
        if not dispatcher.access.allows(socket.headers):
            raise RefusedError("access", "API key missing or unknown")
        embodiment = dispatcher.contract.agree(announced(socket.query_params))
    except GwpError as error:
        await _deny(socket, 401 if isinstance(error, RefusedError) else 409, str(error))
        return
    except Exception:
        log.exception("a handshake failed in the gateway")
        await _deny(socket, 500, INTERNAL)
        return
    try:
        await _serve(socket, dispatcher, embodiment.name if embodiment else None)
    except WebSocketDisconnect:
        # The robot hung up while its reply was on the way.
        return


async def _deny(socket: WebSocket, status: int, text: str) -> None:
    await socket.send_denial_response(PlainTextResponse(text, status_code=status))


async def _serve(socket: WebSocket, dispatcher: Dispatcher, embodiment: str | None) -> None:
    await socket.accept()
    await socket.send_bytes(packb(dispatcher.contract.metadata(embodiment)))
    # How long a reply took to be sent is known only after it: the next one says it.
    previous_ms: float | None = None
    while True:
        # Not `receive_bytes`, to which a text frame is a fault: it gets an answer here.
        event = await socket.receive()
        if event["type"] == "websocket.disconnect":
            return
        start = time.perf_counter()
        reply = await _answer(event.get("bytes"), dispatcher, embodiment, previous_ms)
        if isinstance(reply, str):
            await socket.send_text(reply)
        else:
            await socket.send_bytes(reply)
        previous_ms = (time.perf_counter() - start) * 1e3


def announced(query: Mapping[str, str]) -> dict[str, Any]:
    """What a robot says of itself in the query of its URL.

    For instance `?embodiment=...&fps=50&action_names=a,b&cameras=top,wrist`.
    """
    robot: dict[str, Any] = {name: query[name] for name in FIELDS if name in query}
    if "fps" in robot:
        try:
            robot["fps"] = float(robot["fps"])
        except ValueError as error:
            raise ObservationError(
                f"fps: '{robot['fps'][:32]}' is no number; write the control rate in Hz"
            ) from error
    for name in LISTS:
        if name in robot:
            # An empty name is kept: whoever compares says that it is none.
            robot[name] = [part.strip() for part in robot[name].split(",")]
    return robot


async def _answer(
    data: bytes | None, dispatcher: Dispatcher, embodiment: str | None, previous_ms: float | None
) -> bytes | str:
    # Whether the client sends `endpoint` and understands errors as maps.
    mapped = False
    try:
        if data is None:
            raise RefusedError(
                "protocol",
                "text frames are not understood; send one binary msgpack map per observation",
            )
        try:
            message = unpackb(data, dispatcher.max_bytes)
        except ProtocolError as error:
            raise RefusedError("protocol", str(error)) from error
        endpoint = message.get("endpoint") if isinstance(message, dict) else None
        mapped = endpoint is not None
        if endpoint == "reset":
            return packb({"status": "reset successful"})
        if endpoint not in (None, "infer"):
            raise RefusedError(
                "protocol", f"endpoint {str(endpoint)[:32]!r} is unknown; use infer or reset"
            )
        return packb(await infer(message, dispatcher, embodiment, previous_ms))
    except RefusedError as error:
        refusal = error
    except Exception:
        log.exception("a request failed in the gateway")
        refusal = RefusedError("internal", INTERNAL)
    if mapped:
        return packb({"type": "error", "code": refusal.code, "message": str(refusal)})
    return f"{refusal.code}: {refusal}"

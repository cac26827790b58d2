"""The openpi websocket, which most robot code already speaks, with the `endpoint` field of
vLLM-Omni.

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
from gwp.protocol.handshake import FIELDS
from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb
from serve.dispatch import Desk, RefusedError
from serve.doors.maps import infer

log = logging.getLogger("ray.serve")


async def converse(socket: WebSocket, desk: Desk) -> None:
    """Serve one robot until it hangs up."""
    try:
        if not desk.access.allows(socket.headers):
            raise RefusedError("access", "API key missing or unknown")
        embodiment = desk.contract.agree(announced(socket.query_params))
    except GwpError as error:
        status = 401 if isinstance(error, RefusedError) else 409
        await socket.send_denial_response(PlainTextResponse(str(error), status_code=status))
        return
    try:
        await _serve(socket, desk, embodiment.name if embodiment else None)
    except WebSocketDisconnect:
        # The robot hung up while its reply was on the way.
        return


async def _serve(socket: WebSocket, desk: Desk, embodiment: str | None) -> None:
    await socket.accept()
    await socket.send_bytes(packb(desk.contract.metadata(embodiment)))
    previous_ms: float | None = None
    while True:
        event = await socket.receive()
        if event["type"] == "websocket.disconnect":
            return
        start = time.perf_counter()
        reply = await _answer(event.get("bytes"), desk, embodiment, previous_ms)
        await (socket.send_text(reply) if isinstance(reply, str) else socket.send_bytes(reply))
        previous_ms = (time.perf_counter() - start) * 1e3


def announced(query: Mapping[str, str]) -> dict[str, Any]:
    """What a robot says of itself in the query of its URL:
    `?embodiment=...&fps=50&action_names=a,b&cameras=top,wrist`.
    """
    robot: dict[str, Any] = {name: query[name] for name in FIELDS if name in query}
    if "fps" in robot:
        try:
            robot["fps"] = float(robot["fps"])
        except ValueError as error:
            raise ObservationError(
                f"fps: '{robot['fps'][:32]}' is no number; write the control rate in Hz"
            ) from error
    for name in ("cameras", "action_names", "state_names"):
        if name in robot:
            robot[name] = [part.strip() for part in robot[name].split(",") if part.strip()]
    return robot


async def _answer(
    data: bytes | None, desk: Desk, embodiment: str | None, previous_ms: float | None
) -> bytes | str:
    mapped = False
    try:
        if data is None:
            raise RefusedError(
                "protocol",
                "text frames are not understood; send one binary msgpack map per observation",
            )
        try:
            message = unpackb(data, desk.max_bytes)
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
        return packb(await infer(message, desk, embodiment, previous_ms))
    except RefusedError as error:
        code, text = error.code, str(error)
    except Exception:
        log.exception("a request failed in the gateway")
        code, text = "internal", "internal error; see the log of the gateway"
    return packb({"type": "error", "code": code, "message": text}) if mapped else f"{code}: {text}"

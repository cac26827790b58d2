"""The answer to one message, whichever door it came through."""

import asyncio
import time
from typing import Any

from gwp.protocol.messages import ActionChunk
from serve.dispatch import Asked, Dispatcher, Peer
from serve.doors.maps import to_reply
from serve.refusal import RefusedError

ENDPOINTS = ("infer", "reset", "clock")


async def answer(
    data: bytes,
    peer: Peer,
    arrival: float,
    dispatcher: Dispatcher,
    previous_ms: float | None = None,
) -> dict[str, Any]:
    """The reply map. RefusedError when there is none.

    arrival: when the message had come, on the loop's clock; previous_ms: what the reply before
    took, for those who ask on one connection
    """
    asked = await dispatcher.ask(data, peer, arrival)
    return await reply_to(asked, peer, arrival, dispatcher, previous_ms)


async def reply_to(
    asked: Asked,
    peer: Peer,
    arrival: float,
    dispatcher: Dispatcher,
    previous_ms: float | None = None,
) -> dict[str, Any]:
    """The reply map to what was unpacked. RefusedError when there is none."""
    if asked.endpoint == "reset":
        return {"status": "reset successful"}
    if asked.endpoint == "clock":
        return {"time": time.time()}
    if asked.given is None:
        raise RefusedError(
            "protocol",
            f"endpoint {str(asked.endpoint)[:32]!r} is unknown; use {', '.join(ENDPOINTS)}",
        )
    chunk: ActionChunk = await dispatcher.act(asked, peer, arrival)
    took_ms = (asyncio.get_running_loop().time() - arrival) * 1e3
    return to_reply(chunk, took_ms, previous_ms)


def error_map(error: RefusedError, request_id: object = None) -> dict[str, Any]:
    """A refusal as it travels to clients that understand maps."""
    fields: dict[str, Any] = {"type": "error", "code": error.code, "message": str(error)}
    if request_id is not None:
        fields["request_id"] = request_id
    if error.retry_after_s is not None:
        fields["retry_after_s"] = error.retry_after_s
    return fields

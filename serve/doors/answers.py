"""The answer to one message, whichever door it came through."""

import asyncio
import time
from typing import Any

from serve.desk.dispatch import Asked, Dispatcher, Item, Peer
from serve.messages.replies import join, to_error, to_reply
from serve.refusal import RefusedError

ENDPOINTS = ("infer", "reset", "clock")


async def answer(data: bytes, peer: Peer, arrival: float, dispatcher: Dispatcher) -> dict[str, Any]:
    """The reply map to the bytes of a message. RefusedError when there is none.

    arrival: when they had come, on the loop's clock
    """
    asked = await dispatcher.ask(data, peer, arrival)
    return await reply_to(asked, peer, arrival, dispatcher)


async def reply_to(
    asked: Asked,
    peer: Peer,
    arrival: float,
    dispatcher: Dispatcher,
    previous_ms: float | None = None,
) -> dict[str, Any]:
    """The reply map to what was unpacked. RefusedError when there is none; of several
    observations each has an error of its own.

    previous_ms: what the reply before took, for those who ask on one connection
    """
    if asked.endpoint == "reset":
        return {"status": "reset successful"}
    if asked.endpoint == "clock":
        return {"time": time.time()}
    if asked.endpoint is not None and asked.endpoint != "infer":
        raise RefusedError(
            "protocol",
            f"endpoint {asked.endpoint[:32]!r} is unknown; use {', '.join(ENDPOINTS)}",
        )
    if asked.form == "one":
        return await _reply(asked.items[0], peer, arrival, dispatcher, previous_ms)
    replies = (_told(item, peer, arrival, dispatcher) for item in asked.items)
    return join(await asyncio.gather(*replies), asked.form)


async def _reply(
    item: Item,
    peer: Peer,
    arrival: float,
    dispatcher: Dispatcher,
    previous_ms: float | None = None,
) -> dict[str, Any]:
    chunk = await dispatcher.act(item, peer, arrival)
    took_ms = (asyncio.get_running_loop().time() - arrival) * 1e3
    return to_reply(chunk, took_ms, previous_ms)


async def _told(item: Item, peer: Peer, arrival: float, dispatcher: Dispatcher) -> dict[str, Any]:
    """The reply to one of several, or the error that it has."""
    try:
        return await _reply(item, peer, arrival, dispatcher)
    except RefusedError as error:
        return to_error(error.code, str(error), item.request_id, error.retry_after_s)

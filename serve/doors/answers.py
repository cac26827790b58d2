"""The answer to one message, whichever door it came through."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

from gwp.protocol.msgpack_numpy import packb
from serve.desk.dispatch import Asked, Dispatcher, Item, Peer
from serve.messages.replies import join, to_error, to_reply
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

ENDPOINTS = ("infer", "reset", "clock")
INTERNAL = "internal error; see the log of the gateway"


@dataclass(frozen=True)
class Answer:
    """What comes of one message.

    reply:      the map of it, packed, or why there is none
    request_id: of the message, where that could be read
    mapped:     whether the message has `endpoint`: its sender reads refusals as maps
    """

    reply: bytes | RefusedError
    request_id: str | int | None
    mapped: bool


async def answer(
    data: bytes,
    peer: Peer,
    arrival: float,
    dispatcher: Dispatcher,
    previous_ms: float | None = None,
) -> Answer:
    """The answer to the bytes of a message; of several observations each has an error of its own.

    arrival:     when they had come, on the loop's clock
    previous_ms: what the reply before took, for those who ask on one connection
    """
    asked = Asked(None)
    reply: bytes | RefusedError
    try:
        asked = await dispatcher.ask(data, peer, arrival)
        told = await _reply_to(asked, peer, arrival, dispatcher, previous_ms)
        named = {} if asked.request_id is None else {"request_id": asked.request_id}
        reply = packb(told | named)
    except RefusedError as error:
        reply = error
    except Exception:
        log.exception("a request failed in the gateway")
        reply = RefusedError("internal", INTERNAL)
    if isinstance(reply, RefusedError):
        dispatcher.count(reply.code)
    return Answer(reply, asked.request_id, asked.endpoint is not None)


async def _reply_to(
    asked: Asked, peer: Peer, arrival: float, dispatcher: Dispatcher, previous_ms: float | None
) -> dict[str, Any]:
    if asked.refusal:
        raise asked.refusal
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
        reply = await _reply(asked.items[0], peer, arrival, dispatcher, previous_ms)
        dispatcher.count("ok", reply["flags"])
        return reply
    told = (_told(item, peer, arrival, dispatcher) for item in asked.items)
    replies = await asyncio.gather(*told)
    # Those that were computed first have waited for the others.
    replies = [
        _unless_late(reply, item, arrival, dispatcher)
        for reply, item in zip(replies, asked.items, strict=True)
    ]
    for reply in replies:
        dispatcher.count(reply.get("code", "ok"), reply.get("flags", ()))
    return join(replies, asked.form)


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


def _unless_late(
    reply: dict[str, Any], item: Item, arrival: float, dispatcher: Dispatcher
) -> dict[str, Any]:
    """The reply to one of several, or the error that has come of it meanwhile."""
    if reply.get("type") == "error":
        return reply
    try:
        dispatcher.check_time(item, arrival)
    except RefusedError as error:
        return to_error(error.code, str(error), item.request_id, error.retry_after_s)
    return reply

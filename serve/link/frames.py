"""What travels between a gateway and a replica: binary msgpack maps, never pickles.

    gateway -> replica   {"asks": [request, ...], "cancel": [number, ...], "line": float}
    replica -> gateway   {"answers": [answer, ...], "load": int, "wait_s": float, "batch": float,
                          "leaving": bool}

A request has the number that its answer carries. Both sides are of one version: they are deployed
together, and a gateway asks only replicas of its own policy.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.msgpack_numpy import unpackb
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

MAX_FRAME = 64 << 20
"""Bytes of one frame: some hundred canvases of the largest models."""
PING_S, PONG_S = 0.5, 1.5
"""How often either side looks whether the other lives, and how long it waits for a sign of it: a
machine that is gone says nothing. A process that is killed is noticed at once.
"""
HANG_UP_S = 0.2
"""How long the end of a connection is waited for: who has given no sign says no farewell."""
TOKEN_HEADER = "x-gwp-link"  # noqa: S105  a name
"""Carries the secret that only gateways and replicas of one application know."""
TELL_S = 0.2
"""How long either side may believe of the other what is true no more: what changes without a
question or an answer is told so often.
"""


async def awakened(wake: asyncio.Event) -> None:
    """Return when there is something to send, or when it is time to see whether there is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(TELL_S):
            await wake.wait()
    # One round of the loop later: what comes together travels together.
    await asyncio.sleep(0)
    wake.clear()


def end_with(sender: "asyncio.Task[None]", socket: Connection) -> None:
    """A link that sends no more is hung up: whoever is at its other end would wait in vain."""

    def ended(task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        if not isinstance(task.exception(), ConnectionClosed):
            log.error("a link cannot send", exc_info=task.exception())
        socket.transport.abort()

    sender.add_done_callback(ended)


def unpack_frame(frame: bytes | str) -> dict[str, Any]:
    """The map of one frame. A hundred robots that ask together are more than a robot may send."""
    data = frame if isinstance(frame, bytes) else frame.encode()
    message: dict[str, Any] = unpackb(data, bounds=None)
    return message


def to_ask(number: int, given: ComposedObservation, allowed_s: float) -> dict[str, Any]:
    """A request as a map. allowed_s: seconds that are left for it."""
    fields = asdict(given.observation)
    # The gateway has counted that.
    del fields["images"], fields["report"]
    said = {name: value for name, value in fields.items() if value is not None}
    return {"n": number, "left_s": allowed_s, "canvas": given.canvas, "observation": said}


def from_ask(ask: dict[str, Any]) -> tuple[int, ComposedObservation, float]:
    """Number, observation, seconds that are left."""
    observation = Observation(images={}, **ask["observation"])
    return ask["n"], ComposedObservation(observation, ask["canvas"]), ask["left_s"]


def to_answer(number: int, answer: ActionChunk | RefusedError) -> dict[str, Any]:
    """A chunk or a refusal as a map."""
    if isinstance(answer, RefusedError):
        refusal = {"code": answer.code, "message": str(answer), "after_s": answer.retry_after_s}
        return {"n": number, "refusal": refusal}
    return {"n": number, "chunk": asdict(answer)}


def from_answer(answer: dict[str, Any]) -> tuple[int, ActionChunk | RefusedError]:
    """Number, and the chunk or the refusal."""
    refusal = answer.get("refusal")
    if refusal is not None:
        error = RefusedError(refusal["code"], refusal["message"], refusal["after_s"])
        return answer["n"], error
    fields = answer["chunk"]
    return answer["n"], ActionChunk(**fields | {"flags": tuple(fields["flags"])})

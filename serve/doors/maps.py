"""The way from one message to its answer, which all doors share."""

import asyncio
import time
from typing import Any

from gwp.errors import GoneError, ObservationError, ProtocolError
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import Observation
from serve.dispatch import Dispatcher, RefusedError
from serve.doors.pictures import Pixels
from serve.doors.replies import join, to_error, to_reply
from serve.doors.requests import to_observation
from serve.doors.together import Split, split
from serve.doors.values import request_id


async def infer(
    message: object,
    dispatcher: Dispatcher,
    embodiment: str | None,
    previous_ms: float | None = None,
) -> dict[str, Any]:
    """The reply map for one message. RefusedError when there is none; of several observations
    each has an error of its own.
    """
    try:
        # In a thread: pictures are decoded and copied here, and other robots' frames are waiting.
        parts, admitted = await asyncio.to_thread(_read, message, dispatcher.contract, embodiment)
    except (ObservationError, ProtocolError) as error:
        raise _refused(error) from error
    if parts.form == "one":
        if isinstance(admitted[0], RefusedError):
            raise admitted[0]
        return await _answer(admitted[0], dispatcher, previous_ms)
    replies = await asyncio.gather(
        *(_told(part, one, dispatcher) for part, one in zip(parts.requests, admitted, strict=True))
    )
    return join(replies, parts.form)


def _read(
    message: object, contract: PolicyContract, embodiment: str | None
) -> tuple[Split, list[Observation | RefusedError]]:
    """The observations of a message, admitted or refused each by itself."""
    parts = split(message)
    pixels = Pixels()
    admitted: list[Observation | RefusedError] = []
    for request in parts.requests:
        try:
            observation = to_observation(request, contract, embodiment, pixels)
            admitted.append(contract.admit(observation)[0])
        except (ObservationError, ProtocolError) as error:
            admitted.append(_refused(error))
    return parts, admitted


def _refused(error: ObservationError | ProtocolError) -> RefusedError:
    code = "protocol" if isinstance(error, ProtocolError) else "observation"
    return RefusedError("gone" if isinstance(error, GoneError) else code, str(error))


async def _answer(
    observation: Observation, dispatcher: Dispatcher, previous_ms: float | None
) -> dict[str, Any]:
    start = time.perf_counter()
    chunk = await dispatcher.act(observation)
    return to_reply(chunk, (time.perf_counter() - start) * 1e3, previous_ms)


async def _told(
    request: Any, observation: Observation | RefusedError, dispatcher: Dispatcher
) -> dict[str, Any]:
    """The reply to one of several, or the error that it has."""
    try:
        if isinstance(observation, RefusedError):
            raise observation
        return await _answer(observation, dispatcher, None)
    except RefusedError as error:
        return to_error(error.code, str(error), _id_of(request))


def _id_of(request: Any) -> str | int | None:
    """What a request calls itself, if that is a name."""
    try:
        return request_id(request) if isinstance(request, dict) else None
    except ObservationError:
        return None

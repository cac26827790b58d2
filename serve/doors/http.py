"""One message per HTTP request, for those who do not want to hold a connection.

The same maps travel as on the websocket.
"""

import asyncio
import json
import logging
import math

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import HTTPConnection

from gwp.errors import ObservationError
from serve.desk.dispatch import Dispatcher, Peer
from serve.desk.uploads import ARRIVED_S
from serve.doors.announced import announced
from serve.doors.answers import INTERNAL, Answer, answer
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

STATUS = {
    "access": 401,
    "observation": 422,
    "stale": 422,
    "gone": 409,
    "protocol": 400,
    "busy": 429,
    "limit": 429,
    "unavailable": 503,
    "deadline": 504,
    "policy": 500,
    "internal": 500,
}
"""Code of a refusal -> HTTP status."""
MSGPACK = "application/msgpack"


async def act(request: Request, dispatcher: Dispatcher) -> Response:
    """`POST /v1/act`: a msgpack observation in, a msgpack chunk out.

    An error is JSON `{"code", "message"}`, with `request_id` and `retry_after_s` where there are.
    """
    try:
        key = dispatcher.access.name_of(request.headers)
        if key is None:
            raise RefusedError("access", "API key missing or unknown")
        peer = Peer(name_of(request), key, _embodiment(request, dispatcher))
        data = await _body(request, dispatcher)
        with dispatcher.visit():
            given = await _unless_hung_up(request, data, peer, dispatcher)
    except RefusedError as error:
        return refused(error)
    except Exception:
        log.exception("a request failed in the gateway")
        return refused(RefusedError("internal", INTERNAL))
    if isinstance(given.reply, RefusedError):
        return refused(given.reply, given.request_id)
    return Response(given.reply, media_type=MSGPACK)


def policy(request: Request, dispatcher: Dispatcher) -> Response:
    """`GET /v1/policy`: what the websocket says at the handshake, as JSON."""
    if dispatcher.access.name_of(request.headers) is None:
        return refused(RefusedError("access", "API key missing or unknown"))
    return Response(json.dumps(dispatcher.metadata(), indent=1), media_type="application/json")


def stats(request: Request, dispatcher: Dispatcher) -> Response:
    """`GET /v1/stats`: what this process has answered since it started, as JSON."""
    if dispatcher.access.name_of(request.headers) is None:
        return refused(RefusedError("access", "API key missing or unknown"))
    return JSONResponse(dispatcher.stats())


def ready(dispatcher: Dispatcher) -> Response:
    """`GET /readyz`: 200 while a replica can answer, else 503."""
    if dispatcher.ready:
        # The word that KubeRay looks for.
        return PlainTextResponse("success\n")
    return PlainTextResponse("no replica\n", 503)


def refused(error: RefusedError, request_id: str | int | None = None) -> Response:
    """A refusal as an HTTP response."""
    after_s = error.retry_after_s
    body: dict[str, object] = {"code": error.code, "message": str(error)}
    if request_id is not None:
        body["request_id"] = request_id
    if after_s is not None:
        body["retry_after_s"] = after_s
    # A replica of another version may know codes that this gateway does not.
    return JSONResponse(body, STATUS.get(error.code, STATUS["internal"]), retry_after(error))


def retry_after(error: RefusedError) -> dict[str, str]:
    """The header that says when to come back: whole seconds, as HTTP has them."""
    after_s = error.retry_after_s
    return {} if after_s is None else {"Retry-After": str(max(1, math.ceil(after_s)))}


def name_of(connection: HTTPConnection) -> str:
    """A name for whoever is at the other end."""
    client = connection.client
    return f"{client.host}:{client.port}" if client else ""


def _embodiment(request: Request, dispatcher: Dispatcher) -> str | None:
    """Which robot the query announces. RefusedError where it does not match the policy."""
    robot = announced(request.query_params)
    if not robot:
        return None
    try:
        embodiment = dispatcher.contract.agree(robot)
    except ObservationError as error:
        raise RefusedError("observation", str(error)) from error
    return embodiment.name if embodiment else None


async def _unless_hung_up(
    request: Request, data: bytes, peer: Peer, dispatcher: Dispatcher
) -> Answer:
    """The answer; its work is given up when the client hangs up."""
    arrival = asyncio.get_running_loop().time()
    working = asyncio.ensure_future(answer(data, peer, arrival, dispatcher))
    # After the body nothing comes but the end.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RefusedError("unavailable", "the client hung up")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _body(request: Request, dispatcher: Dispatcher) -> bytes:
    """The body, cut off as soon as it is too long, or as all that arrive together are: nothing
    over the limits is held in memory.
    """
    body, uploads = bytearray(), dispatcher.uploads
    try:
        async with asyncio.timeout(ARRIVED_S):
            async for part in request.stream():
                body += part
                uploads.bytes += len(part)
                if len(body) > dispatcher.max_bytes:
                    raise RefusedError(
                        "protocol",
                        f"message is over the limit of {dispatcher.max_bytes} bytes; send smaller "
                        "or JPEG images",
                    )
                if uploads.full:
                    raise RefusedError("busy", "too much is being sent at once; try again", 0.5)
    except TimeoutError as error:
        raise RefusedError(
            "protocol", f"the message took longer than {ARRIVED_S:g} s to arrive"
        ) from error
    finally:
        uploads.bytes -= len(body)
    return bytes(body)

"""One observation per HTTP request, for those who do not want to hold a connection.

The same maps travel as on the websocket.
"""

import json
import logging

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb
from serve.dispatch import Dispatcher, RefusedError
from serve.doors.maps import infer

log = logging.getLogger("ray.serve")

STATUS = {
    "access": 401,
    "observation": 422,
    "gone": 409,
    "protocol": 400,
    "busy": 429,
    "unavailable": 503,
    "deadline": 504,
    "policy": 500,
    "internal": 500,
}
"""Code of a refusal -> HTTP status."""
MSGPACK = "application/msgpack"


async def act(request: Request, dispatcher: Dispatcher) -> Response:
    """`POST /v1/act`: a msgpack observation in, a msgpack chunk out.

    An error is JSON `{"code", "message"}`.
    """
    try:
        if not dispatcher.access.allows(request.headers):
            raise RefusedError("access", "API key missing or unknown")
        try:
            message = unpackb(await _body(request, dispatcher.max_bytes))
        except ProtocolError as error:
            raise RefusedError("protocol", str(error)) from error
        return Response(packb(await infer(message, dispatcher, None)), media_type=MSGPACK)
    except RefusedError as error:
        return refused(error)
    except Exception:
        log.exception("a request failed in the gateway")
        return refused(RefusedError("internal", "internal error; see the log of the gateway"))


def policy(request: Request, dispatcher: Dispatcher) -> Response:
    """`GET /v1/policy`: what the websocket says at the handshake, as JSON."""
    if not dispatcher.access.allows(request.headers):
        return refused(RefusedError("access", "API key missing or unknown"))
    metadata = json.dumps(dispatcher.contract.metadata(), indent=1)
    return Response(metadata, media_type="application/json")


def refused(error: RefusedError) -> Response:
    """A refusal as an HTTP response."""
    headers = {"Retry-After": "1"} if error.code in ("busy", "unavailable") else {}
    # A replica of another version may know codes that this gateway does not.
    status = STATUS.get(error.code, STATUS["internal"])
    return JSONResponse({"code": error.code, "message": str(error)}, status, headers)


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, cut off as soon as it is too long: nothing over the limit is held in memory."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise ProtocolError(
                f"message is over the limit of {max_bytes} bytes; send smaller or JPEG images"
            )
    return bytes(body)

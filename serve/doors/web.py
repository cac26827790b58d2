"""The routes of the endpoint; what they do stands in `serve.doors`."""

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse

from serve.desk.dispatch import Dispatcher
from serve.doors import http, openpi


def build_routes(dispatcher: Dispatcher) -> FastAPI:
    """The web application of one process."""
    app = FastAPI(openapi_url=None)

    @app.websocket("/")
    @app.websocket("/v1/openpi")
    @app.websocket("/v1/realtime/robot/openpi")
    async def openpi_door(socket: WebSocket) -> None:
        await openpi.converse(socket, dispatcher)

    @app.post("/v1/act")
    async def act(request: Request) -> Response:
        return await http.act(request, dispatcher)

    @app.get("/v1/policy")
    async def policy(request: Request) -> Response:
        return http.policy(request, dispatcher)

    @app.get("/v1/stats")
    async def stats(request: Request) -> Response:
        return http.stats(request, dispatcher)

    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("OK\n")

    # Where KubeRay asks whether a pod of a RayService may get traffic.
    @app.get("/-/healthz")
    @app.get("/readyz")
    async def readyz() -> Response:
        return http.ready(dispatcher)

    return app

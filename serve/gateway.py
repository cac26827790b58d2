"""The process that robots connect to: access, decoding and checks here, the model elsewhere.

Every observation goes through the handle on its own, so a robot's long-lived connection still
spreads its load over all replicas, new ones included.
"""

from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from gwp.policy.contract import PolicyContract
from serve.config import ServeApp
from serve.dispatch import Desk
from serve.doors import http, openpi

app = FastAPI(openapi_url=None)


@serve.deployment
@serve.ingress(app)
class Gateway:
    """The routes; what they do stands in `serve.doors`."""

    def __init__(
        self, replica: DeploymentHandle, contract: dict[str, Any], config: dict[str, Any]
    ) -> None:
        self._desk = Desk(
            replica, PolicyContract.model_validate(contract), ServeApp.model_validate(config)
        )

    @app.websocket("/")
    async def openpi_root(self, socket: WebSocket) -> None:
        await openpi.converse(socket, self._desk)

    @app.websocket("/v1/openpi")
    async def openpi_named(self, socket: WebSocket) -> None:
        await openpi.converse(socket, self._desk)

    @app.websocket("/v1/realtime/robot/openpi")
    async def openpi_vllm_omni(self, socket: WebSocket) -> None:
        await openpi.converse(socket, self._desk)

    @app.post("/v1/act")
    async def act(self, request: Request) -> Response:
        return await http.act(request, self._desk)

    @app.get("/v1/policy")
    async def policy(self, request: Request) -> Response:
        return http.policy(request, self._desk)

    @app.get("/healthz")
    async def healthz(self) -> PlainTextResponse:
        return PlainTextResponse("OK\n")

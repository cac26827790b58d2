"""The usual way to serve a policy, as openpi's server does it: one websocket server that computes
one request at a time in its event loop. A program of its own:

    python -m pipelines.bench.fleet.rival BUNDLE PORT THREADS
"""

import asyncio
import sys
from http import HTTPStatus

import torch
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from gwp.protocol.msgpack_numpy import packb, unpackb
from serve.warmup import observation_for

HEALTH = "/healthz"


async def run(policy: Policy, port: int) -> None:
    """Serve until the process is ended."""
    (robot,) = policy.contract.embodiments.values()
    (camera,) = robot.cameras.values()
    policy.act(observation_for(robot))

    async def answer(socket: ServerConnection) -> None:
        await socket.send(packb({}))
        async for frame in socket:
            message = unpackb(frame if isinstance(frame, bytes) else frame.encode())
            seen = Observation(
                {camera: message["images"][camera]},
                message["state"],
                message["prompt"],
                seed=message["seed"],
            )
            await socket.send(packb({"actions": policy.act(seen).actions}))

    def health(socket: ServerConnection, request: Request) -> Response | None:
        return socket.respond(HTTPStatus.OK, "OK\n") if request.path == HEALTH else None

    async with serve(
        answer, "127.0.0.1", port, process_request=health, compression=None, max_size=None
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    bundle, number, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    asyncio.run(run(Policy.load(bundle), int(number)))

"""Requests by the hundred thousand through doors, gateway and links, while connections of both
kinds break at random: does any robot get another one's answer? A program too:

    python -m tests.support.storm 1000000
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk
from gwp.protocol.msgpack_numpy import packb, unpackb
from serve.config import ServeApp
from serve.endpoint import Endpoint
from serve.identity import Identity
from serve.link.pool import ReplicaPool
from serve.link.server import LinkServer
from serve.loop import LoopThread
from tests.unit.gwp.policy.test_contract import ONE

_REPLICAS, _ROBOTS = 3, 48
_PICTURE = np.zeros((8, 8, 3), np.uint8)


class Engine:
    """Answers each observation with its own seed, sooner or later."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.load, self.wait_s, self.batch, self.ready = 0, 0.0, 1.0, True

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        # Not in the order in which they came.
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)
        if self._random.random() < 0.01:
            await asyncio.sleep(self._random.random() * 0.02)
        return ActionChunk(np.full((2, 2), given.observation.seed, np.float32), ONE.policy_id)


class Storm:
    """Everything that stands between robots and engines, and who breaks it."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._behind, self._front = LoopThread("replicas"), LoopThread("gateway")
        self._servers = [LinkServer(Engine(n), "token") for n in range(_REPLICAS)]  # type: ignore[arg-type]
        ports = [self._behind.run(s.listen("127.0.0.1"), 10) for s in self._servers]
        pool = ReplicaPool("token", window=8, queue=1000)
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self._front.loop.call_soon_threadsafe(pool.found, addresses)
        app = ServeApp.model_validate(
            {"policy": "p", "limits": {"queue": 1000, "request_timeout_s": 20}}
        )
        self._endpoint = Endpoint(
            pool,
            ONE,
            Identity(policy_id=ONE.policy_id),
            app.model_copy(update={"port": 0}),
            self._front,
        )

    async def run(self, requests: int) -> Counter[str]:
        """Send so many; what became of them. `wrong` are answers that belong to others."""
        breaking = asyncio.create_task(self._break_links())
        each = requests // _ROBOTS
        await asyncio.gather(*(self._robot(n, each) for n in range(_ROBOTS)))
        breaking.cancel()
        return self.counts

    def close(self) -> None:
        self._front.run(self._endpoint.close(), 30)
        for server in self._servers:
            self._behind.run(server.leave(0), 30)
        self._front.close()
        self._behind.close()

    async def _break_links(self) -> None:
        while True:
            await asyncio.sleep(0.05 + self._random.random() * 0.2)
            server = self._random.choice(self._servers)
            self._behind.loop.call_soon_threadsafe(_break, server)

    async def _robot(self, number: int, requests: int) -> None:
        own = random.Random(number)
        left = requests
        while left > 0:
            try:
                left = await self._connected(own, number, left)
            except ConnectionClosed:
                self.counts["closed"] += 1

    async def _connected(self, own: random.Random, number: int, left: int) -> int:
        """One connection, until it is dropped or nothing is left to ask."""
        url = f"ws://127.0.0.1:{self._endpoint.port}/"
        async with connect(url, compression=None, proxy=None) as socket:
            await socket.recv()
            while left > 0:
                seeds = [own.randrange(1 << 20) for _ in range(own.choice((1, 1, 1, 3)))]
                for seed in seeds:
                    await socket.send(packb(_request(seed, f"{number}-{left}-{seed}")))
                if own.random() < 0.01:
                    # Gone without a word: what comes meets the next connection, if anybody errs.
                    socket.transport.abort()
                    self.counts["dropped"] += 1
                    return left - len(seeds)
                for seed in seeds:
                    reply = unpackb(await socket.recv())  # type: ignore[arg-type]
                    self.counts[_outcome(reply, seed, f"{number}-{left}-{seed}")] += 1
                left -= len(seeds)
        return 0


def _request(seed: int, name: str) -> dict[str, Any]:
    return {
        "endpoint": "infer",
        "top": _PICTURE,
        "wrist": _PICTURE,
        "state": np.zeros(3, np.float32),
        "seed": seed,
        "request_id": name,
    }


def _outcome(reply: Any, seed: int, name: str) -> str:
    if reply.get("request_id") != name:
        return "wrong"
    if reply.get("type") == "error":
        return str(reply["code"])
    return "ok" if (reply["actions"] == seed).all() else "wrong"


def _break(server: LinkServer) -> None:
    for link in list(server._links):
        link._socket.transport.abort()


def storm(requests: int, seed: int = 0) -> Counter[str]:
    """What became of so many requests."""
    found = Storm(seed)
    try:
        return asyncio.run(found.run(requests))
    finally:
        found.close()


if __name__ == "__main__":
    begin = time.monotonic()
    outcome = dict(storm(int(sys.argv[1])))
    print(json.dumps(outcome | {"seconds": round(time.monotonic() - begin, 1)}))

"""An endpoint on a real port, in front of a backend that does as it is told."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk
from gwp.protocol.msgpack_numpy import packb, unpackb
from serve.config import ServeApp
from serve.endpoint import Endpoint
from serve.identity import Identity
from serve.loop import LoopThread
from serve.refusal import RefusedError
from tests.unit.gwp.policy.test_contract import IMAGE, ONE

STATE = np.arange(3, dtype=np.float32)
GOOD: dict[str, Any] = {"top": IMAGE, "wrist": IMAGE, "state": STATE}
WHO = Identity(policy_id=ONE.policy_id, policy_version="3", policy_alias="champion", run_id="r")
WAIT_S = 20


class Backend:
    """Answers at once, or when it is `open`."""

    def __init__(self) -> None:
        self.asked: list[ComposedObservation] = []
        self.allowed: list[float] = []
        self.given_up = 0
        self.ready, self.wait_s, self.batch = True, 0.0, 1.0
        self.refusal: RefusedError | None = None
        self.open = threading.Event()
        self.open.set()

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        self.asked.append(given)
        self.allowed.append(allowed_s)
        try:
            while not self.open.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.refusal:
            raise self.refusal
        return ActionChunk(np.zeros((8, 2), np.float32), ONE.policy_id)


class Place:
    """An endpoint and the backend behind it."""

    def __init__(self, **config: Any) -> None:
        self.backend = Backend()
        self.thread = LoopThread("test")
        app = ServeApp.model_validate({"policy": "p", "port": 1} | config)
        self.endpoint = Endpoint(
            self.backend, ONE, WHO, app.model_copy(update={"port": 0}), self.thread
        )
        self.http = f"http://127.0.0.1:{self.endpoint.port}"

    def robot(self, **options: Any) -> ClientConnection:
        robot = connect(f"ws://127.0.0.1:{self.endpoint.port}/", proxy=None, **options)
        self.metadata = unpackb(robot.recv(WAIT_S))  # type: ignore[arg-type]
        return robot

    def ask(self, socket: ClientConnection, **more: Any) -> Any:
        socket.send(packb(GOOD | {"endpoint": "infer"} | more))
        return unpackb(socket.recv(WAIT_S))  # type: ignore[arg-type]

    def close(self) -> None:
        self.backend.open.set()
        if self.endpoint.alive:
            self.thread.run(self.endpoint.close(), WAIT_S)
        self.thread.close()


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)

"""Who sends what nobody should send harms nobody but himself."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gwp.protocol.msgpack_numpy import packb, unpackb
from tests.support.hostile import corpus, good
from tests.support.storm import storm

_SERVER = """
import json, sys, time
from serve.config import ServeApp
from serve.endpoint import Endpoint
from serve.identity import Identity
from serve.loop import LoopThread
from tests.support.storm import Engine
from tests.unit.gwp.policy.test_contract import ONE

thread = LoopThread("server")
app = ServeApp(policy="p").model_copy(update={"port": 0})
endpoint = Endpoint(Engine(0), ONE, Identity(policy_id=ONE.policy_id), app, thread)
print(endpoint.port, flush=True)
sys.stdin.read()
"""
_SENDERS = 6


@pytest.fixture
def server() -> Iterator[tuple[int, psutil.Process]]:
    """A gateway's process: its port, and how it is doing."""
    program = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout
    assert program.stdin
    try:
        yield int(program.stdout.readline()), psutil.Process(program.pid)
        assert program.poll() is None
    finally:
        program.stdin.close()
        program.wait(20)


class Attack:
    """Hostile clients on both doors, and one robot beside them."""

    def __init__(self, port: int, each: int, executed: Path) -> None:
        self.port, self.each, self.executed = port, each, executed
        self.sent = 0
        self.waits: list[float] = []
        self.health: list[float] = []
        self._over = asyncio.Event()

    async def run(self) -> None:
        beside = [asyncio.create_task(self._robot()), asyncio.create_task(self._watch())]
        await asyncio.gather(
            *(self._socket(n) for n in range(_SENDERS - 1)), self._http(_SENDERS - 1)
        )
        self._over.set()
        await asyncio.gather(*beside)

    async def _socket(self, number: int) -> None:
        messages = corpus(number, self.executed)
        left = self.each
        while left > 0:
            url = f"ws://127.0.0.1:{self.port}/"
            try:
                async with connect(url, compression=None, proxy=None, max_size=None) as socket:
                    await socket.recv()
                    while left > 0:
                        left -= 1
                        self.sent += 1
                        await socket.send(next(messages))
                        await asyncio.wait_for(socket.recv(), 30)
            except ConnectionClosed:
                continue

    async def _http(self, number: int) -> None:
        messages = corpus(number, self.executed)
        async with httpx.AsyncClient(timeout=30) as http:
            for _ in range(self.each):
                url = f"http://127.0.0.1:{self.port}/v1/act"
                reply = await http.post(url, content=next(messages))
                assert reply.status_code != 500, reply.text
                self.sent += 1

    async def _robot(self) -> None:
        url = f"ws://127.0.0.1:{self.port}/"
        message = packb(good())
        async with connect(url, compression=None, proxy=None) as socket:
            await socket.recv()
            while not self._over.is_set():
                begin = time.perf_counter()
                await socket.send(message)
                reply: Any = unpackb(await asyncio.wait_for(socket.recv(), 30))  # type: ignore[arg-type]
                self.waits.append(time.perf_counter() - begin)
                assert "actions" in reply, reply
                await asyncio.sleep(0.01)

    async def _watch(self) -> None:
        async with httpx.AsyncClient(timeout=30) as http:
            while not self._over.is_set():
                begin = time.perf_counter()
                reply = await http.get(f"http://127.0.0.1:{self.port}/healthz")
                self.health.append(time.perf_counter() - begin)
                assert reply.status_code == 200
                await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_hostile_messages_harm_nobody(
    server: tuple[int, psutil.Process], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    port, process = server
    executed = tmp_path / "executed"
    count = 100_000
    warm = Attack(port, 500, executed)
    asyncio.run(warm.run())
    before = process.memory_info().rss
    attack = Attack(port, count // _SENDERS, executed)
    asyncio.run(attack.run())
    grown = process.memory_info().rss - before
    p50, p99 = np.percentile(attack.waits, (50, 99)) * 1e3
    health = np.percentile(attack.health, (50, 99)) * 1e3
    told = {
        "messages": attack.sent,
        "grown_mb": round(grown / 2**20, 1),
        "robot_ms": [round(p50, 1), round(p99, 1)],
        "health_ms": health.round(1).tolist(),
    }
    print(json.dumps(told))
    assert attack.sent >= count - _SENDERS
    assert not executed.exists()
    # A decoder's pictures may stay in the allocator; what grows with messages would be more.
    assert grown < 100 << 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_answer_meets_another_request() -> None:
    counts = storm(20_000, seed=1)
    assert counts["wrong"] == 0
    assert counts["ok"] > 18_000

"""Both clients on a real network of one machine: proxies, peers that hang, calls that are given up."""

import asyncio
import base64
import hashlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gwp.client import AsyncClient, Client, ClientError, Observation
from gwp.protocol.msgpack_numpy import packb
from tests.support.paths import ROOT
from tests.unit.gwp.client.test_client import ARM, METADATA, OBSERVATION, Peer, url

WAIT_S = 10


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    peer.start()
    yield peer
    peer.stop()


def test_the_async_client_does_what_the_other_does(peer: Peer) -> None:
    actions = np.arange(10, dtype=np.float32).reshape(5, 2)
    peer.answer = lambda _: {"actions": actions, "policy_id": "abc"}

    async def observe() -> Observation:
        return OBSERVATION

    async def run() -> None:
        async with AsyncClient(url(peer), api_key="secret", embodiment="arm") as client:
            assert client.metadata["replan"] == 4
            assert client.describe().fps == 50
            client.episode("one")
            for source in (OBSERVATION, lambda: OBSERVATION, observe):
                assert np.array_equal((await client.act(source)).actions, actions)
            assert (await client.infer({"state": np.ones(3)}))["policy_id"] == "abc"
            assert await client.healthz()

    asyncio.run(run())
    assert [request["endpoint"] for request in peer.requests] == ["infer"] * 4
    assert peer.connections[0].headers["Authorization"] == "Api-Key secret"
    assert len(peer.connections) == 1


def test_the_async_client_comes_back_after_a_restart(peer: Peer) -> None:
    async def run() -> None:
        async with AsyncClient(url(peer)) as client:
            await client.act(OBSERVATION)
            await asyncio.to_thread(peer.stop)
            threading.Timer(0.2, peer.start).start()
            await client.act(OBSERVATION)

    asyncio.run(run())
    assert len(peer.connections) == 2


def test_an_answer_to_a_cancelled_call_meets_no_other_request(peer: Peer) -> None:
    slow = threading.Event()

    def answer(request: dict[str, Any]) -> Any:
        if request["n"] == 1:
            slow.wait(WAIT_S)
        return {"actions": np.full((1, 1), request["n"])}

    peer.answer = answer

    async def run() -> None:
        async with AsyncClient(url(peer)) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.infer({"n": 1})
            slow.set()
            for n in (2, 3):
                assert (await client.infer({"n": n}))["actions"][0, 0] == n

    asyncio.run(run())


def test_tasks_take_turns(peer: Peer) -> None:
    peer.answer = lambda request: {"actions": np.full((1, 1), request["n"])}

    async def run() -> None:
        async with AsyncClient(url(peer)) as client:

            async def ask(n: int) -> list[bool]:
                replies = [await client.infer({"n": n}) for _ in range(10)]
                return [reply["actions"][0, 0] == n for reply in replies]

            assert all(map(all, await asyncio.gather(*map(ask, range(4)))))

    asyncio.run(run())


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> str:
    """A proxy that answers nobody, all over the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, address)
        monkeypatch.setenv(name.upper(), address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return address


def test_a_proxy_of_the_environment_captures_no_robot(peer: Peer, captured: str) -> None:
    with Client(url(peer)) as client:
        client.act(OBSERVATION)
        assert client.healthz()
    for proxy in (True, captured):
        with pytest.raises(ClientError, match="no answer"):
            Client(url(peer), proxy=proxy, timeout_s=0.3)


class Mute:
    """Accepts connections, says its greeting if it does so, and reads nothing more."""

    def __init__(self, greeting: dict[str, Any] | None = None) -> None:
        self.greeting = greeting
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.socket.getsockname()[1]}"
        self.kept: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                self.kept.append(self.socket.accept()[0])
            except OSError:
                return
            if self.greeting is not None:
                self.greet(self.kept[-1], packb(self.greeting))

    def greet(self, peer: socket.socket, metadata: bytes) -> None:
        (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", peer.recv(1 << 16))
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        accept = base64.b64encode(digest)
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        # And one binary frame, longer than 125 bytes or not.
        size = len(metadata)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
        frame = b"\x82" + length + metadata
        peer.sendall(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + frame)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_peer_that_says_nothing_is_given_up_in_time(asynchronous: bool) -> None:
    mute = Mute()
    begin = time.monotonic()

    def connect() -> None:
        if asynchronous:
            asyncio.run(AsyncClient(mute.url, timeout_s=0.5).connect())
        else:
            Client(mute.url, timeout_s=0.5)

    with pytest.raises(ClientError, match=r"no answer within 0.5 s"):
        connect()
    assert time.monotonic() - begin < 5
    mute.socket.close()


def test_sending_is_bounded_too() -> None:
    deaf = Mute({})
    client = Client(deaf.url, timeout_s=0.6, reply_timeout_s=0.3)
    begin = time.monotonic()
    # More than the buffers of the system hold.
    with pytest.raises(ClientError, match="no answer"):
        client.infer({"state": np.zeros(32 << 20, np.uint8)})
    assert time.monotonic() - begin < 5
    client.close()
    deaf.socket.close()


def test_a_call_that_is_given_up_keeps_a_connection_whose_replies_have_numbers(peer: Peer) -> None:
    slow = threading.Event()
    peer.metadata = METADATA | {"fields": ["request_id"]}

    def answer(request: dict[str, Any]) -> Any:
        if request["n"] == 1:
            slow.wait(WAIT_S)
        return {"actions": np.full((1, 1), request["n"]), "request_id": request["request_id"]}

    peer.answer = answer
    with Client(url(peer), timeout_s=0.3) as client:
        with pytest.raises(ClientError, match="nothing came"):
            client.infer({"n": 1})
        slow.set()
        for n in (2, 3):
            assert client.infer({"n": n})["actions"][0, 0] == n
    assert len(peer.connections) == 1


def test_a_peer_that_falls_silent_loses_the_connection() -> None:
    # It reads nothing, so it answers no ping.
    frozen = Mute(METADATA | {"fields": ["request_id"]})
    client = Client(frozen.url, timeout_s=3.0, reply_timeout_s=0.2)
    with pytest.raises(ClientError, match="no answer within"):
        client.infer({"n": 1})
    assert len(frozen.kept) > 1
    client.close()
    frozen.socket.close()


def test_closing_ends_a_call_that_waits(peer: Peer) -> None:
    stuck = threading.Event()

    def answer(_: dict[str, Any]) -> Any:
        stuck.wait(WAIT_S)
        return {"actions": np.zeros((1, 2))}

    peer.answer = answer
    client = Client(url(peer))
    told: list[ClientError] = []

    def ask() -> None:
        try:
            client.act(OBSERVATION)
        except ClientError as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not peer.requests:
        thread.join(0.01)
    begin = time.monotonic()
    client.close()
    thread.join(WAIT_S)
    assert time.monotonic() - begin < 5
    assert told[0].code == "closed"
    stuck.set()
    # And it can be used again.
    client.act(OBSERVATION)
    client.close()
    assert not [t for t in threading.enumerate() if t.name == "gwp-client"]


SIGNALLED = """
import os, signal, sys, threading, time
import numpy as np
from gwp.client import Client, ClientError

client = Client(sys.argv[1], timeout_s=20, reply_timeout_s=20)
signal.signal(signal.SIGTERM, lambda *_: client.close())
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
begin = time.monotonic()
try:
    client.infer({"state": np.zeros(1)})
except ClientError as error:
    print(error.code, time.monotonic() - begin < 10)
"""


def test_a_signal_may_close_the_client_that_waits(peer: Peer) -> None:
    stuck = threading.Event()

    def answer(_: dict[str, Any]) -> Any:
        stuck.wait(WAIT_S)
        return None

    peer.answer = answer
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, url(peer)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    stuck.set()
    assert done.stdout.split() == ["closed", "True"], done.stderr


FORKS = """
import os, sys
import numpy as np
from gwp.client import Client

def ask(n):
    return float(client.infer({"state": np.full(1, n)})["actions"][0, 0])

client = Client(sys.argv[1], timeout_s=5)
right = ask(1) == 1
child = os.fork()
if child == 0:
    answers = [ask(n) == n for n in range(10, 20)]
    client.close()
    os._exit(0 if all(answers) else 1)
answers = [ask(n) == n for n in range(20, 60)]
_, status = os.waitpid(child, 0)
answers += [ask(n) == n for n in range(60, 70)]
client.close()
print(right, all(answers), os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_has_a_connection_of_its_own(peer: Peer) -> None:
    peer.answer = lambda request: {"actions": np.full((1, 1), request["state"][0])}
    done = subprocess.run(
        [sys.executable, "-c", FORKS, url(peer)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["True", "True", "0"], done.stderr
    assert len(peer.connections) == 2


def test_an_error_of_the_camera_is_the_robots_own(peer: Peer) -> None:
    def observe() -> Observation:
        raise OSError("camera unplugged")

    with Client(url(peer)) as client:
        with pytest.raises(OSError, match="camera unplugged"):
            client.act(observe)
        client.act(OBSERVATION)
    assert len(peer.connections) == 1


def test_several_robots_of_one_policy_are_told_apart(peer: Peer) -> None:
    arm = {name: METADATA[name] for name in ("action_names", "state_names", "fps", "replan")}
    peer.metadata = {"policy_id": "abc", "embodiments": {"arm": arm, "leg": arm | {"fps": 10.0}}}
    with Client(url(peer)) as client:
        assert client.describe("leg").fps == 10
        with pytest.raises(ClientError, match="name one of arm, leg"):
            client.describe()
        with pytest.raises(ClientError, match="knows arm, leg"):
            client.describe("wing")


def test_the_robots_side_is_built_from_the_handshake(peer: Peer) -> None:
    limits = {"lower": [-1.0, -2.0], "upper": [1.0, 2.0], "velocity": None}
    arm = ARM | {
        "action_units": ["rad", "m/s"],
        "state_units": ["rad", "m"],
        "chunk": 12,
        "limits": limits,
        "images": {"observation.images.top": {"height": 96, "width": 128}},
    }
    top = {"recommend": {"delay": 5, "blend": 2, "jpeg_quality": 95, "resize": True}}
    peer.metadata = METADATA | top | {"embodiments": {"arm": arm}, "trained_delay": 3}
    peer.answer = lambda r: {"actions": np.ones((12, 2)), "policy_id": "abc"}
    with Client(url(peer)) as client:
        profile = client.describe()
        assert profile.sizes == {"observation.images.top": (96, 128)}
        assert profile.limits == {"lower": (-1, -2), "upper": (1, 2)}
        # Not beyond what it was trained on.
        assert (profile.delay, profile.blend, profile.jpeg_quality, profile.resize) == (
            3,
            2,
            95,
            True,
        )
        assert profile.summed == (False, True)
        with profile.buffer(client.act, wait_s=5.0) as buffer:
            assert buffer.next_action(lambda: OBSERVATION).tolist() == [1, 1]


def test_importing_the_client_is_quick() -> None:
    # The processor's time, which neighbours on the machine do not stretch.
    code = (
        "import time; begin = time.process_time(); import gwp.client;"
        "print(time.process_time() - begin)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(times) < 0.3

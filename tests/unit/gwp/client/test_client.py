"""The robot's client against a peer on loopback that speaks openpi and misbehaves on demand."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from gwp.client import Client, ClientError, Observation
from gwp.protocol.msgpack_numpy import packb, unpackb

ARM = {
    "action_names": ["x", "y"],
    "state_names": ["x", "y"],
    "fps": 50.0,
    "cameras": ["observation.images.top"],
    "replan": 4,
}
METADATA = {
    "policy_id": "abc",
    "dialects": ["openpi", "vllm-omni"],
    "embodiments": {"arm": ARM},
    "embodiment": "arm",
} | ARM
OBSERVATION = Observation(
    {"top": np.zeros((8, 8, 3), np.uint8)}, np.ones(2, np.float32), "go", seed=7
)


class Peer:
    """An openpi server. `answer` turns a request map into a reply: a map, text, None (hang up),
    or a close code.
    """

    def __init__(self, metadata: dict[str, Any] = METADATA) -> None:
        self.metadata = metadata
        self.requests: list[Any] = []
        self.connections: list[Request] = []
        self.refuse: tuple[int, str] | None = None
        self.answer: Callable[[dict[str, Any]], Any] = lambda _: {
            "actions": np.zeros((5, 2)),
            "policy_id": "abc",
        }
        self.port = 0
        self.server: Server | None = None

    def _talk(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.connections.append(socket.request)
        socket.send(packb(self.metadata))
        for frame in socket:
            self.requests.append(unpackb(frame if isinstance(frame, bytes) else frame.encode()))
            reply = self.answer(self.requests[-1])
            if reply is None or isinstance(reply, int):
                socket.close(reply or 1011, "going away")
                return
            socket.send(reply if isinstance(reply, str) else packb(reply))

    def _door(self, _socket: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return Response(200, "OK", Headers(), b"OK\n")
        if self.refuse is not None:
            status, text = self.refuse
            return Response(status, "no", Headers(), text.encode())
        return None

    def start(self) -> str:
        self.server = serve(
            self._talk,
            "127.0.0.1",
            self.port,
            compression=None,
            max_size=None,
            process_request=self._door,
        )
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"ws://127.0.0.1:{self.port}"

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    peer.start()
    yield peer
    peer.stop()


def url(peer: Peer) -> str:
    return f"ws://127.0.0.1:{peer.port}"


def test_one_observation_there_and_a_chunk_back(peer: Peer) -> None:
    actions = np.arange(10, dtype=np.float32).reshape(5, 2)
    peer.answer = lambda _: {
        "actions": actions,
        "policy_id": "abc",
        "valid_from": 2,
        "flags": ["clipped:x"],
        "policy_timing": {"infer_ms": 3.0, "vae_ms": 1.0},
        "server_timing": {"infer_ms": 4.0},
    }
    with Client(url(peer), api_key="secret") as client:
        assert client.metadata["replan"] == 4
        chunk = client.act(OBSERVATION)
    assert np.array_equal(chunk.actions, actions)
    chunk.actions[0] = 0
    assert (chunk.policy_id, chunk.valid_from, chunk.flags) == ("abc", 2, ("clipped:x",))
    assert chunk.timings == {"total": 3.0, "vae": 1.0, "server": 4.0}
    sent = peer.requests[0]
    assert sent["images"]["top"].shape == (8, 8, 3)
    assert (sent["prompt"], sent["seed"], sent["endpoint"]) == ("go", 7, "infer")
    assert "prefix_actions" not in sent
    assert peer.connections[0].headers["Authorization"] == "Api-Key secret"


def test_infer_passes_maps_through_as_the_stock_client_does(peer: Peer) -> None:
    peer.metadata = {}
    peer.answer = lambda request: {"actions": request["state"] * 2, "more": "x"}
    with Client(url(peer)) as client:
        assert client.get_server_metadata() == {}
        reply = client.infer(
            {"state": np.ones(3), "observation/image": np.zeros((4, 4, 3), np.uint8)}
        )
        client.reset()
    assert reply["more"] == "x"
    assert reply["actions"].tolist() == [2, 2, 2]
    assert "endpoint" not in peer.requests[0]


@pytest.mark.parametrize("code", [1012, 1011, 1001, None])
def test_a_connection_lost_under_a_request_is_opened_again_and_the_request_repeated(
    peer: Peer, code: int | None
) -> None:
    def answer(_: dict[str, Any]) -> Any:
        return {"actions": np.zeros((5, 2))} if len(peer.requests) > 2 else code

    peer.answer = answer
    with Client(url(peer)) as client:
        assert client.act(OBSERVATION).actions.shape == (5, 2)
    assert len(peer.connections) == 3


def test_a_restart_between_requests_is_not_noticed(peer: Peer) -> None:
    with Client(url(peer)) as client:
        client.act(OBSERVATION)
        peer.stop()
        peer.metadata = METADATA | {"policy_id": "def"}
        threading.Timer(0.2, peer.start).start()
        client.act(OBSERVATION)
        assert client.metadata["policy_id"] == "def"


def test_a_client_may_start_before_its_server() -> None:
    peer = Peer()
    peer.start()
    peer.stop()
    threading.Timer(0.3, peer.start).start()
    with Client(url(peer), timeout_s=20) as client:
        assert client.metadata["policy_id"] == "abc"
    peer.stop()


def test_nothing_there_is_one_line_within_the_time_given() -> None:
    peer = Peer()
    peer.start()
    peer.stop()
    start = time.monotonic()
    with pytest.raises(ClientError, match=r"no answer within 0.5 s .*check that `gwp serve` runs"):
        Client(url(peer), timeout_s=0.5)
    assert time.monotonic() - start < 5


def test_a_reply_that_never_comes_is_bounded_and_a_late_one_is_never_taken_for_the_next(
    peer: Peer,
) -> None:
    slow = threading.Event()

    def answer(request: dict[str, Any]) -> Any:
        if request["seed"] == 1:
            slow.wait(10)
        return {"actions": np.full((1, 2), request["seed"])}

    peer.answer = answer
    with Client(url(peer), timeout_s=0.6, reply_timeout_s=0.2) as client:
        with pytest.raises(ClientError, match="no answer within"):
            client.infer({"seed": 1})
        slow.set()
        for seed in (2, 3):
            assert client.infer({"seed": seed})["actions"][0, 0] == seed


def test_a_refused_observation_is_raised_at_once_with_the_reason(peer: Peer) -> None:
    peer.answer = lambda _: {"type": "error", "code": "observation", "message": "state: NaN in x"}
    with Client(url(peer)) as client:
        with pytest.raises(ClientError, match="state: NaN in x") as caught:
            client.act(OBSERVATION)
        assert caught.value.code == "observation"
        assert len(peer.requests) == 1
        peer.answer = lambda _: {"actions": np.zeros((5, 2))}
        client.act(OBSERVATION)
    assert len(peer.connections) == 1


def test_a_busy_endpoint_is_asked_again_on_the_same_connection(peer: Peer) -> None:
    def answer(_: dict[str, Any]) -> Any:
        busy = {"type": "error", "code": "busy", "message": "all replicas are busy"}
        return busy if len(peer.requests) < 3 else {"actions": np.zeros((5, 2))}

    peer.answer = answer
    with Client(url(peer)) as client:
        client.act(OBSERVATION)
    assert (len(peer.requests), len(peer.connections)) == (3, 1)


def test_an_endpoint_that_stays_busy_says_so_in_the_end(peer: Peer) -> None:
    peer.answer = lambda _: {"type": "error", "code": "busy", "message": "all replicas are busy"}
    with (
        Client(url(peer), timeout_s=2.0) as client,
        pytest.raises(ClientError, match="all replicas are busy") as caught,
    ):
        client.act(OBSERVATION)
    assert caught.value.code == "busy"


def test_what_cannot_be_sent_is_told_at_once(peer: Peer) -> None:
    start = time.monotonic()
    with Client(url(peer)) as client, pytest.raises(ClientError, match="cannot send dtype object"):
        client.infer({"state": np.array([object()])})
    assert time.monotonic() - start < 5
    assert not peer.requests


def test_the_traceback_of_a_stock_server_becomes_its_last_line(peer: Peer) -> None:
    peer.answer = lambda _: "Traceback (most recent call last):\n  File x\nKeyError: 'state'\n"
    with Client(url(peer)) as client, pytest.raises(ClientError, match=r"KeyError: 'state'$"):
        client.infer({})


@pytest.mark.parametrize(
    "reply", [{"status": "fine"}, {"actions": np.zeros(5)}, {"actions": [1, 2]}]
)
def test_a_reply_without_a_chunk_is_an_error(peer: Peer, reply: dict[str, Any]) -> None:
    peer.answer = lambda _: reply
    with Client(url(peer)) as client, pytest.raises(ClientError, match="actions"):
        client.act(OBSERVATION)


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"fps": 30}, "30 Hz, the policy at 50 Hz"),
        ({"action_names": ["y", "x"]}, "action_names"),
        ({"state_names": ["x"]}, "state_names"),
        ({"cameras": ["wrist"]}, "needs camera observation.images.top"),
    ],
)
def test_a_robot_that_does_not_match_is_refused_even_by_a_server_that_checks_nothing(
    peer: Peer, expect: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClientError, match=message):
        Client(url(peer), embodiment="arm", expect=expect)
    assert not peer.requests


def test_a_robot_that_matches_announces_itself(peer: Peer) -> None:
    expect = {"fps": 50, "action_names": ["x", "y"], "cameras": ["top", "spare"]}
    with Client(url(peer) + "/?team=a", embodiment="arm", expect=expect) as client:
        client.act(OBSERVATION)
    said = dict(parse_qsl(urlsplit(peer.connections[0].path).query))
    assert said == {
        "team": "a",
        "embodiment": "arm",
        "fps": "50",
        "action_names": "x,y",
        "cameras": "top,spare",
    }
    assert peer.requests[0]["embodiment"] == "arm"


def test_an_unknown_expectation_is_refused(peer: Peer) -> None:
    with pytest.raises(ClientError, match="unknown hz"):
        Client(url(peer), expect={"hz": 50})


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "API key missing or unknown", "API key missing or unknown; check the API key"),
        (409, "embodiment arm does not match: 30 Hz", "does not match: 30 Hz"),
        (404, "", "nothing speaks openpi at this path"),
    ],
)
def test_a_refusal_at_the_door_is_final(peer: Peer, status: int, text: str, message: str) -> None:
    peer.refuse = (status, text)
    with pytest.raises(ClientError, match=message) as caught:
        Client(url(peer))
    assert caught.value.code == "handshake"


def test_a_gateway_that_is_starting_is_waited_for(peer: Peer) -> None:
    peer.refuse = (503, "starting")
    threading.Timer(0.2, lambda: setattr(peer, "refuse", None)).start()
    with Client(url(peer)) as client:
        assert client.metadata["policy_id"] == "abc"


def test_health(peer: Peer) -> None:
    client = Client(url(peer))
    assert client.healthz()
    client.close()
    peer.stop()
    assert not client.healthz()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{port}", "ws://127.0.0.1:{port}/", "http://127.0.0.1:{port}"]
)
def test_addresses_may_be_written_as_people_write_them(peer: Peer, address: str) -> None:
    with Client(address.format(port=peer.port)) as client:
        client.act(OBSERVATION)


@pytest.mark.parametrize(
    "address", ["ftp://host", "ws://", "", "ws://host:port", "ws://:8000", "host:99999"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClientError, match="write ws://host:port"):
        Client(address)


def test_threads_take_turns(peer: Peer) -> None:
    peer.answer = lambda request: {"actions": np.full((1, 1), request["n"])}
    wrong: list[int] = []
    with Client(url(peer)) as client:

        def ask(n: int) -> None:
            wrong.extend(n for _ in range(20) if client.infer({"n": n})["actions"][0, 0] != n)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert wrong == []

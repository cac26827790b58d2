"""What every door promises alike, on a real port: each answer in time, with its number, and counted;
and who only takes up room is sent away.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk
from gwp.protocol.msgpack_numpy import packb, unpackb
from serve import compat
from serve.desk import uploads
from tests.support.place import GOOD, STATE, WAIT_S, Place, until
from tests.unit.gwp.policy.test_contract import ONE


def test_of_several_each_is_in_time_or_told(place: Place) -> None:
    """One that was computed first has waited for the others: its own deadline holds, and its age."""
    slow = GOOD | {"seed": 1}
    hasty, aging = GOOD | {"deadline_s": 0.2}, GOOD | {"observed_at": time.time(), "max_age_s": 0.2}

    async def act(given: ComposedObservation, allowed_s: float) -> ActionChunk:
        if given.observation.seed == 1:
            await asyncio.sleep(0.4)
        return ActionChunk(np.zeros((8, 2), np.float32), ONE.policy_id)

    place.backend.act = act  # type: ignore[method-assign]
    with place.robot() as robot:
        robot.send(packb({"batch": [hasty, slow, aging], "request_id": 3}))
        told: Any = unpackb(robot.recv(WAIT_S))  # type: ignore[arg-type]
    codes = [each.get("code", "ok") for each in told["batch"]]
    assert codes == ["deadline", "ok", "stale"]
    assert told["request_id"] == 3
    counts = httpx.get(f"{place.http}/v1/stats", timeout=WAIT_S).json()["counts"]
    assert counts == {"deadline": 1, "ok": 1, "stale": 1}


@pytest.mark.parametrize("more", [{"batch": 5}, {"state": STATE * np.nan}, {"prompts": "go"}])
def test_a_refusal_names_its_request_on_every_door(place: Place, more: dict[str, Any]) -> None:
    message = GOOD | more | {"endpoint": "infer", "request_id": "a-7"}
    with place.robot() as robot:
        robot.send(packb(message))
        told: Any = unpackb(robot.recv(WAIT_S))  # type: ignore[arg-type]
    reply = httpx.post(f"{place.http}/v1/act", content=packb(message), timeout=WAIT_S).json()
    assert told == reply | {"type": "error"}
    assert told["request_id"] == "a-7"


def test_who_reads_maps_is_refused_by_a_map_though_nobody_read_his_message(
    make: Callable[..., Place],
) -> None:
    """A client that cannot read the code would not ask again."""
    place = make(limits={"key_hz": 1})
    with place.robot() as robot:
        told = [place.ask(robot) for _ in range(2)]
    assert [t.get("code") for t in told] == [None, "limit"]
    with place.robot() as robot:
        assert place.ask(robot)["code"] == "limit"


def test_a_batch_counts_as_many_requests_of_its_key(make: Callable[..., Place]) -> None:
    place = make(limits={"key_hz": 4})
    with place.robot() as robot:
        robot.send(packb({"batch": [GOOD] * 8}))
        assert len(unpackb(robot.recv(WAIT_S))["batch"]) == 8  # type: ignore[index,call-overload,arg-type]
        assert 1 < place.ask(robot)["retry_after_s"] <= 1.25


def test_what_was_refused_as_a_whole_is_counted_too(place: Place) -> None:
    httpx.post(f"{place.http}/v1/act", content=b"\xc1", timeout=WAIT_S)
    counts = httpx.get(f"{place.http}/v1/stats", timeout=WAIT_S).json()["counts"]
    assert counts == {"protocol": 1}


def test_a_robot_announces_itself_on_every_door(place: Place) -> None:
    def ask(query: str) -> httpx.Response:
        return httpx.post(f"{place.http}/v1/act?{query}", content=packb(GOOD), timeout=WAIT_S)

    fps = ONE.metadata()["fps"]
    assert ask(f"fps={fps}").status_code == 200
    wrong = ask(f"fps={fps + 1}")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "observation")
    assert "Hz" in wrong.json()["message"]


def test_who_waits_at_the_http_door_gets_an_answer_before_the_process_ends(place: Place) -> None:
    place.backend.open.clear()
    replies: list[httpx.Response] = []

    def post() -> None:
        url = f"{place.http}/v1/act"
        replies.append(httpx.post(url, content=packb(GOOD), timeout=WAIT_S))

    waiting = threading.Thread(target=post)
    waiting.start()
    until(lambda: place.backend.asked)
    closing = place.thread.start(place.endpoint.close())
    # Longer than the web server would wait by itself.
    time.sleep(1.5)
    place.backend.open.set()
    waiting.join(WAIT_S)
    assert [reply.status_code for reply in replies] == [200]
    closing.result(WAIT_S)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n"])
@pytest.mark.parametrize("asked", [False, True])
def test_who_connects_and_does_not_ask_is_hung_up_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, begun: bytes, asked: bool
) -> None:
    monkeypatch.setattr(compat, "ASKED_S", 0.3)
    with (
        place.robot() as robot,
        socket.create_connection(("127.0.0.1", place.endpoint.port)) as idle,
    ):
        idle.settimeout(WAIT_S)
        if asked:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        idle.sendall(begun)
        while idle.recv(4096):
            pass
        # A robot that says nothing stays.
        assert "actions" in place.ask(robot)


def test_an_answer_that_takes_its_time_is_not_hung_up_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "ASKED_S", 0.05)
    place.backend.open.clear()
    threading.Timer(0.5, place.backend.open.set).start()
    reply = httpx.post(f"{place.http}/v1/act", content=packb(GOOD), timeout=WAIT_S)
    assert reply.status_code == 200


def test_what_arrives_at_the_same_time_is_bounded_together(make: Callable[..., Place]) -> None:
    """By half a request each, which keep what they have sent for as long as they like."""
    place = make(limits={"max_message_mb": 0.5})
    size = 1 << 19
    head = f"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
    sockets = []
    told = b""
    for _ in range(20):
        one = socket.create_connection(("127.0.0.1", place.endpoint.port), WAIT_S)
        one.sendall(head + bytes(size - 1000))
        sockets.append(one)
    for one in sockets:
        # Those within the bound wait for the rest.
        one.settimeout(0.2)
        try:
            told += one.recv(4096)
        except TimeoutError:
            continue
    assert b"too much is being sent at once" in told
    for one in sockets:
        one.close()
    until(lambda: place.endpoint._dispatcher.uploads.bytes == 0)
    reply = httpx.post(f"{place.http}/v1/act", content=packb(GOOD), timeout=WAIT_S)
    assert reply.status_code == 200


def begin_frame(place: Place, size: int) -> socket.socket:
    """A websocket that has sent all but the end of a frame of so many bytes."""
    one = socket.create_connection(("127.0.0.1", place.endpoint.port), WAIT_S)
    head = (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    one.sendall(head.encode())
    one.recv(1 << 16)
    with contextlib.suppress(ConnectionError):
        one.sendall(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4) + bytes(size - 1000))
    return one


def test_frames_that_arrive_at_the_same_time_are_bounded_together(
    make: Callable[..., Place],
) -> None:
    place = make(limits={"max_message_mb": 0.5})
    held = place.endpoint._dispatcher.uploads
    sockets = [begin_frame(place, 1 << 19) for _ in range(24)]
    until(lambda: place.endpoint._dispatcher.sockets < 24)
    assert held.bytes <= held.most + (1 << 19)
    for one in sockets:
        one.close()
    until(lambda: held.bytes == 0)
    with place.robot() as robot:
        assert "actions" in place.ask(robot)
    assert held.bytes == 0


def test_a_frame_that_never_ends_is_hung_up_on(place: Place, monkeypatch: Any) -> None:
    monkeypatch.setattr(uploads, "ARRIVED_S", 0.2)
    one = begin_frame(place, 1 << 19)
    until(lambda: place.endpoint._dispatcher.sockets == 0)
    assert place.endpoint._dispatcher.uploads.bytes == 0
    one.close()


def test_frames_that_wait_for_their_turn_count_until_they_have_it(place: Place) -> None:
    place.backend.open.clear()
    held = place.endpoint._dispatcher.uploads
    with place.robot() as robot:
        for _ in range(4):
            robot.send(packb(GOOD))
        until(lambda: held.bytes >= 3 * len(packb(GOOD)))
        place.backend.open.set()
        for _ in range(4):
            robot.recv(WAIT_S)
        assert held.bytes == 0
        place.backend.open.clear()
        for _ in range(4):
            robot.send(packb(GOOD))
        until(lambda: held.bytes)
    until(lambda: held.bytes == 0)

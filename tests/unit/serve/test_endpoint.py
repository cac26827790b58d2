"""The doors on a real port, in front of a backend that does as it is told: clocks, hang-ups, and
the end of the process.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gwp.protocol.msgpack_numpy import packb, unpackb
from serve.config import ServeApp
from serve.desk.dispatch import Dispatcher
from serve.doors import answers, openpi
from serve.endpoint import Endpoint
from serve.loop import LoopThread
from serve.refusal import RefusedError
from tests.support.place import GOOD, STATE, WAIT_S, WHO, Backend, Place, until
from tests.unit.gwp.policy.test_contract import ONE


def test_a_reply_says_who_answered_whom_and_how_old_its_observation_was(place: Place) -> None:
    with place.robot() as robot:
        reply = place.ask(robot, request_id="a-1", observed_at=time.time() - 0.5)
        assert reply["request_id"] == "a-1"
        assert (reply["policy_id"], reply["policy_version"]) == (ONE.policy_id, "3")
        assert (reply["policy_alias"], reply["run_id"]) == ("champion", "r")
        assert 0.5 <= reply["observation_age_s"] < 5
        assert place.metadata["policy_version"] == "3"
        assert place.metadata["noise"] == "fixed"
        assert abs(place.metadata["time"] - time.time()) < WAIT_S
        assert "observation_age_s" not in place.ask(robot)
        told = place.ask(robot, request_id=7, state=STATE * np.nan)
        assert (told["type"], told["code"], told["request_id"]) == ("error", "observation", 7)


def test_a_deadline_counts_from_the_arrival(make: Callable[..., Place], monkeypatch: Any) -> None:
    """Also through the line in front of the decoders."""
    place = make(limits={"decoders": 1})
    held, entered = threading.Event(), threading.Event()
    real = place.endpoint._dispatcher._take

    def slow(*args: Any) -> Any:
        entered.set()
        held.wait(WAIT_S)
        return real(*args)

    with place.robot() as first, place.robot() as second:
        monkeypatch.setattr(place.endpoint._dispatcher, "_take", slow)
        first.send(packb(GOOD | {"endpoint": "infer"}))
        assert entered.wait(WAIT_S)
        second.send(packb(GOOD | {"endpoint": "infer", "deadline_s": 0.05}))
        time.sleep(0.1)
        held.set()
        late = unpackb(second.recv(WAIT_S))  # type: ignore[arg-type]
        assert (late["code"], "0.05 s" in late["message"]) == ("deadline", True)
        assert "actions" in unpackb(first.recv(WAIT_S))  # type: ignore[operator,arg-type]
    # It did not reach the model.
    assert len(place.backend.asked) == 1


@pytest.mark.parametrize(
    ("asked", "code"), [({"deadline_s": 0.05}, "deadline"), ({}, "unavailable")]
)
def test_what_takes_too_long_is_given_up_and_its_work_cancelled(
    make: Callable[..., Place], asked: dict[str, float], code: str
) -> None:
    place = make(limits={"request_timeout_s": 0.05 if not asked else 5})
    place.backend.open.clear()
    with place.robot() as robot:
        told = place.ask(robot, **asked)
        assert (told["code"], "0.05 s" in told["message"]) == (code, True)
        until(lambda: place.backend.given_up == 1)
        assert place.backend.allowed[0] == pytest.approx(0.05, abs=0.05)


def test_nobody_is_let_in_who_would_be_told_too_late(place: Place) -> None:
    place.backend.wait_s = 0.4
    with place.robot() as robot:
        told = place.ask(robot, deadline_s=0.3)
        assert told["code"] == "busy"
        assert 0 < told["retry_after_s"] < 0.4
        assert not place.backend.asked
        assert "actions" in place.ask(robot, deadline_s=5)


def test_who_is_refused_for_lack_of_time_is_not_decoded_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    take = Dispatcher._take

    def counted(self: Dispatcher, data: bytes, peer: Any) -> Any:
        decoded.append(data)
        return take(self, data, peer)

    monkeypatch.setattr(Dispatcher, "_take", counted)
    with place.robot() as robot:
        place.backend.wait_s = 5.0
        refused = place.ask(robot, request_id="r-1", deadline_s=0.5)
        assert (refused["code"], refused["request_id"]) == ("busy", "r-1")
        assert 0 < refused["retry_after_s"] < 5
        assert not decoded
        # With as much time as that there is hope.
        assert place.ask(robot, request_id="r-2", deadline_s=8)["request_id"] == "r-2"
        assert len(decoded) == 1


def test_a_robot_that_hangs_up_frees_its_place_on_every_door(place: Place) -> None:
    place.backend.open.clear()
    robots = [place.robot() for _ in range(3)]
    for robot in robots:
        robot.send(packb(GOOD))
    until(lambda: len(place.backend.asked) == 3)
    for robot in robots:
        robot.socket.close()
    until(lambda: place.backend.given_up == 3)
    until(lambda: place.endpoint.robots == 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{place.http}/v1/act", content=packb(GOOD), timeout=0.3)
    until(lambda: place.backend.given_up == 4)


def test_frames_that_come_early_are_answered_in_their_order(place: Place) -> None:
    with place.robot() as robot:
        for number in range(30):
            robot.send(packb(GOOD | {"endpoint": "infer", "request_id": number}))
        came = [unpackb(robot.recv(WAIT_S))["request_id"] for _ in range(30)]  # type: ignore[index,call-overload,arg-type]
        assert came == list(range(30))


def test_a_pin_holds_or_is_told(place: Place) -> None:
    with place.robot() as robot:
        assert "actions" in place.ask(robot, policy=ONE.policy_id)
        told = place.ask(robot, policy="0123456789abcdef")
        assert told["code"] == "gone"
        assert ONE.policy_id in told["message"]


def test_old_and_future_observations_are_refused_or_flagged(make: Callable[..., Place]) -> None:
    limits = {"max_age_s": 5, "max_ahead_s": 1}
    strict, mild = make(limits=limits), make(limits=limits | {"on_stale": "flag"})
    with strict.robot() as robot, mild.robot() as other:
        for offset, flag in ((-6, "stale"), (3, "future")):
            assert strict.ask(robot, observed_at=time.time() + offset)["code"] == "stale"
            assert mild.ask(other, observed_at=time.time() + offset)["flags"] == [flag]
        # What the robot says itself is no matter of taste.
        for place, one in ((strict, robot), (mild, other)):
            told = place.ask(one, observed_at=time.time() - 2, max_age_s=1)
            assert (told["code"], "max_age_s is 1" in told["message"]) == ("stale", True)
        assert mild.ask(other, observed_at=time.time() - 2)["flags"] == []


def test_an_observation_that_grows_old_while_it_waits_is_not_answered(place: Place) -> None:
    place.backend.open.clear()
    with place.robot() as robot:
        robot.send(
            packb(GOOD | {"endpoint": "infer", "observed_at": time.time(), "max_age_s": 0.2})
        )
        until(lambda: place.backend.asked)
        time.sleep(0.25)
        place.backend.open.set()
        assert unpackb(robot.recv(WAIT_S))["code"] == "stale"  # type: ignore[index,call-overload,arg-type]


def test_the_endpoint_s_clock_can_be_asked(place: Place) -> None:
    with place.robot() as robot:
        begin = time.time()
        robot.send(packb({"endpoint": "clock"}))
        told = unpackb(robot.recv(WAIT_S))  # type: ignore[arg-type]
        assert begin <= told["time"] <= time.time()  # type: ignore[call-overload,index]


def test_noise_of_a_request_without_a_seed(make: Callable[..., Place]) -> None:
    fixed, fresh = make(), make(noise="fresh")
    for place in (fixed, fresh):
        with place.robot() as robot:
            for _ in range(4):
                place.ask(robot)
            place.ask(robot, seed=5)
    seeds = [[each.observation.seed for each in p.backend.asked] for p in (fixed, fresh)]
    assert seeds[0] == [0, 0, 0, 0, 5]
    assert len(set(seeds[1][:4])) == 4
    assert seeds[1][4] == 5


def test_nobody_asks_more_often_than_allowed(make: Callable[..., Place]) -> None:
    place = make(limits={"robot_hz": 2})
    with place.robot() as robot:
        told = [place.ask(robot, robot="r1") for _ in range(3)]
        assert [t.get("code") for t in told] == [None, None, "limit"]
        assert 0 < told[2]["retry_after_s"] <= 0.5
        assert "actions" in place.ask(robot, robot="r2")


def test_health_and_readiness(place: Place) -> None:
    def status(path: str) -> int:
        return httpx.get(place.http + path, timeout=WAIT_S).status_code

    assert (status("/healthz"), status("/readyz")) == (200, 200)
    place.backend.ready = False
    assert (status("/healthz"), status("/readyz")) == (200, 503)


def test_too_many_connections_are_told_at_the_handshake(make: Callable[..., Place]) -> None:
    place = make(limits={"connections": 2})
    first, second = place.robot(), place.robot()
    with pytest.raises(InvalidStatus) as caught:
        place.robot()
    assert caught.value.response.status_code == 503
    assert caught.value.response.headers["Retry-After"] == "1"
    first.close()
    until(lambda: place.endpoint.robots == 1)
    place.robot().close()
    second.close()


def test_who_waits_for_an_answer_gets_it_before_the_process_ends(place: Place) -> None:
    place.backend.open.clear()
    waiting, idle = place.robot(), place.robot()
    waiting.send(packb(GOOD))
    until(lambda: place.backend.asked)
    closing = place.thread.start(place.endpoint.close())
    with pytest.raises(ConnectionClosed) as caught:
        idle.recv(WAIT_S)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == openpi.RESTART
    with pytest.raises(OSError, match="refused"):
        place.robot(open_timeout=2)
    place.backend.open.set()
    assert "actions" in unpackb(waiting.recv(WAIT_S))  # type: ignore[operator,arg-type]
    with pytest.raises(ConnectionClosed):
        waiting.recv(WAIT_S)
    closing.result(WAIT_S)
    assert not place.endpoint.alive


def test_processes_of_one_machine_share_a_port(place: Place) -> None:
    """And when one of them is gone, the others are found behind it."""
    thread = LoopThread("second")
    app = ServeApp(policy="p", port=place.endpoint.port)
    second = Endpoint(Backend(), ONE, WHO, app, thread)
    place.thread.run(place.endpoint.close(), WAIT_S)
    robots = [place_robot(second.port) for _ in range(5)]
    assert second.robots == 5
    for robot in robots:
        robot.close()
    thread.run(second.close(), WAIT_S)
    thread.close()


def place_robot(port: int) -> ClientConnection:
    robot = connect(f"ws://127.0.0.1:{port}/", proxy=None)
    robot.recv(WAIT_S)
    return robot


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"\xc1", 400, "protocol"),
        (packb([1]), 400, "protocol"),
        (packb({"prompt": "go"}), 422, "observation"),
        (packb({"endpoint": "kill"}), 400, "protocol"),
        (bytes(17 << 20), 400, "protocol"),
        (packb({"endpoint": "infer", "batch": []}), 400, "protocol"),
    ],
)
def test_the_http_door_tells_what_is_wrong(
    place: Place, body: bytes, status: int, code: str
) -> None:
    reply = httpx.post(f"{place.http}/v1/act", content=body, timeout=WAIT_S)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_the_http_door_says_when_to_come_back(place: Place) -> None:
    place.backend.refusal = RefusedError("busy", "full", 1.2)
    reply = httpx.post(f"{place.http}/v1/act", content=packb(GOOD), timeout=WAIT_S)
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "2")
    assert reply.json()["retry_after_s"] == 1.2


def test_what_was_answered_is_counted(place: Place) -> None:
    with place.robot() as robot:
        place.ask(robot)
        place.ask(robot, state=STATE * np.nan)
        told = httpx.get(f"{place.http}/v1/stats", timeout=WAIT_S).json()
    assert told["counts"] == {"ok": 1, "observation": 1}
    assert told["robots"] == 1


def test_a_handshake_that_fails_in_the_gateway_is_answered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(openpi, "announced", broken)
    with pytest.raises(InvalidStatus) as caught:
        place.robot()
    response = caught.value.response
    assert (response.status_code, response.body) == (500, answers.INTERNAL.encode())

"""The example robots, whole: their loop, the client and a peer that speaks our wire, on loopback."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gwp.client import Client, ClientError
from gwp.client.examples import bimanual, g1
from gwp.client.examples.bimanual import Bimanual
from gwp.client.examples.fake_arms import FakeArms
from gwp.client.examples.fake_unitree import FakeG1, FakeSdk
from gwp.client.examples.g1 import G1
from gwp.client.examples.guard import Guard
from gwp.client.examples.loop import Robot, run
from tests.support.paths import ROOT
from tests.support.scripted import FIELDS
from tests.unit.gwp.client.test_client import Peer, url

CHUNK, REPLAN = 30, 10
GOAL = 0.5


def metadata(robot: Robot) -> dict[str, Any]:
    """What our endpoint declares of a policy for this robot."""
    said = dict(robot.description)
    cameras = said["cameras"]
    arm = said | {
        "cameras": [f"observation.images.{name}" for name in cameras],
        "chunk": CHUNK,
        "replan": REPLAN,
        "recommend": {"delay": 4, "blend": 3},
    }
    about = {
        "policy_id": "abc",
        "dialects": ["vllm-omni"],
        "fields": [*FIELDS, "prefix_actions", "delay"],
        "trained_delay": 8,
    }
    return about | {"embodiments": {"arms": arm}, "embodiment": "arms"} | arm


class Policy:
    """Walks from where the robot is towards a goal at 0.3 rad/s, as committed first."""

    def __init__(self, fps: float) -> None:
        self.step = 0.3 / fps
        self.requests: list[dict[str, Any]] = []
        self.down = threading.Event()

    def __call__(self, request: dict[str, Any]) -> Any:
        if self.down.is_set():
            return {"type": "error", "code": "unavailable", "message": "no replica"} | numbered(
                request
            )
        self.requests.append(request)
        rows = np.empty((CHUNK, len(request["state"])), np.float32)
        last = np.asarray(request.get("executed_action", request["state"]), np.float32)
        prefix = request.get("prefix_actions")
        for i in range(CHUNK):
            if prefix is not None and i < request["delay"]:
                last = prefix[i]
            else:
                last = last + np.clip(GOAL - last, -self.step, self.step)
            rows[i] = last
        return {"actions": rows, "policy_id": "abc"} | numbered(request)


def numbered(request: dict[str, Any]) -> dict[str, Any]:
    return {"request_id": request["request_id"]}


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    peer.start()
    yield peer
    peer.stop()


def served(peer: Peer, robot: Robot) -> Policy:
    policy = Policy(robot.description["fps"])
    peer.metadata = metadata(robot)
    peer.answer = policy
    return policy


def test_two_arms_of_fourteen_joints_reach_where_the_policy_leads_them(peer: Peer) -> None:
    arms = FakeArms(len(bimanual.NAMES), bimanual.CAMERAS)
    robot = Bimanual(arms)
    policy = served(peer, robot)
    with Client(url(peer), expect=robot.description) as client:
        report = run(robot, client, "fold the towel", 3.0)
    assert len(bimanual.NAMES) == 14
    assert report.policies == ("abc",)
    assert report.steps == 150
    # Up to where 0.3 rad/s lead in that time, all of it by the policy's rows.
    assert arms.positions() == pytest.approx(np.full(14, GOAL), abs=0.02)
    commands = np.array(arms.commands)
    assert np.abs(np.diff(commands, axis=0)).max() <= np.max(robot.guard.step) + 1e-6
    # Each request says whose episode it is, what was executed, and what is committed.
    assert len({request["episode"] for request in policy.requests}) == 1
    later = policy.requests[2:]
    assert all(request["policy"] == "abc" for request in later)
    assert all(request["prefix_actions"].shape[1] == 14 for request in later)
    assert {request["delay"] for request in later} <= {1, 2, 3, 4}
    assert set(policy.requests[0]["images"]) == set(bimanual.CAMERAS)


def test_arms_hold_while_no_replica_answers_and_go_on_when_one_does(peer: Peer) -> None:
    arms = FakeArms(len(bimanual.NAMES), bimanual.CAMERAS)
    robot = Bimanual(arms)
    policy = served(peer, robot)
    timers = [threading.Timer(0.6, policy.down.set), threading.Timer(1.6, policy.down.clear)]
    with Client(url(peer), expect=robot.description, timeout_s=0.3) as client:
        for timer in timers:
            timer.start()
        report = run(robot, client, "fold the towel", 4.0)
    assert report.held > 0
    assert report.failed > 0
    assert arms.positions() == pytest.approx(np.full(14, GOAL), abs=0.02)
    commands = np.array(arms.commands)
    assert np.abs(np.diff(commands, axis=0)).max() <= np.max(robot.guard.step) + 1e-6


def test_the_arms_of_a_g1_are_taken_over_led_and_given_back(peer: Peer) -> None:
    real = FakeG1()
    with G1(FakeSdk(real), "lo", g1.grey, ramp_s=0.2) as robot:
        served(peer, robot)
        with Client(url(peer), expect=robot.description) as client:
            report = run(robot, client, "wave", 3.0)
    assert report.policies == ("abc",)
    joints = np.array(real.positions)[:, list(g1.MOTORS)]
    # The guard lets no wrist or elbow through where the goal is out of reach; here none is.
    assert joints[-1] == pytest.approx(np.full(14, GOAL), abs=0.03)
    assert np.abs(np.diff(joints, axis=0)).max() <= 2.0 / 100 + 1e-6
    # Softly: the weight rises and falls in steps.
    weights = np.array(real.weights)
    assert weights.max() == pytest.approx(1.0)
    assert weights[-1] == 0
    assert np.abs(np.diff(weights)).max() < 0.2
    # Legs and waist are not ours.
    legs = np.array(real.positions)[:, :15]
    assert not legs.any()


def test_a_g1_without_a_state_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g1, "_STATE_S", 0.05)
    real = FakeG1()
    monkeypatch.setattr(real, "publish", lambda: None)
    with pytest.raises(RuntimeError, match="switched on"):
        G1(FakeSdk(real), "lo", g1.grey)


def test_a_robot_with_other_joints_is_refused_before_it_moves(peer: Peer) -> None:
    arms = FakeArms(len(bimanual.NAMES), bimanual.CAMERAS)
    served(peer, Bimanual(arms))
    robot = G1(FakeSdk(FakeG1()), "lo", g1.grey)
    with pytest.raises(ClientError) as caught:
        Client(url(peer), expect=robot.description)
    assert caught.value.code == "handshake"
    assert not arms.commands


@pytest.mark.parametrize("example", ["bimanual", "g1"])
def test_examples_run_from_the_shell(peer: Peer, example: str) -> None:
    robots: dict[str, Robot] = {
        "bimanual": Bimanual(FakeArms(len(bimanual.NAMES), bimanual.CAMERAS)),
        "g1": G1(FakeSdk(FakeG1()), "lo", g1.grey),
    }
    served(peer, robots[example])
    command = [sys.executable, "-m", f"gwp.client.examples.{example}", url(peer), "--seconds", "1"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "policies=('abc',)" in done.stdout
    # A robot of another kind is told in one line.
    other = {"bimanual": "g1", "g1": "bimanual"}[example]
    peer.metadata = metadata(robots[other])
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_the_guard_lets_nothing_through_that_the_robot_may_not_do() -> None:
    guard = Guard(np.array([-1, -1.0]), np.array([1, 1.0]), np.array([0.1, 5.0]))
    last = np.zeros(2, np.float32)
    assert guard(np.array([0.5, 3.0]), last).tolist() == pytest.approx([0.1, 1.0])
    assert guard.stopped == 1
    for wrong in (np.array([np.nan, 0]), np.zeros(3), np.array([np.inf, 0])):
        with pytest.raises(ValueError, match="no action"):
            guard(wrong, last)

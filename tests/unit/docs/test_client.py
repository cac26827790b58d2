"""The robot client of docs/serving.md as it stands, against the real door and engine."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gwp.client import ActionChunk, Observation
from gwp.policy.admission.guard import Guard
from gwp.policy.batching.engine import Engine
from gwp.policy.composed import ComposedObservation
from gwp.policy.policy import Policy
from serve.config import ServeApp
from serve.endpoint import Endpoint
from serve.guarded import GuardedEngine
from serve.identity import Identity
from serve.loop import LoopThread
from serve.refusal import RefusedError
from serve.warmup import observation_for
from tests.support.paths import ROOT
from tests.support.tiny import make_tiny_bundle

WAIT_S = 20
STEPS = 40
SLOW, LOST = 3, 5
"""Requests of the robot that are answered too late, and whose endpoint goes away."""
MY_ROBOT = f"""
import json, sys
from pathlib import Path
import numpy as np

class Robot:
    fps, action_names = 20.0, ["x", "y", "z", "grip"]

    def __init__(self):
        self.sent, self.held, self.at = [], 0, np.zeros(4, np.float32)

    def picture(self):
        return np.full((48, 64, 3), 90, np.uint8)

    def state(self):
        return self.at

    def send(self, action):
        self.sent.append(action.tolist())
        self.at = action

    def hold(self):
        self.held += 1

    def running(self):
        told = {{"sent": self.sent, "held": self.held}}
        Path(__file__).with_name("told.json").write_text(json.dumps(told))
        return len(self.sent) < {STEPS}
"""


class Fleet:
    """The endpoint in one process: real doors and engine, no Ray; it misbehaves on demand."""

    def __init__(self, folder: Path) -> None:
        self.policy = Policy.load(folder, guard=Guard())
        self.engine = Engine(self.policy)
        robots = self.policy.contract.embodiments.values()
        self.engine.warm_up([observation_for(robot) for robot in robots])
        self._guarded = GuardedEngine(self.engine, stuck_after_s=60)
        self.requests = self.restarts = 0
        config = ServeApp.model_validate({"policy": str(folder), "limits": {"drain_s": 0.1}})
        self._config = config.model_copy(update={"port": 0})
        self._restarting: threading.Thread | None = None
        self._open()

    def _open(self) -> None:
        self._loop = LoopThread("fleet")
        who = Identity(policy_id=self.policy.id)
        self._endpoint = Endpoint(self, self.policy.contract, who, self._config, self._loop)
        self.port = self._endpoint.port

    def _restart(self) -> None:
        self._shut()
        # Robots look for it where it was.
        self._config = self._config.model_copy(update={"port": self.port})
        self._open()
        self.restarts += 1

    def _shut(self) -> None:
        self._loop.run(self._endpoint.close(), WAIT_S)
        self._loop.close()

    @property
    def ready(self) -> bool:
        return self._guarded.ready

    @property
    def wait_s(self) -> float:
        return self._guarded.wait_s

    @property
    def batch(self) -> float:
        return self._guarded.batch

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        self.requests += 1
        if self.requests == SLOW:
            await asyncio.Event().wait()
        if self.requests == LOST:
            self._restarting = threading.Thread(target=self._restart)
            self._restarting.start()
            raise RefusedError("unavailable", "going away")
        return await self._guarded.act(given, allowed_s)

    def close(self) -> None:
        if self._restarting:
            self._restarting.join(WAIT_S)
        self._shut()
        self.engine.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(make_tiny_bundle(tmp_path / "bundle"))
    yield fleet
    fleet.close()


def the_client() -> str:
    page = (ROOT / "docs" / "serving.md").read_text()
    (block,) = re.findall(r"^```python\n(import sys\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(block)


def test_the_client_of_the_docs_lasts_through_a_bad_day(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "my_robot.py").write_text(MY_ROBOT)
    (tmp_path / "robot.py").write_text(the_client())
    done = subprocess.run(
        [sys.executable, str(tmp_path / "robot.py"), f"ws://127.0.0.1:{fleet.port}"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["sent"]) == STEPS
    # Some of what it did are the actions that the policy gives for what the robot saw first.
    picture = np.full((48, 64, 3), 90, np.uint8)
    seen = Observation({"top": picture}, np.zeros(4, np.float32), "open the door")
    first = fleet.policy.act(seen).actions
    # Which of them depends on when the chunk came; before that it held still, and saw the same.
    assert any(np.allclose(sent, row, atol=1e-4) for sent in told["sent"] for row in first)
    # The late answer moved nothing, the robot held, and the endpoint that went away was found again.
    (counts,) = re.findall(r"late \d+, held (\d+), failed (\d+)", done.stderr)
    assert int(counts[0]) >= 1
    assert int(counts[1]) >= 1
    assert "deadline" in done.stderr
    assert fleet.restarts == 1
    assert fleet.requests > LOST


def test_the_client_of_the_docs_refuses_to_be_another_robot(fleet: Fleet, tmp_path: Path) -> None:
    another = MY_ROBOT.replace("fps, action_names = 20.0", "fps, action_names = 30.0")
    (tmp_path / "my_robot.py").write_text(another)
    (tmp_path / "robot.py").write_text(the_client())
    done = subprocess.run(
        [sys.executable, str(tmp_path / "robot.py"), f"ws://127.0.0.1:{fleet.port}"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the robot runs at 30 Hz, the policy at 20 Hz" in done.stderr
    assert not (tmp_path / "told.json").exists()

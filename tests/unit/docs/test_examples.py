"""The example robots against the real door and engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.client import Client
from gwp.client.examples import bimanual, g1
from gwp.client.examples.bimanual import Bimanual
from gwp.client.examples.fake_arms import FakeArms
from gwp.client.examples.fake_unitree import FakeG1, FakeSdk
from gwp.client.examples.g1 import G1
from gwp.client.examples.loop import Robot, run
from gwp.data.robot.embodiment import Embodiment, Limits
from tests.support.tiny import make_tiny_bundle
from tests.unit.docs.test_client import Fleet

_TRIES = 15


def embodiment(robot: Robot) -> Embodiment:
    said: dict[str, Any] = dict(robot.description)
    names = tuple(said["action_names"])
    (camera, *_) = said["cameras"]
    return Embodiment(
        name="arms",
        fps=said["fps"],
        state_names=names,
        action_names=names,
        action_units=("rad",) * len(names),
        delta_mask=(True,) * len(names),
        cameras={"front": camera},
        limits=Limits(
            lower=(-1.0,) * len(names), upper=(1.0,) * len(names), velocity=(0.05,) * len(names)
        ),
        chunk=8,
        replan=4,
    )


@pytest.mark.parametrize("kind", ["bimanual", "g1"])
def test_an_example_runs_on_the_real_endpoint(kind: str, tmp_path: Path) -> None:
    arms, real = FakeArms(len(bimanual.NAMES), bimanual.CAMERAS), FakeG1()
    robots: dict[str, Robot] = {
        "bimanual": Bimanual(arms),
        "g1": G1(FakeSdk(real), "lo", g1.grey, ramp_s=0.2),
    }
    robot = robots[kind]
    folder = make_tiny_bundle(tmp_path / "bundle", arm=embodiment(robot), action_channels=14)
    fleet = Fleet(folder)
    try:
        with Client(f"ws://127.0.0.1:{fleet.port}", expect=robot.description) as client:
            # A machine that does much else answers late at first, and the arms hold still.
            for _ in range(_TRIES):
                report = run(robot, client, "go", 2.0, wait_s=1.0)
                if report.seams:
                    break
            metadata = client.metadata
    finally:
        fleet.close()
    assert report.policies == (metadata["policy_id"],)
    assert report.seams > 0
    if kind == "bimanual":
        commands = np.array(arms.commands)
        assert np.abs(commands).max() <= 1 + 1e-5
        assert np.abs(np.diff(commands, axis=0)).max() > 0

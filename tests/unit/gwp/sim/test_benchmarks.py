"""What is known of a benchmark before its simulator is made."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from gwp.data.robot.embodiment import Embodiment
from gwp.errors import GwpError
from gwp.sim.benchmarks import BENCHMARKS, DEFAULT, find
from gwp.sim.interface import UNSHIFTED
from tests.unit.test_layering import ROOT


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_agrees_with_itself(name: str) -> None:
    benchmark = find(name)
    robot = benchmark.embodiment
    assert benchmark.name == name
    assert len(benchmark.held) == len(robot.action_names)
    assert robot.limits is not None
    # Standing still is an action that the robot accepts.
    assert np.all(np.array(robot.limits.lower) <= 0)
    assert np.all(np.array(robot.limits.upper) >= 0)
    assert all(benchmark.tasks.values())
    assert 1 <= benchmark.steps <= benchmark.max_steps
    assert benchmark.shifts[0] == UNSHIFTED
    assert benchmark.cameras


def test_robots_of_one_name_are_one_robot() -> None:
    robots: dict[str, Embodiment] = {}
    for name in BENCHMARKS:
        robot = find(name).embodiment
        assert robots.setdefault(robot.name, robot) == robot


@pytest.mark.parametrize("name", BENCHMARKS)
def test_processes_of_their_own_can_be_told_of_it(name: str) -> None:
    assert pickle.loads(pickle.dumps(find(name))) == find(name)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_finding_one_imports_no_simulator(name: str) -> None:
    simulators = {"metaworld", "mujoco", "ogbench", "dm_control", "robosuite", "libero"}
    program = (
        f"import sys; from gwp.sim.benchmarks import find; find({name!r}); "
        f"sys.exit(bool({simulators!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_what_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(GwpError, match="benchmark juggle: choose from metaworld"):
        find("juggle")
    benchmark = find(DEFAULT)
    task = next(iter(benchmark.tasks))
    benchmark.check([task])
    with pytest.raises(GwpError, match="tasks juggle: choose from"):
        benchmark.check([task, "juggle"])
    with pytest.raises(GwpError, match=r"tasks \(none\)"):
        benchmark.check([])
    with pytest.raises(GwpError, match="name each task once"):
        benchmark.check([task, task])
    with pytest.raises(GwpError, match="shift sideways: metaworld has none"):
        benchmark.check([task], "sideways")

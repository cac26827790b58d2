"""A machine is lost and none comes in its place for a while: the run waits, says so, and can be
ended meanwhile.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters.mini import MiniCluster
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.chaos.test_elastic import two_nodes  # noqa: F401  a fixture
from tests.chaos.test_endings import sets, status  # noqa: F401  a fixture
from tests.support.driver import Driver, driver

# Ray Train gives up after six waits of so many seconds.
ENV = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8"}
WAITING = "no machine has room for all 2 workers: waiting"


@pytest.fixture
def waiting(
    two_nodes: MiniCluster, sets: list[str], tmp_path: Path
) -> Iterator[tuple[MiniCluster, Driver]]:
    """A run of two workers, each with a machine of its own, that has a checkpoint."""
    mini = two_nodes
    run = f"{mini.bucket}/endings/waiting"
    own = [*sets, "run.name=waiting", "run.steps=3000", "run.checkpoint_every=20"]
    own += ["cluster.cpus_per_worker=2", "cluster.max_failures=2"]
    with driver(tmp_path, run, own, os.environ | ENV) as found:
        found.reports(3)
        found.until(lambda: find_committed(run))
        yield mini, found


@pytest.mark.timeout(900)
def test_a_run_waits_for_a_machine_and_is_ended_while_it_waits(
    waiting: tuple[MiniCluster, Driver],
) -> None:
    mini, found = waiting
    run = found.run

    def told() -> int:
        return len([line for line in found.lines if WAITING in line])

    mini.kill_node("train")
    found.until(lambda: told() == 1, 200)
    mini.add_node("train")
    added = time.monotonic()

    def goes_on() -> bool:
        steps, reports = resumptions(run), worker_progress(run)
        return bool(steps and reports) and reports[0]["step"] > steps[-1]["step"]

    found.until(goes_on, 200)
    print(f"next step {time.monotonic() - added:.1f} s after there was a machine again")
    mini.kill_node("train")
    found.until(lambda: told() == 2, 200)
    found.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert found.wait(60) == 130
    print(f"ended {time.monotonic() - begin:.1f} s after the signal")
    said = "ended at once; the same command goes on from the last checkpoint"
    assert found.lines[-1] == f"gwp: interrupted: {said}"
    assert status(run) == ("KILLED", said)

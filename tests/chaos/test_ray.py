"""The controller of Ray Train, which a run needs beside its workers, is killed: the run goes on."""

import time
from pathlib import Path

import psutil
import pytest

from clusters.mini import MiniCluster
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.chaos.test_endings import sets  # noqa: F401  a fixture
from tests.support.driver import driver


def processes(word: str) -> list[psutil.Process]:
    """Those of the mini-cluster, which are children of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            # It has just gone.
            continue
    return found


@pytest.mark.timeout(600)
def test_a_controller_that_is_killed_ends_no_run(
    mini: MiniCluster,
    sets: list[str],
    tmp_path: Path,
) -> None:
    run = f"{mini.bucket}/endings/controller"
    own = [*sets, "run.name=controller", "run.steps=300", "run.checkpoint_every=20"]
    with driver(tmp_path, run, own) as found:
        first = found.reports(3)[0]["start"]
        found.until(lambda: find_committed(run))
        (process,) = processes("ray::TrainController")
        process.kill()
        killed = time.monotonic()

        def goes_on() -> bool:
            reports = [r for r in worker_progress(run) if r["start"] != first]
            steps = [event["step"] for event in resumptions(run)]
            return bool(reports and steps) and reports[0]["step"] > steps[-1]

        found.until(goes_on, 240)
        print(f"next step {time.monotonic() - killed:.1f} s after its kill")
        assert [line for line in found.lines if "the workers start again" in line]
        assert found.wait(240) == 0, found.lines[-20:]
        # Nothing of what Ray says of it is among the results.
        assert found.result["steps"] == 300
    # From a checkpoint, once.
    (event,) = resumptions(run)
    assert event["step"] > 0

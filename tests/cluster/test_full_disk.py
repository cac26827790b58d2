"""A disk that is full ends a run with one line."""

import os
from pathlib import Path

import pytest

from pipelines.training.checkpoint.checkpoints import find_committed
from tests.cluster.test_newcomer import SETS
from tests.support.disks import small_disk
from tests.support.driver import driver
from tests.support.sets import write_v30


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_disk_without_room_for_a_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    write_v30(tmp_path / "data" / "arm")
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    # A checkpoint has some 50 MB.
    with small_disk(tmp_path / "scratch", 20) as scratch:
        # Ray's own files stay where they are.
        env |= {"TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"}
        run = tmp_path / "runs" / "train" / "policy"
        with driver(tmp_path, str(run), [*SETS, "run.steps=4"], env) as found:
            assert found.wait(300) == 2, found.lines[-20:]
        (told,) = [line for line in found.lines if line.startswith("gwp: error")]
        assert told.startswith(f"gwp: error: {scratch}/")
        assert "no room for a checkpoint" in told
        assert " were free; free some, or let TMPDIR name a larger disk, and start the same" in told
        assert found.lines[-1] == told
        assert not find_committed(str(run))

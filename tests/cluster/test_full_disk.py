"""A disk that is full ends a run with one line."""

import os
from pathlib import Path

import pytest

from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions
from tests.cluster.test_newcomer import SETS
from tests.support.disks import grow, small_disk
from tests.support.driver import driver
from tests.support.sets import write_v30


def own_environment() -> dict[str, str]:
    """Without a cluster or a tracking server of others."""
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    return {name: value for name, value in os.environ.items() if name not in foreign}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_disk_without_room_for_a_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    write_v30(tmp_path / "data" / "arm")
    env = own_environment()
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


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_run_folder_without_room_is_told_in_one_line_and_the_run_goes_on_with_more(
    tmp_path: Path,
) -> None:
    """It holds one checkpoint and no second; whoever frees nothing is told the same again."""
    write_v30(tmp_path / "data" / "arm")
    with small_disk(tmp_path / "small", 80) as small:
        run = str(small / "policy")
        own = [*SETS, f"run.storage={small}", "run.steps=6", "run.checkpoint_every=2"]
        for _ in range(2):
            with driver(tmp_path, run, own, own_environment()) as found:
                assert found.wait(200) == 2, found.lines[-20:]
            (told,) = [line for line in found.lines if line.startswith("gwp: error")]
            # That folder, or the one in it that was there already.
            assert told.startswith(f"gwp: error: {run}/checkpoints")
            assert ": no room for a worker's part of a checkpoint, which takes " in told
            assert "; free some, or lower run.keep, and start the same command again" in told
            assert found.lines[-1] == told
            assert [manifest.step for _, manifest in find_committed(run)] == [2]
        grow(small, 400)
        with driver(tmp_path, run, own, own_environment()) as found:
            assert found.wait(200) == 0, found.lines[-20:]
            assert found.result["steps"] == 6
        # Notes of the second start may have found no room.
        assert resumptions(run)[-1]["step"] == 2

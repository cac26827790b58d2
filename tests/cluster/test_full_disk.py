"""A disk that is full ends a run with one line; with room, the same command goes on."""

import os
from pathlib import Path

import pytest

from pipelines.training.checkpoint.checkpoints import find_committed
from tests.cluster.test_newcomer import SETS
from tests.support.disks import enlarge, small_disk
from tests.support.driver import driver
from tests.support.sets import write_v30


@pytest.mark.timeout(900)
def test_a_full_disk_is_told_in_one_line_and_nothing_torn_is_in_the_way(tmp_path: Path) -> None:
    write_v30(tmp_path / "data" / "arm")
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    with (
        # Of checkpoints of some 50 MB.
        small_disk(tmp_path / "scratch", 20) as scratch,
        small_disk(tmp_path / "store", 34) as store,
    ):
        # Ray's own files stay where they are.
        env |= {"TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"}
        sets = [*SETS, "run.steps=4", f"run.storage={store}", "run.keep=1"]
        run = store / "policy"

        def stopped(words: str) -> None:
            with driver(tmp_path, str(run), sets, env) as found:
                assert found.wait(270) == 2, found.lines[-20:]
            told = [line for line in found.lines if line.startswith("gwp: error")]
            assert len(told) == 1
            assert words in told[0]
            assert " were free; free some, or " in told[0]
            assert found.lines[-1] == told[0]
            assert not find_committed(str(run))

        stopped(f"gwp: error: {scratch}/")
        assert not list(scratch.glob("gwp-scratch-*/files/*"))
        enlarge(scratch, 400)
        stopped(f"gwp: error: {run}")
        enlarge(store, 400)
        with driver(tmp_path, str(run), sets, env) as found:
            assert found.wait(270) == 0, found.lines[-20:]
        assert [manifest.step for _, manifest in find_committed(str(run))] == [4]
        # One is kept, and what was torn is gone.
        assert len(list((run / "checkpoints").iterdir())) == 1

"""Memory that runs out for real ends a run with one line, after as many starts as it may have."""

import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.test_full_disk import own_environment
from tests.cluster.test_newcomer import SETS
from tests.support.driver import driver
from tests.support.sets import write_v30

# Bytes beside what is in use before. Ray, two workers that have imported everything and their
# data take about as much; pictures of 512 pixels take some more.
_ROOM = 3 << 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_for_which_memory_is_too_small_are_started_so_often_and_told(
    tmp_path: Path,
) -> None:
    """Ray's own watch over memory ends what is largest and youngest, its own processes too."""
    write_v30(tmp_path / "data" / "arm")
    memory = psutil.virtual_memory()
    most = (memory.total - memory.available + _ROOM) / memory.total
    if most > 0.9:
        pytest.skip("this machine has no memory to spare")
    env = own_environment() | {
        "RAY_memory_usage_threshold": f"{most:.4f}",
        "RAY_memory_monitor_refresh_ms": "200",
    }
    own = [
        *SETS,
        "engine.global_batch=16",
        "data.canvas={layout: single, width: 512, height: 512}",
        "run.steps=1000",
        "cluster.max_failures=1",
    ]
    begin = time.monotonic()
    with driver(tmp_path, str(tmp_path / "runs" / "train" / "policy"), own, env) as found:
        assert found.wait(400) == 2, found.lines[-20:]
    print(f"two starts took {time.monotonic() - begin:.0f} s")
    told = found.lines[-1]
    assert told.startswith("gwp: error: the workers failed at each of 2 starts"), found.lines[-20:]
    assert "memory ran out on" in told
    assert "lower engine.micro_batch" in told
    assert "the same command goes on from the last checkpoint" in told
    assert not [line for line in found.lines if line.startswith("Traceback")]
    assert len([line for line in found.lines if line.startswith("gwp: error")]) == 1

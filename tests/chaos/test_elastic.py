"""Machines leave and come while a stage trains: it goes on with as many workers as there is room
for, and is the run that it would have been.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from clusters.mini import MiniCluster
from gwp import storage
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.runs import metric_history
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.stop import SAVE_S
from pipelines.training.control.watch import resumptions, worker_progress
from pipelines.training.train import StageResult, train
from tests.support.dot import EVERY, STEPS, job
from tests.support.servers import silent

# Of storage; one call waits for half a minute.
AWAY_S = 50.0
SETS = ("run.record_samples=true",)
# A node of the pool has two CPUs, so one worker each.
ELASTIC = ("cluster.workers=[1, 2]", "cluster.cpus_per_worker=2", "cluster.resize_every_s=2")


class Training:
    """A stage that trains in a thread: nodes have to be driven from the main one."""

    def __init__(self, found: TrainJob) -> None:
        self.run = run_uri(found)
        self._found = found
        self._result: StageResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        try:
            self._result = train(self._found)
        except BaseException as error:  # noqa: BLE001  raised by whoever waits
            self._error = error

    def until(self, happened: Callable[[], Any], timeout_s: float = 240) -> Any:
        """What `happened` returns, as soon as that is something."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = happened()
            if found:
                return found
            if self._error:
                raise self._error
            assert self._thread.is_alive(), "the run is over already"
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s:g} s: {resumptions(self.run)}")

    def step_of(self, attempt: int) -> int:
        """How far an attempt is; 0 before its first step."""
        reports = [r for r in worker_progress(self.run) if r["attempt"] == attempt]
        return min((r["step"] for r in reports), default=0)

    def result(self) -> StageResult:
        self._thread.join(timeout=400)
        if self._error:
            raise self._error
        assert self._result is not None, "it still runs"
        return self._result


@pytest.fixture
def two_nodes(mini: MiniCluster) -> Iterator[MiniCluster]:
    """A second node to train on, which is gone again behind the test, however it ended."""
    before = len(mini.node_ids("train"))
    mini.add_node("train")
    yield mini
    while len(mini.node_ids("train")) > before:
        mini.kill_node("train")
    while len(mini.node_ids("train")) < before:
        mini.add_node("train")


def consumed(run: str) -> dict[int, list[int]]:
    """Attempt -> positions of the plan that its workers took, in order."""
    taken: dict[int, list[int]] = {}
    for name in storage.list_files(f"{run}/consumed"):
        attempt = int(name.split("/")[0].removeprefix("a"))
        some = json.loads(storage.read_bytes(f"{run}/consumed/{name}"))
        taken.setdefault(attempt, []).extend(sample["position"] for sample in some)
    return {attempt: sorted(taken[attempt]) for attempt in sorted(taken)}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_goes_from_two_workers_to_one_to_two(
    two_nodes: MiniCluster,
    recordings: str,
    calm: tuple[StageResult, Any],
    stage: int,
) -> None:
    """The run that nothing happened to is one of ZeRO 2, whatever the stage of this one."""
    mini = two_nodes
    own = (f"engine.zero_stage={stage}",)
    training = Training(job(mini, recordings, f"elastic-{stage}", *SETS, *ELASTIC, *own))
    run = training.run
    training.until(lambda: training.step_of(1) >= EVERY + 3 and find_committed(run))
    assert len(worker_progress(run)) == 2
    mini.kill_node("train")
    killed = time.time()
    (first,) = training.until(lambda: resumptions(run))
    training.until(lambda: training.step_of(2) > first["step"])
    alone = time.time()
    training.until(lambda: training.step_of(2) > first["step"] + 3)
    mini.add_node("train")
    added = time.time()
    second = training.until(lambda: resumptions(run)[1:])[0]
    training.until(lambda: training.step_of(3) > second["step"])
    together = time.time()
    print(
        f"kill to next step {alone - killed:.1f} s, node to next step {together - added:.1f} s, "
        f"{first} {second}"
    )
    result = training.result()
    assert [first["world_size"], second["world_size"]] == [1, 2]
    # The checkpoint before the resize was not waited for in vain.
    assert second["time"] - added < SAVE_S
    # What was lost goes back to the last checkpoint; at the resize nothing is.
    assert first["step"] >= EVERY
    assert second["step"] > first["step"]
    taken = consumed(run)
    assert taken[2] == list(range(first["step"] * 8, second["step"] * 8))
    assert taken[3] == list(range(second["step"] * 8, STEPS * 8))
    assert set(range(first["step"] * 8)) <= set(taken[1])
    assert (result.steps, result.samples) == (STEPS, STEPS * 8)
    # The same run, but for the order of sums in fp32, which training makes larger.
    ours, theirs = (dict(metric_history(r.run_id, "loss")) for r in (result, calm[0]))
    assert sorted(ours) == list(range(1, STEPS + 1))
    print(f"furthest apart: {max(abs(ours[s] / theirs[s] - 1) for s in ours):.1e}")
    assert [ours[s] for s in sorted(ours)] == pytest.approx(
        [theirs[s] for s in sorted(ours)], rel=1e-5
    )
    assert np.isfinite(list(ours.values())).all()


@pytest.mark.timeout(600)
def test_a_machine_that_is_called_back_costs_no_step(
    two_nodes: MiniCluster,
    recordings: str,
) -> None:
    """Notice half a minute before, as clouds give it: what is done is in storage at once, and the
    run goes on without the machine while that still lives. A checkpoint is due at no other time.
    """
    mini = two_nodes
    # Without one failure to spare: a machine that leaves is none.
    sets = (*SETS, *ELASTIC, "run.checkpoint_every=1000", "run.log_every=25", "engine.zero_stage=1")
    training = Training(
        job(mini, recordings, "called-back", *sets, "cluster.max_failures=0", "run.steps=100")
    )
    run = training.run
    training.until(lambda: training.step_of(1) >= 1)
    leaving = mini.drain_node("train", 30)
    told = time.time()
    (event,) = training.until(lambda: resumptions(run))
    training.until(lambda: training.step_of(2) > event["step"] and training.step_of(2) >= 50)
    print(f"notice to going on {event['time'] - told:.1f} s, {event}")
    assert mini.kill_node("train") == leaving
    result = training.result()
    # It was not waited for: the machine had half a minute.
    assert event["world_size"] == 1
    taken = consumed(run)
    assert taken[1] == list(range(event["step"] * 8))
    assert taken[2] == list(range(event["step"] * 8, 100 * 8))
    assert len(resumptions(run)) == 1
    assert (result.steps, result.samples) == (100, 100 * 8)


@pytest.mark.timeout(600)
def test_a_machine_is_lost_while_storage_is_away(
    two_nodes: MiniCluster,
    recordings: str,
) -> None:
    """For longer than one call waits for it, so that what is left starts again meanwhile."""
    mini = two_nodes
    training = Training(job(mini, recordings, "dark", *SETS, *ELASTIC, "cluster.max_failures=2"))
    run = training.run
    training.until(lambda: training.step_of(1) >= EVERY + 3 and find_committed(run))
    with silent(mini.s3):
        mini.kill_node("train")
        time.sleep(AWAY_S)
    back = time.time()
    (event,) = training.until(lambda: resumptions(run))
    training.until(lambda: training.step_of(event["attempt"]) > event["step"])
    print(f"next step {time.time() - back:.1f} s after storage was back, {event}")
    result = training.result()
    assert event["world_size"] == 1
    assert event["step"] >= EVERY
    assert (result.steps, result.samples) == (STEPS, STEPS * 8)
    taken = consumed(run)
    assert taken[event["attempt"]] == list(range(event["step"] * 8, STEPS * 8))

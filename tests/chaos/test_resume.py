"""A training worker dies for good; the stage goes on from the last committed checkpoint and
ends where it would have ended.
"""

import json
import os
import signal
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.plan.manifest import Manifest
from gwp.data.plan.plan import make_plan, plan_slice
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.curves import read_figures
from pipelines.tracking.runs import metric_history
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from pipelines.training.train import StageResult, train
from tests.support.dot import CALM, EVERY, STEPS, job, weights


def measured(uri: str) -> dict[int, float]:
    """Step -> loss that the newest attempt measured."""
    losses = {}
    for points in read_figures(uri, 0, STEPS):
        losses |= {step: value for name, value, _, step in points if name == "loss"}
    return losses


def kill_after(run: str, step: int, killed: list[int]) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        reports = worker_progress(run)
        # Checkpoints are uploaded beside the steps.
        whole = any(manifest.step >= EVERY for _, manifest in find_committed(run))
        if len(reports) == 2 and reports[1]["step"] >= step and whole:
            os.kill(reports[1]["pid"], signal.SIGKILL)
            killed.append(reports[1]["step"])
            return
        time.sleep(0.02)


@pytest.mark.timeout(900)
def test_a_killed_worker_changes_nothing_but_the_time(
    mini: MiniCluster, recordings: str, calm: tuple[StageResult, dict[str, np.ndarray]]
) -> None:
    shaken = job(mini, recordings, "shaken", "run.record_samples=true")
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_after, args=(run_uri(shaken), EVERY + 3, killed), daemon=True
    )
    killer.start()
    result = train(shaken)
    killer.join(timeout=10)
    (event,) = resumptions(result.uri)
    assert killed
    assert event["step"] in {EVERY, 2 * EVERY, 3 * EVERY}
    assert event["step"] <= killed[0] + 2
    assert (result.steps, result.samples) == (STEPS, STEPS * 8)
    # No sample lost or repeated, no random draw out of place: the weights are those of the calm
    # run, to the last bit.
    ours, (_, theirs) = weights(result), calm
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    _consumed_as_planned(shaken, result.uri, event["step"])


def _consumed_as_planned(shaken: TrainJob, uri: str, resumed: int) -> None:
    """Every sample that a worker took, in either attempt, was the plan's; what a checkpoint
    covered was not read again.
    """
    manifest = Manifest.load(f"{uri}/manifest.parquet")
    planned = np.concatenate(plan_slice(manifest, shaken.run.seed, 0, STEPS, shaken.plan_rules))
    ids = manifest.table["sample_id"].take(pa.array(planned)).to_pylist()
    taken: dict[int, list[int]] = {}
    for name in storage.list_files(f"{uri}/consumed"):
        attempt = int(name.split("/")[0].removeprefix("a"))
        for sample in json.loads(storage.read_bytes(f"{uri}/consumed/{name}")):
            assert sample["sample_id"] == ids[sample["position"]]
            taken.setdefault(attempt, []).append(sample["position"])
    first, second = (sorted(taken[attempt]) for attempt in sorted(taken))
    assert second == list(range(resumed * 8, STEPS * 8))
    assert set(range(resumed * 8)) <= set(first)
    assert len(first) == len(set(first))
    # Samples of later epochs come again, those of one epoch do not.
    epoch = make_plan(manifest, shaken.run.seed, 0, shaken.plan_rules)
    assert len(set(epoch.order.tolist())) == len(epoch.order)


@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_workers(
    mini: MiniCluster, recordings: str, calm: tuple[StageResult, dict[str, np.ndarray]]
) -> None:
    """Stop in the middle of the first epoch by losing checkpoints: of the second one a byte is
    another than it was, so the first is the newest whole one. Finish with one worker instead of
    two.
    """
    first = job(mini, recordings, *CALM)
    whole, _ = calm
    calm_losses = dict(metric_history(whole.run_id, "loss"))
    fs, _ = storage.filesystem(whole.uri)
    found = find_committed(whole.uri)
    for uri, manifest in found:
        if manifest.step > 2 * EVERY:
            fs.rm(storage.filesystem(uri)[1], recursive=True)
    altered, manifest = next(pair for pair in found if pair[1].step == 2 * EVERY)
    file = storage.join(altered, sorted(manifest.files)[0])
    content = storage.read_bytes(file)
    storage.write_bytes(file, content[:-1] + bytes([content[-1] ^ 1]))
    again = train(job(mini, recordings, *CALM, "cluster.workers=1"))
    # Set aside, and pruned behind the next one of its step.
    assert altered not in [uri for uri, _ in find_committed(again.uri)]
    _consumed_as_planned(first, again.uri, EVERY)
    manifest_ = Manifest.load(f"{again.uri}/manifest.parquet")
    assert len(make_plan(manifest_, first.run.seed, 0, first.plan_rules).order) > EVERY * 8
    assert [e["step"] for e in resumptions(again.uri)] == [EVERY]
    assert (again.steps, again.samples) == (whole.steps, whole.samples)
    newest = find_committed(again.uri)[0][1]
    assert newest.world_size == 1
    # The same run, but for the order of sums in fp32, which training makes larger.
    losses = measured(again.uri)
    # MLflow keeps the first of each.
    assert dict(metric_history(again.run_id, "loss")) == calm_losses
    steps = range(EVERY + 1, STEPS + 1)
    print(f"furthest apart: {max(abs(losses[s] / calm_losses[s] - 1) for s in steps):.1e}")
    assert [losses[s] for s in steps] != [calm_losses[s] for s in steps]
    assert [losses[s] for s in steps] == pytest.approx([calm_losses[s] for s in steps], rel=1e-5)

"""Training that cannot go on stops at once, says why in one line, and leaves its last good
checkpoint.
"""

from pathlib import Path

import pytest
from ray.train import ControllerError

from clusters.mini import MiniCluster
from gwp import storage
from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.runs import STOPPED_TAG, client
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions
from pipelines.training.train import train
from tests.cluster.test_newcomer import SETS
from tests.support.sets import write_v30
from tests.unit.pipelines.jobs.test_stages import STAGES


def job(mini: MiniCluster, folder: Path, name: str, *more: str) -> TrainJob:
    uri = f"{mini.bucket}/stops/set"
    if not storage.list_files(uri):
        storage.upload(write_v30(folder / "set"), uri)
    sets = [
        *SETS,
        f"data.sources=[{{uri: {uri}, embodiment: arm}}]",
        f"run.storage={mini.bucket}/stops",
        f"run.name={name}",
        "run.checkpoint_every=1",
        "optimizer.warmup_steps=0",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
        *more,
    ]
    return load_config(STAGES / "policy.yaml", TrainJob, sets)


def stopped(found: TrainJob, words: str) -> str:
    """The run folder of a training that stops with these words, without a restart."""
    with pytest.raises(GwpError, match=words) as caught:
        train(found)
    # Ray never tries again after an error of its controller; one of workers it would.
    assert isinstance(caught.value.__cause__, ControllerError)
    run = storage.join(found.run.storage, found.run.name)
    known = client().get_run(storage.read_bytes(f"{run}/run_id").decode())
    assert known.info.status == "FAILED"
    assert known.data.tags[STOPPED_TAG] == str(caught.value)[:500]
    assert "\n" not in str(caught.value)
    return run


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_loss_that_is_no_number_stops_all_workers_at_its_step(
    mini: MiniCluster, tmp_path: Path
) -> None:
    """A rate of 1e30 leaves finite weights, with which no loss is finite. Afterwards the folder
    is damaged: no restart mends that.
    """
    found = job(mini, tmp_path, "diverged", "optimizer.lr=1e30", "optimizer.max_skipped=1")
    run = stopped(
        found,
        r"steps 2 to 3: the loss is nan, the gradient's norm nan; samples of the last step: \S+.*"
        r"last good checkpoint: \S+/step_000002-a1 \(step 2\).*lower optimizer.lr",
    )
    # The step that was left out changed no weight.
    assert {manifest.step for _, manifest in find_committed(run)} == {1, 2}
    assert not resumptions(run)
    fs, _ = storage.filesystem(run)
    fs.rm(storage.filesystem(f"{run}/codec")[1], recursive=True)
    stopped(found, "codec: nothing there")
    # One start; a worker that fails first may end it before rank 0 tells of it.
    assert len(resumptions(run)) <= 1


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_weights_that_are_no_numbers_are_no_checkpoint(mini: MiniCluster, tmp_path: Path) -> None:
    """One step from a finite loss with a finite gradient: decay makes -3.4e38 of a weight of
    one, and the step adds 1e37.
    """
    found = job(mini, tmp_path, "overflown", "optimizer.lr=1e37", "optimizer.weight_decay=34")
    run = stopped(found, "step 1: a weight is not a finite number.*checkpoint: none yet")
    assert not find_committed(run)
    assert not storage.list_files(f"{run}/checkpoints")

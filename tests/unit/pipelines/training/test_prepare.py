"""A run folder goes on only with the job and the order of samples that it began with."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gwp import storage
from gwp.data.plan.plan import make_plan
from gwp.errors import GwpError
from pipelines.config.load import config_hash, load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoints import (
    CheckpointManifest,
    FileEntry,
    checkpoint_uri,
    commit,
    sha256_file,
)
from pipelines.training.prepare import RUN_ONLY, prepare
from pipelines.training.train import _complete
from tests.support.sets import write_v21
from tests.unit.pipelines.jobs.test_stages import STAGES

SETS = [
    "data.sources=[{uri: set, embodiment: arm, weight: 2}]",
    "data.embodiments={arm: {id: 0}}",
    "data.window={chunk: 4, stride: 1}",
    "init=null",
    "codec={kind: pca, spatial: 8, channels: 24, fit_clips: 8}",
    "text={kind: hashed, dim: 64, rows: 8}",
    "data.canvas={layout: single, width: 32, height: 32}",
    "engine.global_batch=4",
    "run.steps=4",
]


def job(*more: str, as_written: bool = False) -> TrainJob:
    return load_config(STAGES / "policy.yaml", TrainJob, [*SETS, *more], as_written=as_written)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a set in it."""
    write_v21(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_that_began_with_relative_paths_goes_on(here: Path) -> None:
    began = prepare(job())
    assert began.uri == f"{here}/runs/train/policy"
    # As versions wrote it that kept paths as they were given.
    written = job(as_written=True)
    before = {
        "config_hash": config_hash(written, exclude=RUN_ONLY),
        "job": written.model_dump(mode="json"),
        "init": None,
    }
    assert before["config_hash"] != began.config_hash
    storage.write_bytes(f"{began.uri}/job.json", json.dumps(before).encode())
    # Its checkpoints carry that hash.
    assert prepare(job()).config_hash == before["config_hash"]
    with pytest.raises(GwpError, match="holds a run of another configuration"):
        prepare(job("run.seed=1"))


def test_the_plan_has_one_name_for_any_number_of_workers(here: Path) -> None:
    began = prepare(job())
    assert began.plan_hash == make_plan(began.manifest, 0, 0, began.job.plan_rules).hash
    assert prepare(job()).plan_hash == began.plan_hash == began.slim().plan_hash
    assert prepare(job("cluster.workers=1")).plan_hash == began.plan_hash
    others = [
        "run.seed=3",
        "data.together=1",
        "engine.global_batch=6",
        "data.sources=[{uri: set, embodiment: arm, weight: 3}]",
        "data.sources=[{uri: set, embodiment: arm, episodes: '0', weight: 2}]",
    ]
    names = {prepare(job(other, f"run.name=other-{i}")).plan_hash for i, other in enumerate(others)}
    assert len(names) == len(others)
    assert began.plan_hash not in names


def test_a_checkpoint_of_another_order_is_not_gone_on_with(here: Path) -> None:
    began = prepare(job())
    assert not _complete(began)
    (here / "x").write_text("weights")
    uri = checkpoint_uri(began.uri, 2, 1)
    storage.write_bytes(f"{uri}/x", b"weights")
    files = {"x": FileEntry(size=7, sha256=sha256_file(here / "x"))}
    own = CheckpointManifest(
        files=files,
        step=2,
        samples_seen=8,
        world_size=2,
        zero_stage=2,
        attempt=1,
        plan_hash=began.plan_hash,
        config_hash=began.config_hash,
    )
    began.require_own(uri, own)
    # Earlier versions wrote the fingerprint of the manifest there.
    began.require_own(uri, own.model_copy(update={"plan_hash": began.fingerprint}))
    commit(uri, own.model_copy(update={"plan_hash": "0" * 64}))
    with pytest.raises(
        GwpError,
        match=f"{re.escape(uri)} was written with another order of samples .plan 000000000000, now",
    ):
        _complete(began)
    with pytest.raises(GwpError, match="written by another configuration"):
        replace(began, config_hash="another").require_own(uri, own)

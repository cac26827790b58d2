"""A run folder goes on only with the job and the order of samples that it began with."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gwp import storage
from gwp.data.plan.plan import make_plan
from gwp.errors import GwpError
from gwp.model.codecs.video import load_video_codec
from pipelines.config.load import config_hash, load_config
from pipelines.jobs.resolve import init_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    FileEntry,
    checkpoint_uri,
    commit,
    sha256_file,
)
from pipelines.training.prepare import RUN_ONLY, PreparedRun, prepare
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


def test_a_change_is_named_and_has_to_be_wanted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = prepare(job())
    record = json.loads(storage.read_bytes(f"{began.uri}/job.json"))
    # Nothing of this changes what is computed: no word, no note.
    prepare(job("run.log_every=3", "cluster.workers=1", "data.max_broken=0.5"))
    prepare(job(f"data.sources=[{{uri: {here}/x/../set/, embodiment: arm, weight: 2}}]"))
    assert json.loads(storage.read_bytes(f"{began.uri}/job.json")) == record
    # Made with it: never.
    for more, field in (
        ("run.seed=1", "run.seed was 0 and is 1"),
        ("engine.global_batch=8", "engine.global_batch was 4 and is 8"),
        ("data.augment=false", "data.augment was True and is False"),
    ):
        with pytest.raises(GwpError, match=field):
            prepare(job(more), (field.split(maxsplit=1)[0],))
    # Another training from here on: only by name.
    wanted = job("optimizer.lr=0.5", "objective.action_weight=3")
    with pytest.raises(
        GwpError, match=r"optimizer.lr was \S+ and is 0.5.*--allow-change optimizer.lr"
    ):
        prepare(wanted, ("objective",))
    again = prepare(wanted, ("objective.action_weight", "optimizer.lr"))
    assert (again.config_hash, again.job.optimizer.lr) == (began.config_hash, 0.5)
    # The same steps up to rounding: told.
    capsys.readouterr()
    more = ("engine.micro_batch=1", "engine.zero_stage=1", "run.steps=900")
    prepare(job("optimizer.lr=0.5", "objective.action_weight=3", *more))
    shown = capsys.readouterr().err
    for line in ("engine.micro_batch: None -> 1", "engine.zero_stage: 2 -> 1", "-> 900"):
        assert line in shown
    assert "the learning rate is" in shown
    changed = json.loads(storage.read_bytes(f"{began.uri}/job.json"))
    assert changed["config_hash"] == record["config_hash"]
    assert changed["job"]["engine"]["micro_batch"] == 1
    assert [sorted(note["changes"]) for note in changed["changes"]] == [
        ["objective.action_weight", "optimizer.lr"],
        ["engine.micro_batch", "engine.zero_stage", "run.steps"],
    ]


def test_a_note_of_the_job_that_is_torn_is_told(here: Path) -> None:
    began = prepare(job())
    Path(began.uri, "job.json").write_text("{")
    with pytest.raises(GwpError, match=r"job\.json is no JSON; restore it, or give run\.name"):
        prepare(job())


def test_a_field_that_a_newer_version_added_changes_nothing(here: Path) -> None:
    began = prepare(job())
    record = json.loads(storage.read_bytes(f"{began.uri}/job.json"))
    del record["job"]["engine"]["micro_batch"], record["job"]["optimizer"]["max_skipped"]
    storage.write_bytes(f"{began.uri}/job.json", json.dumps(record).encode())
    assert prepare(job()).config_hash == began.config_hash
    record["job"]["engine"]["gone"] = 1
    storage.write_bytes(f"{began.uri}/job.json", json.dumps(record).encode())
    with pytest.raises(GwpError, match=r"none of this version .engine.gone."):
        prepare(job())


def test_a_run_of_before_decays_all_and_goes_on_so_or_not_at_all(here: Path) -> None:
    began = prepare(job("optimizer.decay=all"))
    record = json.loads(storage.read_bytes(f"{began.uri}/job.json"))
    for name in ("kind", "only", "freeze", "decay"):
        del record["job"]["optimizer"][name]
    del record["job"]["recipe"], record["job"]["lora"]
    storage.write_bytes(f"{began.uri}/job.json", json.dumps(record).encode())
    assert prepare(job("optimizer.decay=all")).config_hash == began.config_hash
    # A file that says nothing of it goes on, too.
    assert prepare(job()).job.optimizer.decay == "all"
    # The state of the optimiser has another form: wanted or not.
    for more in ("optimizer.decay=matrices", "optimizer.freeze=[proj_out]", "lora={}"):
        changes = [more] if more.startswith("optimizer.decay") else ["optimizer.decay=all", more]
        with pytest.raises(GwpError, match="holds a run of another configuration"):
            prepare(job(*changes), ("optimizer", "lora"))


def test_finished_weights_are_whole_with_their_note(here: Path) -> None:
    """An upload that broke off looks whole, but for the note that comes last."""
    final = here / "runs/train/world/final"
    (final / "model").mkdir(parents=True)
    (final / "model/config.json").write_text("{}")
    with pytest.raises(GwpError, match="holds no finished weights; run that stage to its end"):
        init_uri(job("init=world"))
    (final.parent / "job.json").write_text("{}")
    with pytest.raises(GwpError, match="holds no finished weights; run that stage to its end"):
        init_uri(job(f"init={final}"))
    (final / "run.json").write_text("{}")
    for way in ("world", str(final), f"{final}/"):
        assert Path(str(init_uri(job(f"init={way}")))).resolve() == final


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


class Killed(BaseException):
    """The process is no more."""


def test_a_start_that_was_killed_anywhere_is_begun_again(here: Path) -> None:
    """Every write into the run folder, cut off at each."""
    calls: list[str] = []

    def begin(at: int, name: str) -> PreparedRun:
        calls.clear()

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def counting(*args: object, **named: object) -> object:
                calls.append(name)
                if len(calls) > at:
                    raise Killed
                return call(*args, **named)

            return counting

        with pytest.MonkeyPatch.context() as patch:
            for door in ("write_bytes", "put_file"):
                patch.setattr(storage, door, counted(getattr(storage, door)))
            return prepare(job(f"run.name={name}"))

    whole = begin(1000, "whole")
    writes = len(calls)
    assert writes > 5
    for at in range(writes):
        with pytest.raises(Killed):
            begin(at, f"killed-{at}")
        again = begin(1000, f"killed-{at}")
        assert (again.plan_hash, again.fingerprint) == (whole.plan_hash, whole.fingerprint)
        assert prepare(job(f"run.name=killed-{at}")).config_hash == again.config_hash


def test_samples_that_teach_nothing_are_refused_or_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = "objective={video_weight: 0, modes: {wam: 1}}"
    unlabelled = "{uri: set, embodiment: arm, with_actions: false}"
    with pytest.raises(
        GwpError, match="video_weight 0 leaves actions alone to learn, and no sample"
    ):
        prepare(job(plain, f"data.sources=[{unlabelled}]"))
    assert not storage.exists("runs/train/policy/job.json")
    capsys.readouterr()
    prepare(job(plain, f"data.sources=[{{uri: set, embodiment: arm}}, {unlabelled}]"))
    assert "has no actions, and objective.video_weight 0" in capsys.readouterr().err
    prepare(job("run.name=other", f"data.sources=[{{uri: set, embodiment: arm}}, {unlabelled}]"))
    assert "has no actions" not in capsys.readouterr().err


def test_a_codec_that_is_there_is_taken_as_it_is(here: Path) -> None:
    def codec(**more: object) -> str:
        return f"codec={json.dumps({'kind': 'pca', 'spatial': 8, 'channels': 24} | more)}"

    first = prepare(job())
    # Jobs of before know no such field, and their hashes no such key.
    assert "saved" not in first.job.model_dump(mode="json")["codec"]
    saved = f"{first.uri}/codec"
    # Fitted at these crops it would be another one.
    other = prepare(job("run.name=other", "run.seed=1", codec(saved=saved)))
    digests = {load_video_codec(f"{run.uri}/codec").digest() for run in (first, other)}
    assert len(digests) == 1
    assert (
        load_video_codec(f"{prepare(job('run.name=own', 'run.seed=1')).uri}/codec").digest()
        not in digests
    )
    with pytest.raises(
        GwpError, match=r"codec\.saved .* is a pca codec of 24 channels and blocks of 8"
    ):
        prepare(job("run.name=wrong", codec(saved=saved, channels=12)))

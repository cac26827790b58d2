"""Who judges a checkpoint alone, from its files, comes to what its workers would have said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.training.checkpoint.checkpoints import (
    CheckpointManifest,
    checkpoint_uri,
    commit,
    upload_files,
)
from pipelines.training.judge.validator import Validator
from pipelines.training.prepare import PreparedRun, prepare
from pipelines.training.validation import NAMES
from tests.support import ranks
from tests.support.ranks import Rank
from tests.support.sets import write_v21
from tests.unit.pipelines.training.test_validation import HELD_OUT, job

STEPS = 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_v21(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fields(here: Path, *more: str) -> list[str]:
    return [
        *HELD_OUT,
        "engine.global_batch=6",
        f"run.storage={here}/runs",
        "model.num_layers=1",
        "optimizer={warmup_steps: 0, lr: 0.01}",
        "engine.ema_decay=0.9",
        *more,
    ]


def trained(rank: Rank, sets: list[str]) -> dict[str, Any]:
    """What the workers say of their weights after some steps, which they save."""
    from gwp.data.formats.files.reader import FileReader
    from gwp.model.weights import build_model
    from pipelines.training.control.journal import Journal
    from pipelines.training.engine.deepspeed_engine import Engine
    from pipelines.training.engine.ema import Ema
    from pipelines.training.engine.node import Node
    from pipelines.training.samples.decoder import decode_block
    from pipelines.training.samples.encoders import Encoders
    from pipelines.training.samples.stream import blocks
    from pipelines.training.step import TrainStep
    from pipelines.training.validation import Validation

    world = rank.ranks.world
    prepared = prepare(job(*sets))
    found = prepared.job
    engine = Engine(build_model(found.model_config_, 0).train(), found)
    ema = Ema(engine, found.engine.ema_decay)
    node = Node(rank.ranks, 0, rank.ranks.rank, rank.folder)
    encoders = Encoders(prepared, node, engine.device)
    steps = TrainStep(found, rank.ranks, engine, ema, encoders)
    journal = Journal(str(rank.folder), rank.ranks.rank, 1)
    for step in range(STEPS):
        rows = blocks(prepared, 0, 0, world)[step * world + rank.ranks.rank]
        raw = decode_block(rows, prepared.spec, None, FileReader())
        steps.take(step, raw, found.engine.global_batch * step, journal)
    validation = Validation(prepared, rank.ranks, engine.module, engine.device, encoders)
    losses, figures = validation.losses(), validation.figures()
    engine.save(rank.folder / "saved")
    ema.save(rank.folder / "saved")
    assert validation.picture is not None
    picture = validation.picture.tolist() if rank.ranks.rank == 0 else None
    return {"losses": losses, "figures": figures, "picture": picture}


def checkpoint(prepared: PreparedRun, saved: Path, world: int) -> str:
    """What was saved, as a whole checkpoint of the run."""
    uri = checkpoint_uri(prepared.uri, STEPS, 1)
    files = upload_files(saved, f"{uri}/state")
    manifest = CheckpointManifest(
        files={f"state/{name}": entry for name, entry in files.items()},
        step=STEPS,
        samples_seen=STEPS * 6,
        world_size=world,
        zero_stage=prepared.job.engine.zero_stage,
        attempt=1,
        plan_hash=prepared.plan_hash,
        config_hash=prepared.config_hash,
    )
    commit(uri, manifest)
    return uri


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("world", "more"),
    [
        (2, ["engine.zero_stage=2"]),
        pytest.param(1, ["engine.zero_stage=0"], marks=pytest.mark.slow),
        pytest.param(3, ["engine.zero_stage=3"], marks=pytest.mark.slow),
        pytest.param(2, ["engine.zero_stage=1", "engine.precision=bf16"], marks=pytest.mark.slow),
        pytest.param(2, ["engine.zero_stage=3", "engine.precision=bf16"], marks=pytest.mark.slow),
        pytest.param(2, ["engine.zero_stage=2", "lora={rank: 2}"], marks=pytest.mark.slow),
        pytest.param(
            2,
            ["engine.zero_stage=1", "optimizer.only=[blocks.*.action_expert]"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_it_says_what_the_workers_say(here: Path, world: int, more: list[str]) -> None:
    """Losses, what is done and imagined, and the picture; twice, for the second time it has all of it."""
    sets = fields(here, f"cluster.workers={world}", *more)
    prepared = prepare(job(*sets))
    told = ranks.run(trained, world, here / "ranks", sets)
    uri = checkpoint(prepared, here / "ranks" / "saved", world)
    validator = Validator(prepared.slim())
    exact = "engine.precision=bf16" not in more
    for _ in range(2):
        verdict = validator.judge(uri)
        assert verdict.step == STEPS
        assert verdict.losses.keys() == set(NAMES)
        close = {"rel": 1e-5} if exact else {"rel": 1e-2}
        assert verdict.losses == pytest.approx(told["losses"], **close)
        assert verdict.figures == pytest.approx(told["figures"], abs=1e-4 if exact else 2e-2)
        assert verdict.picture is not None
        if exact:
            assert verdict.picture.tolist() == told["picture"]


def test_it_judges_what_trained_and_no_checkpoint_of_another_run(here: Path) -> None:
    """The weights as they are, not their average; and none that another configuration wrote."""
    sets = fields(here, "cluster.workers=1", "engine.zero_stage=1")
    prepared = prepare(job(*sets))
    ranks.run(trained, 1, here / "ranks", sets)
    saved = here / "ranks" / "saved"
    assert list((saved / "ema").iterdir())
    uri = checkpoint(prepared, saved, 1)
    first = Validator(prepared.slim()).judge(uri).losses
    for file in (saved / "ema").iterdir():
        file.write_bytes(b"nobody reads this")
    again = checkpoint(replace(prepared, uri=f"{here}/again"), saved, 1)
    assert Validator(prepared.slim()).judge(again).losses == first
    with pytest.raises(GwpError, match="written by another configuration"):
        Validator(replace(prepared.slim(), config_hash="another")).judge(uri)

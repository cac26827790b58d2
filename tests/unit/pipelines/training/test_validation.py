"""A run is judged by what it does not train on, by the same figure on any number of workers, and
trains no differently for it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gwp.data.plan.manifest import SCHEMA, Manifest
from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.prepare import prepare
from pipelines.training.validation import NAMES, passes
from tests.support import ranks
from tests.support.ranks import Rank
from tests.support.sets import write_v21
from tests.unit.pipelines.jobs.test_stages import STAGES
from tests.unit.pipelines.training.test_prepare import SETS

HELD_OUT = [
    "data.sources=[{uri: set, embodiment: arm, episodes: '0'}]",
    "validation={sources: [{uri: set, embodiment: arm, episodes: '1'}], samples: 5}",
]


def job(*more: str) -> TrainJob:
    return load_config(STAGES / "policy.yaml", TrainJob, [*SETS, *more])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_v21(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(shapes: list[tuple[str, int, bool]]) -> Manifest:
    columns: dict[str, Any] = {field.name: pa.nulls(len(shapes), field.type) for field in SCHEMA}
    kinds, buckets, labelled = zip(*shapes, strict=True)
    columns |= {
        "sample_id": pa.array([f"set/0/{i}" for i in range(len(shapes))], pa.large_string()),
        "kind": pa.array(kinds),
        "bucket": pa.array(buckets, pa.int64()),
        "has_action": pa.array(labelled),
    }
    return Manifest.of(pa.table(columns, schema=SCHEMA))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_sample_is_judged_once(world: int, size: int) -> None:
    draw = np.random.default_rng(world * 10 + size)
    some = [("robot", 0, True), ("robot", 0, False), ("clip", 0, False), ("clip", 2, False)]
    shapes = [some[i] for i in draw.integers(0, 4, 23)]
    taken: list[int] = []
    for ids, real, labelled in passes(manifest(shapes), world, size):
        assert ids.shape == real.shape == (world, size)
        # One pass has one shape, also where it only holds a place.
        (shape,) = {shapes[i] for i in ids.ravel()}
        assert shape[2] is labelled
        assert real.any()
        # The work is spread.
        assert np.ptp(real.sum(1)) <= 1
        taken += ids[real].tolist()
    assert sorted(taken) == list(range(23))


def judged(rank: Rank, stages: list[int], sets: list[str]) -> dict[str, Any]:
    """Losses in validation before and after each of three steps, under each ZeRO stage."""
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
    journal = Journal(str(rank.folder), rank.ranks.rank, 1)
    told: dict[str, Any] = {"figures": [], "shown": []}
    for stage in stages:
        own = [f"cluster.workers={world}", f"engine.zero_stage={stage}"]
        found = job(*sets, *own)
        # The same folder for all, which nobody changes.
        prepared = replace(prepare(job(*sets)), job=found)
        runs = []
        for judges in (False, True):
            engine = Engine(build_model(found.model_config_, 0).train(), found)
            node = Node(rank.ranks, 0, rank.ranks.rank, rank.folder)
            encoders = Encoders(prepared, node, engine.device)
            steps = TrainStep(
                found, rank.ranks, engine, Ema(engine, found.engine.ema_decay), encoders
            )
            own = (prepared, rank.ranks, engine.module, engine.device, encoders)
            validation = Validation(*own) if judges else None
            told[str(stage)] = [validation.losses()] if validation else []
            losses = []
            for step in range(3):
                rows = blocks(prepared, 0, 0, world)[step * world + rank.ranks.rank]
                raw = decode_block(rows, prepared.spec, None, FileReader())
                losses.append(steps.take(step, raw, found.engine.global_batch * step, journal))
                if validation:
                    told[str(stage)].append(validation.losses())
            runs.append(losses)
        # To the bit: nothing that trains is touched.
        assert runs[0] == runs[1], (stage, runs)
        # And the same when it is asked twice.
        assert validation is not None
        assert validation.losses() == told[str(stage)][-1]
        told["figures"] = validation.figures()
        told["shown"] = None if rank.ranks.rank else list(validation.picture.shape)
    return told


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_run_is_judged_alike_whatever_its_workers_and_trains_no_differently(here: Path) -> None:
    sets = [*HELD_OUT, "engine.global_batch=6", f"run.storage={here}/runs", "model.num_layers=1"]
    sets += ["optimizer.warmup_steps=0"]
    prepared = prepare(job(*sets))
    assert prepared.validation is not None
    assert len(prepared.validation) == 5
    told = {
        world: ranks.run(judged, world, here / str(world), [stage], sets)
        for world, stage in ((1, 0), (2, 3), (3, 2))
    }
    figures = {world: stages.pop("figures") for world, stages in told.items()}
    for stages in told.values():
        # Of three samples the real and the imagined rows, or of as many as the rank has.
        assert stages.pop("shown")[2] == 3
    expected = told[1]["0"]
    assert all(losses.keys() == set(NAMES) for losses in expected)
    # The weights are others after a step, so the figures are.
    assert len({losses["loss"] for losses in expected}) == len(expected)
    for world, stages in told.items():
        for stage, found in stages.items():
            for got, want in zip(found, expected, strict=True):
                assert got == pytest.approx(want, abs=5e-5), (world, stage)
    assert {"action_error", "action_error_hold", "psnr", "psnr_moving_copy"} <= figures[1].keys()
    for world in (2, 3):
        # That asks for another sample on the same rank.
        alike = {n: v for n, v in figures[1].items() if n != "action_sensitivity"}
        assert {n: figures[world][n] for n in alike} == pytest.approx(alike, rel=2e-3), world


def test_what_trains_does_not_judge(here: Path) -> None:
    same = ["validation={sources: [{uri: set, embodiment: arm, episodes: '1'}]}"]
    with pytest.raises(GwpError, match=r"validation: 1 of its episodes.*also in data.sources"):
        prepare(job(*same))
    assert not list(here.glob("runs/**/job.json"))


def test_who_judges_has_statistics(here: Path) -> None:
    unlabelled = "data.sources=[{uri: set, embodiment: arm, episodes: '0', with_actions: false}]"
    with pytest.raises(GwpError, match=r"no source in data.sources has actions of arm"):
        prepare(job(HELD_OUT[1], unlabelled))


def test_a_run_folder_keeps_what_it_is_judged_by(here: Path) -> None:
    first = prepare(job(*HELD_OUT)).validation
    again = prepare(job(*HELD_OUT)).validation
    assert first is not None
    assert again is not None
    assert first.table.equals(again.table)


def test_who_judges_is_no_part_of_what_a_run_is(here: Path) -> None:
    """A run goes on with another one, and its checkpoints know it."""
    judged_by = HELD_OUT[1].removesuffix("}")
    first = prepare(job(*HELD_OUT))
    again = prepare(job(HELD_OUT[0], f"{judged_by}, worker: {{cpus: 2, pool: data}}}}"))
    assert again.uri == first.uri
    assert again.config_hash == first.config_hash
    assert again.job.validation is not None
    assert again.job.validation.worker is not None
    record = json.loads((Path(first.uri) / "job.json").read_text())
    assert "changes" not in record

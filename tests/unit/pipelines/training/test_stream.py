"""Blocks of decoded samples, and the check that the stream stands where the checkpoint says. No
Ray is started.
"""

import pickle
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.plan.plan import plan_slice
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.control.stopped import StoppedError
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.decoder import batch_columns, block, decode_block
from pipelines.training.samples.shares import PADDING, positions_of
from pipelines.training.samples.stream import ahead, batches, blocks, packed_blocks, planned
from tests.support.sets import TOP, infer_embodiment, write_pictures, write_v30
from tests.unit.pipelines.jobs.test_stages import STAGES

SPEC = SampleSpec(
    canvas=Canvas(layout="single", width=8, height=8),
    window=Window(chunk=4, stride=1),
    clip=ClipWindow(frames=5, fps=5.0),
    embodiments={},
    stats={},
    model_dim=3,
    augment=False,
    seed=0,
)


def sample(name, value):
    return {
        "view_valid": np.array([True, False, False]),
        "frames": np.full((5, 8, 8, 3), value, np.uint8),
        "state": np.full(3, value, np.float32),
        "actions": np.zeros((4, 3), np.float32),
        "step_valid": np.ones(4, bool),
        "dim_valid": np.ones(3, bool),
        "has_action": True,
        "text_key": "k",
        "embodiment_id": 1,
        "sample_id": name,
    }


def rows(*names):
    return [
        {
            "sample_id": n,
            "position": 10 + i,
            "batch": 8,
            "source": i,
            "kind": "robot",
            "bucket": 0,
        }
        for i, n in enumerate(names)
    ]


def test_failed_samples_hold_their_place_and_say_why():
    columns = batch_columns(
        rows("a", "b", "c"), [sample("a", 1), sample("c", 3)], {"b": "truncated"}, SPEC
    )
    assert columns["ok"].tolist() == [True, False, True]
    assert columns["reason"].tolist() == ["", "truncated", ""]
    assert columns["position"].tolist() == [10, 11, 12]
    assert columns["source"].tolist() == [0, 1, 2]
    assert columns["frames"][[0, 2], 0, 0, 0, 0].tolist() == [1, 3]
    assert columns["embodiment_id"].tolist() == [1, 0, 1]


def test_a_block_without_any_good_sample_has_the_same_columns():
    bad = batch_columns(rows("a", "b"), [], {"a": "x", "b": "y"}, SPEC)
    good = batch_columns(rows("a", "b"), [sample("a", 1), sample("b", 2)], {}, SPEC)
    assert not bad["ok"].any()
    assert {k: (v.shape, v.dtype.kind) for k, v in bad.items()} == {
        k: (v.shape, v.dtype.kind) for k, v in good.items()
    }


class Shard:
    """What Ray hands to a worker: blocks as batches."""

    def __init__(self, *blocks):
        self.blocks = blocks

    def iter_batches(self, **_):
        for start, size in self.blocks:
            yield {
                "position": np.arange(start, start + size // 2),
                "batch": np.full(size // 2, size),
            }


def test_each_rank_gets_its_share_of_batches_of_any_size():
    got = [b["position"].tolist() for b in batches(Shard((4, 8), (10, 4), (16, 8)), 0, 1, 2)]
    assert got == [[4, 5, 6, 7], [10, 11], [16, 17, 18, 19]]


def test_ranks_with_a_sample_fewer_have_padding_behind_theirs():
    class Padded:
        def iter_batches(self, **_):
            yield {"position": np.array([6, 7, PADDING, 14, 15, PADDING]), "batch": np.full(6, 8)}

    got = [b["position"].tolist() for b in batches(Padded(), 0, 2, 3)]
    assert got == [[6, 7, PADDING], [14, 15, PADDING]]
    with pytest.raises(RuntimeError, match=r"positions 6\.\.7, expected 3\.\.5"):
        next(batches(Padded(), 0, 1, 3))


def test_a_stream_ahead_makes_its_first_beside_the_caller():
    made = threading.Event()

    def numbers():
        made.set()
        yield 1
        yield 2

    stream = ahead(numbers())
    assert made.wait(20)
    assert list(stream) == [1, 2]
    assert list(ahead(iter(()))) == []

    def broken():
        raise StoppedError("no such column")
        yield

    stream = ahead(broken())
    with pytest.raises(StoppedError, match="no such column"):
        next(stream)


def test_a_stream_out_of_step_stops_instead_of_repeating_samples():
    stream = batches(Shard((0, 8), (4, 8)), 0, 0, 2)
    next(stream)
    with pytest.raises(RuntimeError, match=r"positions 4\.\.7, expected 8\.\.11"):
        next(stream)


def prepared(root, rows=(12, 9), **fields):
    uri = str(write_v30(root, lengths=rows))
    arm = infer_embodiment(uri, "arm", 4, 2)
    manifest = build_manifest(
        [Source(uri=uri, embodiment="arm", weight=2)],
        embodiments={"arm": arm},
        window=SPEC.window,
        clip=SPEC.clip,
    )
    stats = compute_stats([Source(uri=uri, embodiment="arm")], arm, SPEC.window)
    spec = replace(SPEC, embodiments={"arm": arm}, stats={"arm": stats}, augment=True, **fields)
    job = load_config(
        STAGES / "policy.yaml",
        TrainJob,
        [
            "run.steps=9",
            "engine.global_batch=14",
            "cluster.workers=2",
            f"data.sources=[{{uri: {uri}, embodiment: arm, weight: 2}}]",
            "data.embodiments={arm: {replan: 2}}",
        ],
    )
    return PreparedRun("nowhere", job, manifest, manifest.fingerprint, spec, "", None)


def test_what_is_planned_for_the_ranks_is_the_plan(tmp_path):
    found = prepared(tmp_path / "set")
    steps = plan_slice(found.manifest, found.job.run.seed, 0, 9, found.job.plan_rules)
    ids = found.manifest.table["sample_id"].to_pylist()
    for step in (0, 4, 8):
        rows = planned(found, step, 14 * step, 2).to_pylist()
        assert [(r["first"], r["batch"], len(r["ids"])) for r in rows] == [
            (7 * k, 14, 7) for k in range(2 * step, 18)
        ]
        assert [i for r in rows for i in r["ids"]] == np.concatenate(steps[step:]).tolist()
    tables = blocks(found, 3, 42, 2)
    for table, row in zip(tables, planned(found, 3, 42, 2).to_pylist(), strict=True):
        assert table["sample_id"].to_pylist() == [ids[i] for i in row["ids"]]
        assert table["position"].to_pylist() == list(range(row["first"], row["first"] + 7))


@pytest.mark.parametrize("world", [3, 4, 14])
def test_any_number_of_ranks_gets_the_plan_in_blocks_of_equal_rows(tmp_path, world):
    found = prepared(tmp_path / "set")
    steps = plan_slice(found.manifest, found.job.run.seed, 0, 9, found.job.plan_rules)
    rows = planned(found, 0, 0, world).to_pylist()
    assert [i for r in rows for i in r["ids"]] == np.concatenate(steps).tolist()
    tables = blocks(found, 0, 0, world)
    for step in range(9):
        for rank in range(world):
            table = tables[step * world + rank]
            wanted = positions_of(14 * step, 14, rank, world)
            assert table["position"].to_pylist() == wanted
    # So Ray deals blocks out to ranks: one after another, with as many rows.
    shares = [
        b["shares"] for b in packed_blocks(found, planned(found, 0, 0, world), world).to_pylist()
    ]
    sizes = [sum(share["rows"] for share in some) for some in shares]
    for start in range(0, len(sizes), world):
        assert len(set(sizes[start : start + world])) == 1


def test_padding_is_decoded_by_nobody_and_has_neither_name_nor_reason(tmp_path):
    found = prepared(tmp_path / "set")
    row = planned(found, 0, 0, 4).to_pylist()[3]
    assert (len(row["ids"]), row["rows"]) == (3, 4)
    table = block(found.manifest, None, row)
    whole = decode_block(table.slice(0, 3), found.spec, None, FileReader())
    columns = decode_block(table, found.spec, None, FileReader())
    assert columns["ok"].tolist() == [True, True, True, False]
    assert columns["position"].tolist() == [11, 12, 13, PADDING]
    assert (columns["sample_id"][3], columns["reason"][3]) == ("", "")
    assert not columns["frames"][3].any()
    assert all(np.array_equal(columns[name][:3], whole[name]) for name in whole)


def test_a_sample_that_comes_twice_in_a_batch_comes_under_two_crops(tmp_path):
    found = prepared(tmp_path / "set", canvas=Canvas(layout="single", width=32, height=48))
    slope = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (48, 64, 3))
    write_pictures(
        tmp_path / f"set/videos/{TOP}/chunk-000/file-000.mp4",
        [np.ascontiguousarray(slope)] * 21,
        gop=4,
    )
    row = {"ids": [3, 3, 5], "first": 20, "batch": 6, "rows": 3}
    table = block(found.manifest, None, row)
    rows = table.to_pylist()
    columns = decode_block(table, found.spec, None, FileReader())
    assert columns["sample_id"].tolist() == [r["sample_id"] for r in rows]
    alone = [
        decode_block(table.slice(i, 1), found.spec, None, FileReader())["frames"][0]
        for i in range(3)
    ]
    assert all(
        np.array_equal(got, want) for got, want in zip(columns["frames"], alone, strict=True)
    )
    assert not np.array_equal(alone[0], alone[1])


def test_what_is_sent_to_workers_holds_no_sample(tmp_path):
    few, many = prepared(tmp_path / "few"), prepared(tmp_path / "many", rows=(40, 40))
    assert abs(len(pickle.dumps(many.slim())) - len(pickle.dumps(few.slim()))) < 500
    assert many.slim().fingerprint == many.manifest.fingerprint


def test_a_decoding_process_imports_nothing_that_trains() -> None:
    """There are several on each machine: torch alone takes seconds and hundreds of MB."""
    code = "import sys, pipelines.training.samples.decoder; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    heavy = {"torch", "deepspeed", "mlflow", "ray.train", "ray.data", "diffusers", "transformers"}
    assert not heavy & set(done.stdout.split())

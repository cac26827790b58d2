"""`gwp bench ingest` measures what it says, at its smallest and without Ray; and what makes the
stream fast gives the same samples.
"""

import numpy as np
import pyarrow as pa
import pytest

from gwp import storage
from gwp.data.decode import decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.video import decode as video
from gwp.data.video.decode import WORK
from gwp.data.video.probe import probe
from gwp.errors import GwpError
from pipelines.bench.ingest.jobs import Shape, job_for, made_set, prepared_for
from pipelines.bench.ingest.s3 import counted_s3
from pipelines.bench.ingest.sets import _as_packed
from pipelines.bench.ingest.show import soak_table, table
from pipelines.bench.ingest.sides import _Blocks, _Samples, bare_block, wanted_of
from pipelines.training.samples.decoder import decode_block, unpacked
from pipelines.training.samples.stream import batches, blocks, packed_blocks, planned

SHAPE = {
    "canvas": (48, 64),
    "chunk": 8,
    "stride": 2,
    "clip": {"frames": 5, "fps": 5},
    "batch": 4,
    "workers": 2,
    "tasks": 2,
    "steps": 3,
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A set with key frames 2 apart and one with 20, of three cameras."""
    folder = tmp_path_factory.mktemp("sets")
    return {gop: made_set(folder, gop, (64, 96), episodes=3, rows=60) for gop in (2, 20)}


@pytest.mark.parametrize("gop", [2, 20])
def test_the_bare_loop_decodes_the_frames_that_the_reader_decodes(sets, gop):
    prepared = prepared_for(job_for(sets[gop], **SHAPE))
    for some in blocks(prepared, 0, 0, 2):
        wanted = wanted_of(some, prepared.spec)
        before = WORK.decoded
        columns = decode_block(some, prepared.spec, None, FileReader())
        assert columns["ok"].all()
        given, decoded = bare_block(wanted)
        assert given == sum(map(len, wanted.values()))
        # The reader may look one frame further, to see which is nearer.
        assert abs(decoded - (WORK.decoded - before)) <= len(wanted)
        assert gop > 2 or decoded <= 2.5 * given


def test_made_sets_have_key_frames_where_they_should(sets):
    for gop, uri in sets.items():
        for name in storage.list_files(uri):
            if name.endswith(".mp4"):
                with storage.open_read(storage.join(uri, name)) as handle:
                    assert probe(handle).gop == gop


def test_every_side_gets_the_samples_of_the_stream(sets):
    prepared = prepared_for(job_for(sets[2], **SHAPE))
    every = blocks(prepared, 0, 0, 2)
    assert [b.num_rows for b in every] == [4] * 6
    first = decode_block(every[0], prepared.spec, None, FileReader())
    by_block = _Blocks(every, prepared.spec, None)[0]
    by_sample = [_Samples(every, prepared.spec)[i] for i in range(4)]
    assert np.array_equal(by_block["frames"], first["frames"])
    assert np.array_equal(np.stack([s["frames"] for s in by_sample]), first["frames"])
    assert by_block["work"][0] > 0


def test_small_micro_batches_travel_together_and_come_out_one_by_one(sets):
    prepared = prepared_for(job_for(sets[2], **SHAPE))
    micro = blocks(prepared, 0, 0, 2)
    together = [
        unpacked(prepared.manifest, None, row)
        for row in packed_blocks(prepared, planned(prepared, 0, 0, 2), 2).to_pylist()
    ]
    assert [b.num_rows for b in together] == [12, 12]
    for rank, some in enumerate(together):
        columns = {name: np.array(some[name]) for name in ("position", "batch", "sample_id")}
        shard = type("Shard", (), {"iter_batches": lambda self, c=columns, **_: iter([c])})()
        got = [b["sample_id"].tolist() for b in batches(shard, 0, rank, 2)]
        assert got == [b["sample_id"].to_pylist() for b in micro[rank::2]]
    # A large picture is worth a block of its own.
    large = prepared_for(job_for(sets[2], **(SHAPE | {"canvas": (1600, 1600)})))
    assert [
        len(row["shares"]) for row in packed_blocks(large, planned(large, 0, 0, 2), 2).to_pylist()
    ] == [1] * 6


@pytest.mark.parametrize(("warm", "steps"), [(1, 2), (8, 8)])
def test_steps_that_the_first_blocks_swallow_are_refused(sets, warm, steps):
    """A block of small micro-batches holds eight steps, and is measured whole or not at all."""
    shape = Shape(
        canvas=(48, 64), chunk=8, stride=2, clip_frames=5, batch=4, warm=warm, steps=steps
    )
    prepared = shape.prepared(sets[2])
    if steps < 8:
        with pytest.raises(GwpError, match="--steps 2"):
            _as_packed(prepared, shape)
        return
    first, measured = _as_packed(prepared, shape)
    samples = shape.batch * shape.workers
    assert sum(b.num_rows for b in first) == warm * samples
    assert sum(b.num_rows for b in measured) == steps * samples


def test_a_block_that_was_given_away_is_not_written_to_again(sets):
    """Ray may still read it, or hand it out without a copy, while the next one is decoded."""
    prepared = prepared_for(job_for(sets[2], **SHAPE))
    given = [
        decode_block(some, prepared.spec, None, FileReader()) for some in blocks(prepared, 0, 0, 2)
    ]
    for some, columns in zip(blocks(prepared, 0, 0, 2), given, strict=True):
        again = decode_block(some, prepared.spec, None, FileReader())
        assert all(np.array_equal(columns[k], again[k]) for k in columns)
        assert not any(
            np.shares_memory(columns["frames"], other["frames"])
            for other in given
            if other is not columns
        )


def test_a_broken_sample_is_empty(sets):
    prepared = prepared_for(job_for(sets[2], **SHAPE))
    some = blocks(prepared, 0, 0, 2)[0]
    rows = some.to_pylist()
    rows[1]["views"][0]["start_s"] = 1e4
    columns = decode_block(
        pa.Table.from_pylist(rows, schema=some.schema), prepared.spec, None, FileReader()
    )
    assert columns["ok"].tolist() == [True, False, True, True]
    assert not columns["frames"][1].any()
    good = decode_samples([rows[i] for i in (0, 2, 3)], prepared.spec, FileReader())[0]
    assert np.array_equal(columns["frames"][[0, 2, 3]], np.stack([s["frames"] for s in good]))


def test_the_whole_of_the_videos_is_every_frame_once(sets):
    prepared = prepared_for(
        job_for(sets[2], **(SHAPE | {"clip": {"frames": 9, "fps": 30}}), whole=True)
    )
    shown = [
        time
        for row in prepared.manifest.table.to_pylist()
        for v in row["views"]
        for time in wanted_of(
            pa.Table.from_pylist([row], schema=prepared.manifest.table.schema), prepared.spec
        )[v["uri"]]
    ]
    assert len(shown) == 9 * prepared.manifest.table.num_rows == 9 * 3 * (180 // 9)
    assert len(set(shown)) == 180


def test_a_few_frames_of_a_large_file_cost_a_few_ranges(tmp_path, monkeypatch):
    """A file far larger than what is fetched around each range; both are small here."""
    monkeypatch.setattr(video, "_WHOLE_FILE", 1 << 16)
    monkeypatch.setattr(video, "_AHEAD", 1 << 16)
    uri = made_set(tmp_path, 2, (240, 320), episodes=4, rows=150, cameras=1)
    with counted_s3() as s3:
        storage.upload(uri, f"{s3.uri}/set")
        prepared = prepared_for(job_for(f"{s3.uri}/set", **(SHAPE | {"batch": 1, "steps": 1})))
        size = prepared.manifest.table["views"][0][0]["bytes"].as_py()
        assert size > 1 << 20
        before = s3.traffic()
        columns = decode_block(blocks(prepared, 0, 0, 2)[0], prepared.spec, None, FileReader())
        traffic = s3.traffic() - before
    assert columns["ok"].all()
    assert 0 < traffic.bytes < size / 3


def test_the_tables_show_every_figure():
    figures = {
        "samples_per_s": 10.0,
        "samples_per_s_per_core": 5.0,
        "frames_per_s_per_core": 25.0,
        "decoded_per_used": 1.5,
    }
    one = {
        "set": "a",
        "videos": {"files": 1, "codec": ["h264"], "gop": [2], "size": ["64x48"]},
        "frames_per_sample": 4.5,
        "sides": {"stream disk": figures},
        "read_videos": "left out: no decord",
        "ratios": {"disk": {"vs_pyav": 0.9}},
    }
    made_with = {
        "hardware": "x",
        "cores": 2,
        "workers": 2,
        "versions": {"ray": "1"},
        "canvas": [48, 64],
        "batch": 4,
        "samples": 8,
        "window": {"chunk": 8, "stride": 2},
        "clip": {"frames": 5, "fps": 5.0},
        "warm_up": 4,
        "cached": "nothing",
    }
    shown = table(made_with | {"sets": [one]})
    assert "vs_pyav 0.90" in shown
    assert "left out: no decord" in shown
    store = {"used_mb": 0, "spilled_mb": 0}
    soaked = {
        "samples": 9,
        "seconds": 1.0,
        "samples_per_s": 9.0,
        "mb_by_tenth": [{"driver": 1.0}],
        "store": store,
    }
    assert "driver" in soak_table(soaked)

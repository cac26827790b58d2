"""The stream of the plan through Ray Data, without training."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import ray.data

from clusters.mini import MiniCluster
from gwp.data.formats.files.reader import FileReader
from pipelines.training.control.stopped import StoppedError, lasting
from pipelines.training.samples.decoder import decode_block, unpacked
from pipelines.training.samples.stream import dataset, execution_options, packed_blocks, planned
from tests.unit.pipelines.training.test_stream import prepared


@pytest.mark.timeout(300)
def test_a_single_cpu_streams_a_long_plan_in_order(
    mini: MiniCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 000 micro-batches: their splitting must leave the only CPU to decoding. The set is
    named relatively.
    """
    monkeypatch.chdir(tmp_path)
    found = prepared(Path("set"))
    cluster = found.job.cluster.model_copy(update={"decode_tasks": 1, "data_pool": "data"})
    job = found.job.model_copy(
        update={"cluster": cluster, "run": found.job.run.model_copy(update={"steps": 40_000})}
    )
    found = replace(found, job=job)
    rows = packed_blocks(found, planned(found, 0, 0, 2), 2).slice(0, 12).to_pylist()
    context = ray.data.DataContext.get_current().copy()
    context.execution_options = execution_options(cluster)
    with ray.data.DataContext.current(context):
        stream = dataset(found, 0, 0, 2).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=1
        )
        begin = time.monotonic()
        for row, batch in zip(rows, stream, strict=False):
            assert batch["position"].tolist() == [
                m["first"] + i for m in row["shares"] for i in range(7)
            ]
            assert batch["ok"].all()
            assert batch["frames"].shape == (7 * len(row["shares"]), 5, 8, 8, 3)
            assert np.unique(batch["batch"]).tolist() == [14]
            # What crossed Ray is what was decoded, although the next block is in the making.
            expected = decode_block(
                unpacked(found.manifest, None, row), found.spec, None, FileReader()
            )
            assert batch["sample_id"].tolist() == expected["sample_id"].tolist()
            assert np.array_equal(batch["frames"], expected["frames"])
        # All of them would take two minutes to split.
        assert time.monotonic() - begin < 60
        del stream


@pytest.mark.timeout(120)
def test_what_no_decoding_process_can_mend_reaches_the_reader_as_one_line(
    mini: MiniCluster, tmp_path: Path
) -> None:
    found = prepared(tmp_path / "set")
    places = found.manifest.places
    moved = pc.replace_substring(places["data_file"], str(tmp_path), "s3://no-such-bucket")
    places = places.set_column(places.schema.get_field_index("data_file"), "data_file", moved)
    cluster = found.job.cluster.model_copy(update={"data_pool": "data"})
    found = replace(
        found,
        job=found.job.model_copy(update={"cluster": cluster}),
        manifest=replace(found.manifest, places=places),
    )
    context = ray.data.DataContext.get_current().copy()
    context.execution_options = execution_options(cluster)
    with (
        ray.data.DataContext.current(context),
        pytest.raises(
            StoppedError,
            match=r"^s3://no-such-bucket/set/.*bucket 'no-such-bucket' does not exist.*$",
        ),
        lasting(),
    ):
        next(iter(dataset(found, 0, 0, 2).iter_batches(batch_size=None, batch_format="numpy")))

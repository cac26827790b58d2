"""The stream of the plan through Ray Data, without training."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray.data

from clusters.mini import MiniCluster
from pipelines.training.stream import dataset, execution_options, packed_blocks, planned
from tests.unit.pipelines.training.test_stream import prepared


@pytest.mark.timeout(120)
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
    rows = packed_blocks(found, planned(found, 0, 0)).slice(0, 12).to_pylist()
    context = ray.data.DataContext.get_current().copy()
    context.execution_options = execution_options(cluster)
    with ray.data.DataContext.current(context):
        stream = dataset(found, 0, 0).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=1
        )
        begin = time.monotonic()
        for row, batch in zip(rows, stream, strict=False):
            assert batch["position"].tolist() == [
                m["first"] + i for m in row["micro"] for i in range(7)
            ]
            assert batch["ok"].all()
            assert batch["frames"].shape == (7 * len(row["micro"]), 5, 8, 8, 3)
            assert np.unique(batch["batch"]).tolist() == [14]
        # All of them would take two minutes to split.
        assert time.monotonic() - begin < 60
        del stream

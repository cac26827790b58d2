"""Plan slice to batches: Ray Data decodes in tasks on the data pool and streams to the training workers in plan order.

One block is one micro-batch of one rank, so the k-th blocks of all ranks are exactly the k-th global batch of the plan. A sample
that cannot be decoded keeps its place as an empty row (`ok` False) that never reaches the model.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions, ExecutionResources

from gwp.data.plan import plan_slice
from gwp.data.sample import SampleSpec, decode_samples
from pipelines.checkpoints import latest_committed
from pipelines.prepare import Prepared
from pipelines.stage import ClusterConfig

POOL = "gwp/pool"


def execution_options(cluster: ClusterConfig) -> ExecutionOptions:
    """Order kept, decoding on the data pool, bounded."""
    options = ExecutionOptions(preserve_order=True)
    if cluster.data_pool is not None:
        options.label_selector = {POOL: cluster.data_pool}
    options.resource_limits = ExecutionResources.for_limits(cpu=float(cluster.decode_tasks))
    return options


def remaining_dataset(prepared: Prepared) -> Callable[[], Any]:
    """What Ray Train asks for at every start of the workers: the plan after the last committed checkpoint."""

    def build() -> Any:
        found = latest_committed(prepared.uri)
        return dataset(prepared, found[1].samples_seen if found else 0)

    return build


def dataset(prepared: Prepared, samples_seen: int) -> Any:
    """Ray dataset of decoded micro-batches from plan position `samples_seen` to the end of the run."""
    job = prepared.job
    total = job.run.steps * job.engine.global_batch
    ids = plan_slice(prepared.manifest, job.run.seed, samples_seen, total - samples_seen, job.engine.global_batch)
    table = prepared.manifest.table.take(pa.array(ids))
    table = table.append_column("position", pa.array(np.arange(samples_seen, samples_seen + len(ids))))
    m = job.micro_batch
    blocks = [table.slice(i, m) for i in range(0, table.num_rows, m)]
    context = ray.data.DataContext.get_current()
    # A long evaluation or a slow checkpoint is no reason to end the stream.
    context.execution_no_progress_timeout_s = -1
    decode = partial(_decode_block, spec=prepared.spec)
    return ray.data.from_arrow(blocks).map_batches(decode, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


def _decode_block(table: pa.Table, spec: SampleSpec) -> dict[str, np.ndarray]:
    rows = table.to_pylist()
    samples, failures = decode_samples(rows, spec)
    return batch_columns(rows, samples, dict(failures), spec)


def batch_columns(
    rows: list[dict[str, Any]], samples: list[dict[str, Any]], failures: dict[str, str], spec: SampleSpec
) -> dict[str, np.ndarray]:
    """Columns of one block in row order; failed samples hold their place with `ok` False and the reason."""
    by_id = {s["sample_id"]: s for s in samples}
    template = samples[0] if samples else None
    columns: dict[str, list[Any]] = {}
    for row in rows:
        sample = by_id.get(row["sample_id"])
        values = sample or (_empty_like(template) if template else _empty(spec))
        values = {**values, "sample_id": row["sample_id"], "position": row["position"]}
        values |= {"ok": sample is not None, "reason": failures.get(row["sample_id"], "")}
        for key, value in values.items():
            columns.setdefault(key, []).append(value)
    return {key: np.stack(v) if isinstance(v[0], np.ndarray) else np.array(v) for key, v in columns.items()}


def _empty_like(sample: dict[str, Any]) -> dict[str, Any]:
    return {k: np.zeros_like(v) if isinstance(v, np.ndarray) else type(v)() for k, v in sample.items()}


def _empty(spec: SampleSpec) -> dict[str, Any]:
    p, d = spec.window.chunk, spec.model_dim
    return {
        "frames": np.zeros((spec.window.frames, spec.canvas.height, spec.canvas.width, 3), np.uint8),
        "state": np.zeros(d, np.float32), "actions": np.zeros((p, d), np.float32), "step_valid": np.zeros(p, bool),
        "dim_valid": np.zeros(d, bool), "has_action": False, "text_key": "", "embodiment_id": 0,
    }


def batches(shard: Any, micro_batch: int, expected: int, stride: int) -> Iterator[dict[str, np.ndarray]]:
    """This rank's micro-batches, checked against the plan: the first position must be `expected`, then every `stride`.

    A stream out of step with the checkpoint would repeat or lose samples silently, so it stops the attempt instead.
    """
    for batch in shard.iter_batches(batch_size=micro_batch, batch_format="numpy", prefetch_batches=2):
        got = batch["position"].tolist()
        if got != list(range(expected, expected + micro_batch)):
            raise RuntimeError(f"data stream at plan positions {got[0]}..{got[-1]}, expected {expected}")
        yield batch
        expected += stride

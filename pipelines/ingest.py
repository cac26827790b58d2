"""Plan slice to batches: Ray Data decodes in tasks on the data pool and streams to the training workers in plan order.

What is planned is a row per micro-batch of one rank, with the positions of its samples; the whole rows of the manifest are taken where
they are decoded. So a run of millions of steps costs the driver little more than its order. Each row becomes one block, so the k-th
blocks of all ranks are exactly the k-th global batch of the plan. A sample that cannot be decoded keeps its place as an empty row (`ok`
False) that never reaches the model.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions, ExecutionResources, TaskPoolStrategy

from gwp.data.cached import Cache
from gwp.data.canvas import SLOTS
from gwp.data.manifest import Manifest
from gwp.data.plan import plan_slice
from gwp.data.sample import SampleSpec, decode_samples
from pipelines.checkpoints import latest_committed
from pipelines.prepare import Prepared
from pipelines.stage import ClusterConfig

POOL = "gwp/pool"
_TOGETHER = 256
"""Micro-batches whose positions lie in one object: handing out objects costs the driver milliseconds each."""


def execution_options(cluster: ClusterConfig) -> ExecutionOptions:
    """Order kept, decoding on the data pool, bounded."""
    options = ExecutionOptions(preserve_order=True)
    if cluster.data_pool is not None:
        options.label_selector = {POOL: cluster.data_pool}
    options.resource_limits = ExecutionResources.for_limits(cpu=float(cluster.decode_tasks))
    return options


def remaining_dataset(prepared: Prepared) -> Callable[[], Any]:
    """What Ray Train asks for at every start of the workers: the plan after the last committed checkpoint."""
    slim = prepared.slim()

    def build() -> Any:
        whole, found = slim.whole(), latest_committed(slim.uri)
        return dataset(whole, found[1].step, found[1].samples_seen) if found else dataset(whole, 0, 0)

    return build


def planned(prepared: Prepared, step: int, samples_seen: int) -> pa.Table:
    """The rest of a run from optimiser step `step`, at plan position `samples_seen`: a row per micro-batch, those of one step in a row.

    Columns: first (plan position int64), batch (samples of the global batch, int64), ids (manifest positions, list of int64).
    """
    job = prepared.job
    steps = plan_slice(prepared.manifest, job.run.seed, samples_seen, job.run.steps - step, job.plan_rules)
    ids = np.concatenate([np.empty(0, np.int64), *steps])
    sizes = np.array([len(batch) for batch in steps], np.int64)
    micro = np.repeat(sizes // job.cluster.workers, job.cluster.workers)
    edges = np.concatenate([[0], np.cumsum(micro)])
    return pa.table({
        "first": samples_seen + edges[:-1], "batch": np.repeat(sizes, job.cluster.workers),
        "ids": pa.LargeListArray.from_arrays(pa.array(edges), pa.array(ids)),
    })


def dataset(prepared: Prepared, step: int, samples_seen: int) -> Any:
    """Ray dataset of decoded micro-batches from optimiser step `step`, at plan position `samples_seen`, to the end of the run."""
    rows = planned(prepared, step, samples_seen)
    context = ray.data.DataContext.get_current()
    # A block is a micro-batch, however large.
    context.target_max_block_size = None
    # A long evaluation or a slow checkpoint is no reason to end the stream.
    context.execution_no_progress_timeout_s = -1
    # Once in the object store of a node, and read there by all its tasks without a copy.
    samples = ray.put((prepared.manifest, prepared.cached))
    decode = partial(_decode_row, samples=samples, spec=prepared.spec, cache=prepared.cache)
    some = ray.data.from_arrow([rows.slice(start, _TOGETHER) for start in range(0, max(1, rows.num_rows), _TOGETHER)])
    single = some.repartition(target_num_rows_per_block=1)
    # Ray Data has no public way to say that splitting costs no CPU. With one, a small pool splits all of a long plan before it decodes
    # anything; and one such task keeps ahead of any number that decode. tests/cluster/test_stream.py notices when this changes.
    splitting = single._logical_plan.dag
    splitting.ray_remote_args["num_cpus"] = 0
    object.__setattr__(splitting, "compute", TaskPoolStrategy(size=1))
    return single.map_batches(decode, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)


def _decode_row(table: pa.Table, samples: ray.ObjectRef, spec: SampleSpec, cache: Cache | None) -> dict[str, np.ndarray]:
    """The micro-batch that the only row of a block names."""
    (row,) = table.to_pylist()
    return decode_block(block(*ray.get(samples), row), spec, cache)


def block(manifest: Manifest, cached: pa.Array | None, row: dict[str, Any]) -> pa.Table:
    """Manifest rows of a row of `planned`, each with its `position` in the plan, the size of its `batch` and where it is `cached`."""
    ids = np.array(row["ids"], np.int64)
    table = manifest.take(ids)
    if cached is not None:
        table = table.append_column("cached", cached.take(pa.array(ids)))
    table = table.append_column("position", pa.array(row["first"] + np.arange(len(ids))))
    return table.append_column("batch", pa.array(np.full(len(ids), row["batch"])))


def blocks(prepared: Prepared, step: int, samples_seen: int) -> list[pa.Table]:
    """All of `planned` as `decode_block` takes it: for short runs, and for looking at."""
    rows = planned(prepared, step, samples_seen).to_pylist()
    return [block(prepared.manifest, prepared.cached, row) for row in rows]


def decode_block(table: pa.Table, spec: SampleSpec, cache: Cache | None) -> dict[str, np.ndarray]:
    """Columns of one micro-batch, as `batch_columns` names them."""
    rows = table.to_pylist()
    samples, failures = decode_samples(rows, spec, cache)
    return batch_columns(rows, samples, dict(failures), spec, cache)


def batch_columns(
    rows: list[dict[str, Any]], samples: list[dict[str, Any]], failures: dict[str, str], spec: SampleSpec, cache: Cache | None = None
) -> dict[str, np.ndarray]:
    """Columns of one block in row order; failed samples hold their place with `ok` False and the reason."""
    # In order and not by id: a source of weight 2 may show a sample twice in one batch, under another crop.
    left = iter(samples)
    template = samples[0] if samples else None
    columns: dict[str, list[Any]] = {}
    for row in rows:
        sample = None if row["sample_id"] in failures else next(left)
        values = sample or (_empty_like(template) if template else _empty(row, spec, cache))
        values = {**values, "sample_id": row["sample_id"], "position": row["position"], "batch": row["batch"]}
        values |= {"ok": sample is not None, "reason": failures.get(row["sample_id"], "")}
        for key, value in values.items():
            columns.setdefault(key, []).append(value)
    return {key: np.stack(v) if isinstance(v[0], np.ndarray) else np.array(v) for key, v in columns.items()}


def _empty_like(sample: dict[str, Any]) -> dict[str, Any]:
    return {k: np.zeros_like(v) if isinstance(v, np.ndarray) else type(v)() for k, v in sample.items()}


def _empty(row: dict[str, Any], spec: SampleSpec, cache: Cache | None) -> dict[str, Any]:
    p, d = spec.window.chunk, spec.model_dim
    pictures = {"latents": np.zeros(row["cached"]["shape"], cache.dtype)} if cache else {
        "frames": spec.canvas_of(row).empty(spec.frames_of(row))}
    return {
        **pictures, "view_valid": np.zeros(len(SLOTS), bool),
        "state": np.zeros(d, np.float32), "actions": np.zeros((p, d), np.float32), "step_valid": np.zeros(p, bool),
        "dim_valid": np.zeros(d, bool), "has_action": False, "text_key": "", "embodiment_id": 0,
    }


def batches(shard: Any, samples_seen: int, rank: int, world: int) -> Iterator[dict[str, np.ndarray]]:
    """This rank's micro-batches, checked against the plan: each must be its share of the global batch that begins at `samples_seen`.

    A stream out of step with the checkpoint would repeat or lose samples silently, so it stops the attempt instead.
    """
    for batch in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
        size, got = int(batch["batch"][0]), batch["position"].tolist()
        share = size // world
        first = samples_seen + rank * share
        if got != list(range(first, first + share)):
            raise RuntimeError(f"data stream at plan positions {got[0]}..{got[-1]}, expected {first}..{first + share - 1}")
        yield batch
        samples_seen += size

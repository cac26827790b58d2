"""Plan slice to batches: Ray Data decodes in actors on the data pool and streams to the training workers in plan order.

One block is one micro-batch of one rank, or a few of consecutive steps where they are small, so the k-th blocks of all ranks are exactly
the next global batches of the plan. A sample that cannot be decoded keeps its place as an empty row (`ok` False) that never reaches the
model.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources

from gwp.data.cached import Cache
from gwp.data.canvas import SLOTS
from gwp.data.plan import plan_slice
from gwp.data.sample import Room, SampleSpec, decode_samples
from pipelines.checkpoints import latest_committed
from pipelines.prepare import Prepared
from pipelines.stage import ClusterConfig

POOL = "gwp/pool"
_CARRIED = 8 << 20
"""Bytes of pictures that a block may have before another micro-batch gets one of its own."""
_AT_HAND = 3
"""Blocks that a decoding process has been given, the one in work included."""


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
        return dataset(prepared, found[1].step, found[1].samples_seen) if found else dataset(prepared, 0, 0)

    return build


def blocks(prepared: Prepared, step: int, samples_seen: int) -> list[pa.Table]:
    """Manifest rows of each micro-batch, as `decode_block` takes them, in the order of the plan: rank after rank, step after step.

    From optimiser step `step`, at plan position `samples_seen`, to the end of the run.
    """
    job = prepared.job
    planned = plan_slice(prepared.manifest, job.run.seed, samples_seen, job.run.steps - step, job.plan_rules)
    ids = pa.array(np.concatenate([np.empty(0, np.int64), *planned]))
    table = prepared.manifest.table.take(ids)
    if prepared.cached is not None:
        table = table.append_column("cached", prepared.cached.take(ids))
    table = table.append_column("position", pa.array(np.arange(samples_seen, samples_seen + table.num_rows)))
    sizes = np.array([len(batch) for batch in planned], np.int64)
    table = table.append_column("batch", pa.array(np.repeat(sizes, sizes)))
    micro = np.repeat(sizes // job.cluster.workers, job.cluster.workers)
    return [table.slice(start, m) for start, m in zip(np.cumsum(micro) - micro, micro, strict=True)]


def dataset(prepared: Prepared, step: int, samples_seen: int) -> Any:
    """Ray dataset of decoded micro-batches; arguments as of `blocks`."""
    context = ray.data.DataContext.get_current()
    # A block is a micro-batch, however large.
    context.target_max_block_size = None
    # A long evaluation or a slow checkpoint is no reason to end the stream.
    context.execution_no_progress_timeout_s = -1
    return ray.data.from_arrow(carriers(prepared, blocks(prepared, step, samples_seen))).map_batches(
        Decoder, fn_constructor_args=(prepared.spec, prepared.cache), batch_size=None, batch_format="pyarrow", zero_copy_batch=True,
        # Actors have their next blocks at hand; between two tasks a core would be idle for a good part of the time of one.
        compute=ActorPoolStrategy(size=prepared.job.cluster.decode_tasks, max_tasks_in_flight_per_actor=_AT_HAND),
    )


def carriers(prepared: Prepared, micro: list[pa.Table]) -> list[pa.Table]:
    """Blocks that carry micro-batches: as many of one rank, of consecutive steps and of one shape, as Ray's work for a block is worth."""
    ranks, found = prepared.job.cluster.workers, []
    group: list[list[pa.Table]] = []
    like: tuple[Any, ...] = ()
    for step in (micro[i : i + ranks] for i in range(0, len(micro), ranks)):
        row = step[0].slice(0, 1).to_pylist()[0]
        shape = (row["kind"], row["bucket"], step[0].num_rows)
        if group and (shape != like or (len(group) + 1) * step[0].num_rows * _bytes_of(row, prepared) > _CARRIED):
            found += [pa.concat_tables(parts) for parts in zip(*group, strict=True)]
            group = []
        group, like = [*group, step], shape
    return found + [pa.concat_tables(parts) for parts in zip(*group, strict=True)]


def _bytes_of(row: dict[str, Any], prepared: Prepared) -> int:
    """What the pictures of a sample take."""
    if prepared.cache is not None:
        return int(np.prod(row["cached"]["shape"])) * int(prepared.cache.dtype.itemsize)
    canvas = prepared.spec.canvas_of(row)
    return prepared.spec.frames_of(row) * canvas.height * canvas.width * 3


class Decoder:
    """A decoding process. What it has read of data files and its memory for pictures stay from block to block."""

    def __init__(self, spec: SampleSpec, cache: Cache | None) -> None:
        self.spec, self.cache, self.room = spec, cache, Room()
        # Ray collects garbage often, and what was imported is none.
        gc.freeze()

    def __call__(self, table: pa.Table) -> dict[str, np.ndarray]:
        # Ray has copied the block before to its store when it asks for this one.
        return decode_block(table, self.spec, self.cache, self.room)


def decode_block(table: pa.Table, spec: SampleSpec, cache: Cache | None, room: Room | None = None) -> dict[str, np.ndarray]:
    """Columns of one micro-batch of `blocks`, as `batch_columns` names them; pictures in `room` where there is one."""
    rows = table.to_pylist()
    samples, failures = decode_samples(rows, spec, cache, room)
    return batch_columns(rows, samples, dict(failures), spec, cache)


def batch_columns(
    rows: list[dict[str, Any]], samples: list[dict[str, Any]], failures: dict[str, str], spec: SampleSpec, cache: Cache | None = None
) -> dict[str, np.ndarray]:
    """Columns of one block in row order; failed samples hold their place with `ok` False and the reason."""
    by_id = {s["sample_id"]: s for s in samples}
    template = samples[0] if samples else None
    columns: dict[str, list[Any]] = {}
    for row in rows:
        sample = by_id.get(row["sample_id"])
        values = sample or (_empty_like(template) if template else _empty(row, spec, cache))
        values = {**values, "sample_id": row["sample_id"], "position": row["position"], "batch": row["batch"]}
        values |= {"ok": sample is not None, "reason": failures.get(row["sample_id"], "")}
        for key, value in values.items():
            columns.setdefault(key, []).append(value)
    return {key: _stacked(v) if isinstance(v[0], np.ndarray) else np.array(v) for key, v in columns.items()}


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """`np.stack`, without a copy where they lie behind each other in one array already."""
    first, size = arrays[0], arrays[0].nbytes
    begin = first.__array_interface__["data"][0]
    for i, a in enumerate(arrays):
        if a.base is None or a.base is not first.base or not a.flags.c_contiguous or a.shape != first.shape or (
                a.__array_interface__["data"][0] != begin + i * size):
            return np.stack(arrays)
    return np.lib.stride_tricks.as_strided(first, (len(arrays), *first.shape), (size, *first.strides))


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
    for block in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
        start = 0
        while start < len(block["position"]):
            size = int(block["batch"][start])
            share = size // world
            batch = {name: column[start : start + share] for name, column in block.items()}
            got, first = batch["position"].tolist(), samples_seen + rank * share
            if got != list(range(first, first + share)):
                raise RuntimeError(f"data stream at plan positions {got[0]}..{got[-1]}, expected {first}..{first + share - 1}")
            yield batch
            samples_seen += size
            start += share

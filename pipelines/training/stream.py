"""Plan slice to batches: Ray Data decodes in actors on the data pool and streams to the
training workers in plan order.

What is planned is a row for the share that a rank has of a global batch, with the positions of
its samples; the whole rows of the manifest are taken where they are decoded. So a run of millions
of steps costs the driver little more than its order. A block is one share, or a few of consecutive
steps where they are small, so the k-th blocks of all ranks are exactly the next global batches of
the plan. A sample that cannot be decoded keeps its place as an empty row (`ok` False) that counts
for nothing.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources

from gwp.data.canvas import SLOTS
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import LatentCache
from gwp.data.plan.manifest import Manifest
from gwp.data.plan.plan import plan_slice
from gwp.data.records import PackedBlock, Pictured, Row, Sample, Share, StreamBatch
from pipelines.compat import split_without_cpu
from pipelines.jobs.train_job import POOL, ClusterConfig
from pipelines.training.checkpoints import latest_committed
from pipelines.training.failures import lasting
from pipelines.training.prepare import PreparedRun

_TOGETHER = 256
"""Blocks whose positions lie in one object: handing out objects costs the driver milliseconds
each.
"""
_CARRIED = 128 << 20
"""Bytes of pictures that a block may have before another share gets one of its own. A
block costs Ray about 25 ms of a core.
"""
_MOST = 8
"""Micro-batches of a block of pictures: the first batch waits until all of the first block is
decoded.
"""
_READ = 32 << 20
"""Bytes of cached latents that a block may have, likewise; however many shares, they are
read in no time.
"""
_AT_HAND = 3
"""Blocks that a decoding process has been given, the one in work included."""


def execution_options(cluster: ClusterConfig) -> ExecutionOptions:
    """Order kept, decoding on the data pool, bounded."""
    options = ExecutionOptions(preserve_order=True)
    if cluster.data_pool is not None:
        options.label_selector = {POOL: cluster.data_pool}
    options.resource_limits = ExecutionResources.for_limits(cpu=float(cluster.decode_tasks))
    return options


def remaining_dataset(prepared: PreparedRun) -> Callable[[], Any]:
    """What Ray Train asks for at every start of the workers: the plan after the last committed
    checkpoint.
    """
    slim = prepared.slim()

    def build() -> Any:
        # In Ray Train's controller, at each start: the newest checkpoint is looked up anew.
        whole = slim.whole()
        committed = latest_committed(slim.uri)
        if committed is None:
            return dataset(whole, 0, 0)
        _, checkpoint = committed
        return dataset(whole, checkpoint.step, checkpoint.samples_seen)

    return build


def planned(prepared: PreparedRun, step: int, samples_seen: int) -> pa.Table:
    """The rest of a run from optimiser step `step`, at plan position `samples_seen`: a row per
    share, those of one step in a row.

    Columns: first (plan position int64), batch (samples of the global batch, int64), ids
    (manifest positions, list of int64).
    """
    job = prepared.job
    steps = plan_slice(
        prepared.manifest, job.run.seed, samples_seen, job.run.steps - step, job.plan_rules
    )
    ids = np.concatenate([np.empty(0, np.int64), *steps])
    sizes = np.array([len(batch) for batch in steps], np.int64)
    # `[steps * ranks]`, the ranks of a step side by side; the job checks that they divide.
    micro = np.repeat(sizes // job.cluster.workers, job.cluster.workers)
    edges = np.concatenate([[0], np.cumsum(micro)])
    return pa.table(
        {
            "first": samples_seen + edges[:-1],
            "batch": np.repeat(sizes, job.cluster.workers),
            # Large: a long run may have more samples than 32-bit offsets can count.
            "ids": pa.LargeListArray.from_arrays(pa.array(edges), pa.array(ids)),
        }
    )


def dataset(prepared: PreparedRun, step: int, samples_seen: int) -> Any:
    """Ray dataset of decoded shares from optimiser step `step`, at plan position
    `samples_seen`, to the end of the run.
    """
    rows = packed_blocks(prepared, planned(prepared, step, samples_seen))
    context = ray.data.DataContext.get_current()
    # A block is a share, however large.
    context.target_max_block_size = None
    # So that the reason reaches the worker that reads; what Ray would wrap it in does not
    # travel with it.
    context.raise_original_map_exception = True
    # A long evaluation or a slow checkpoint is no reason to end the stream.
    context.execution_no_progress_timeout_s = -1
    # Once in the object store of a node, and read there by all that decode without a copy.
    samples = ray.put((prepared.manifest, prepared.cached))
    some = ray.data.from_arrow(
        [rows.slice(start, _TOGETHER) for start in range(0, max(1, rows.num_rows), _TOGETHER)]
    )
    single = some.repartition(target_num_rows_per_block=1)
    split_without_cpu(single)
    return single.map_batches(
        Decoder,
        fn_constructor_args=(samples, prepared.spec, prepared.cache),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        # Actors have their next blocks at hand; between two tasks a core would be idle for a
        # good part of the time of one.
        compute=ActorPoolStrategy(
            size=prepared.job.cluster.decode_tasks, max_tasks_in_flight_per_actor=_AT_HAND
        ),
    )


class Decoder:
    """A decoding process. What it has read of data files stays from block to block; what it
    gave away is never written to again.

    samples: reference to the manifest and the place of each sample in `cache`.
    """

    def __init__(self, samples: Any, spec: SampleSpec, cache: LatentCache | None) -> None:
        self.manifest, self.cached = ray.get(samples)
        self.spec, self.cache = spec, cache
        self.reader = FileReader()
        # Ray collects garbage often, and what was imported is none.
        gc.freeze()

    def __call__(self, table: pa.Table) -> StreamBatch:
        """The shares that the only row of a block names."""
        (row,) = table.to_pylist()
        with lasting():
            rows = unpacked(self.manifest, self.cached, row)
            return decode_block(rows, self.spec, self.cache, self.reader)


def packed_blocks(prepared: PreparedRun, rows: pa.Table) -> pa.Table:
    """A row per block, whose `shares` are rows of `planned`: as many of one rank, of consecutive
    steps and of one shape, as Ray's work for a block is worth.
    """
    ranks = prepared.job.cluster.workers
    ids = rows["ids"].combine_chunks()
    # Shapes are those of the first sample of rank 0: all ranks have the same at a step.
    first = ids.values.to_numpy()[ids.offsets.to_numpy()[:-1:ranks]]
    buckets = prepared.manifest.samples["bucket"].to_numpy()[first]
    places = prepared.manifest.place[first]
    clips = (prepared.manifest.places["kind"].to_numpy(zero_copy_only=False) == "clip")[places]
    sizes = rows["batch"].to_numpy()[::ranks] // ranks
    # How many steps fit into one block, by shape.
    most: dict[tuple[bool, int, int], int] = {}
    # Cut the steps into runs of one shape that are no longer than that, at `edges`.
    edges = [0]
    run = 0
    before = (False, 0, 0)
    for step, shape in enumerate(
        zip(clips.tolist(), buckets.tolist(), sizes.tolist(), strict=True)
    ):
        if shape not in most:
            size = shape[2] * _bytes_of(prepared, int(first[step]))
            most[shape] = max(
                1, min(_MOST, _CARRIED // size) if prepared.cache is None else _READ // size
            )
        if step and (shape != before or run == most[shape]):
            edges.append(step)
            run = 0
        run += 1
        before = shape
    edges.append(len(first))
    # Per run the row numbers of rank 0, then of rank 1 ...: so Ray deals blocks out to ranks.
    groups = [
        np.arange(a * ranks + rank, b * ranks, ranks)
        for a, b in pairwise(edges)
        for rank in range(ranks)
        if b > a
    ]
    order = np.concatenate([np.empty(0, np.int64), *groups])
    offsets = np.concatenate([[0], np.cumsum([len(g) for g in groups], dtype=np.int64)])
    micro = rows.take(pa.array(order)).to_struct_array()
    return pa.table(
        {"shares": pa.LargeListArray.from_arrays(pa.array(offsets), pa.concat_arrays(micro.chunks))}
    )


def unpacked(manifest: Manifest, cached: pa.Array | None, row: PackedBlock) -> pa.Table:
    """Manifest rows of a row of `packed_blocks`."""
    return pa.concat_tables([block(manifest, cached, share) for share in row["shares"]])


def _bytes_of(prepared: PreparedRun, sample: int) -> int:
    """What the pictures of a sample take."""
    if prepared.cache is not None and prepared.cached is not None:
        return int(np.prod(prepared.cached[sample].as_py()["shape"])) * int(
            prepared.cache.dtype.itemsize
        )
    (row,) = prepared.manifest.rows([sample])
    canvas = prepared.spec.canvas_of(row)
    return prepared.spec.frames_of(row) * canvas.height * canvas.width * 3


def block(manifest: Manifest, cached: pa.Array | None, row: Share) -> pa.Table:
    """Manifest rows of a row of `planned`, each with its `position` in the plan, the size of
    its `batch` and where it is `cached`.
    """
    ids = np.array(row["ids"], np.int64)
    table = manifest.take(ids)
    if cached is not None:
        table = table.append_column("cached", cached.take(pa.array(ids)))
    table = table.append_column("position", pa.array(row["first"] + np.arange(len(ids))))
    return table.append_column("batch", pa.array(np.full(len(ids), row["batch"])))


def blocks(prepared: PreparedRun, step: int, samples_seen: int) -> list[pa.Table]:
    """All of `planned` as `decode_block` takes it: for short runs, and for looking at."""
    rows = planned(prepared, step, samples_seen).to_pylist()
    return [block(prepared.manifest, prepared.cached, row) for row in rows]


def decode_block(
    table: pa.Table, spec: SampleSpec, cache: LatentCache | None, reader: FileReader
) -> StreamBatch:
    """Columns of shares, whose manifest rows these are."""
    rows: list[Row] = table.to_pylist()
    samples, failures = decode_samples(rows, spec, reader, cache)
    return batch_columns(rows, samples, dict(failures), spec, cache)


def batch_columns(
    rows: Sequence[Row],
    samples: Sequence[Sample],
    failures: dict[str, str],
    spec: SampleSpec,
    cache: LatentCache | None = None,
) -> StreamBatch:
    """Columns of one block in row order; failed samples hold their place with `ok` False and
    the reason.
    """
    # In order and not by id: a source of weight 2 may show a sample twice in one batch, under
    # another crop.
    left = iter(samples)
    # All samples of a block have one shape; where none is whole, it follows from the row.
    template = samples[0] if samples else None
    columns: dict[str, list[Any]] = {}
    for row in rows:
        sample = None if row["sample_id"] in failures else next(left)
        values: dict[str, Any] = {
            **(sample or (_empty_like(template) if template else _empty(row, spec, cache))),
            "sample_id": row["sample_id"],
            "position": row["position"],
            "batch": row["batch"],
            "ok": sample is not None,
            "reason": failures.get(row["sample_id"], ""),
        }
        for key, value in values.items():
            columns.setdefault(key, []).append(value)
    stacked = {
        key: _stacked(v) if isinstance(v[0], np.ndarray) else np.array(v)
        for key, v in columns.items()
    }
    return cast(StreamBatch, stacked)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """`np.stack`, without a copy where they lie behind each other in one array already."""
    first, size = arrays[0], arrays[0].nbytes
    begin = first.__array_interface__["data"][0]
    for i, a in enumerate(arrays):
        # Views of one array, each beginning where the one before it ended.
        if (
            a.base is None
            or a.base is not first.base
            or not a.flags.c_contiguous
            or a.shape != first.shape
            or (a.__array_interface__["data"][0] != begin + i * size)
        ):
            return np.stack(arrays)
    return np.lib.stride_tricks.as_strided(
        first, (len(arrays), *first.shape), (size, *first.strides)
    )


def _empty_like(sample: Sample) -> Sample:
    zeros = {
        k: np.zeros_like(v) if isinstance(v, np.ndarray) else type(v)() for k, v in sample.items()
    }
    return cast(Sample, zeros)


def _empty(row: Row, spec: SampleSpec, cache: LatentCache | None) -> Sample:
    p, d = spec.window.chunk, spec.model_dim
    pictured: Pictured = (
        {"latents": np.zeros(row["cached"]["shape"], cache.dtype)}
        if cache
        else {"frames": spec.canvas_of(row).empty(spec.frames_of(row))}
    )
    return {
        **pictured,
        "view_valid": np.zeros(len(SLOTS), bool),
        "state": np.zeros(d, np.float32),
        "actions": np.zeros((p, d), np.float32),
        "step_valid": np.zeros(p, bool),
        "dim_valid": np.zeros(d, bool),
        "has_action": False,
        "text_key": "",
        "embodiment_id": 0,
        "sample_id": "",
    }


def batches(shard: Any, samples_seen: int, rank: int, world: int) -> Iterator[StreamBatch]:
    """This rank's share of every global batch, checked against the plan: the first is of the one
    that begins at `samples_seen`.

    A stream out of step with the checkpoint would repeat or lose samples silently, so it stops
    the attempt instead.
    """
    for some in shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
        start = 0
        while start < len(some["position"]):
            size = int(some["batch"][start])
            share = size // world
            batch = {name: column[start : start + share] for name, column in some.items()}
            got, first = batch["position"].tolist(), samples_seen + rank * share
            # In order of ranks: the first `share` positions of a batch are those of rank 0.
            if got != list(range(first, first + share)):
                raise RuntimeError(
                    f"data stream at plan positions {got[0]}..{got[-1]}, expected "
                    f"{first}..{first + share - 1}"
                )
            yield cast(StreamBatch, batch)
            samples_seen += size
            start += share

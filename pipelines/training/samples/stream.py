"""Plan slice to batches: Ray Data decodes in actors on the data pool and streams to the
training workers in plan order.

What is planned is a row for the share that a rank has of a global batch, with the positions of
its samples; the whole rows of the manifest are taken where they are decoded. So a run of millions
of steps costs the driver little more than its order. A block is one share, or a few of consecutive
steps where they are small, so the k-th blocks of all ranks are exactly the next global batches of
the plan. A sample that cannot be decoded keeps its place as an empty row (`ok` False) that counts
for nothing; so does the padding of ranks that have a sample fewer than others (`shares`).
"""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from itertools import islice, pairwise
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from gwp.data.plan.plan import plan_slice
from gwp.data.records import StreamBatch
from pipelines.compat import split_without_cpu
from pipelines.jobs.cluster import POOL, ClusterConfig
from pipelines.training.checkpoint.checkpoints import latest_committed
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.control.stopped import lasting
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.decoder import Decoder, block
from pipelines.training.samples.shares import PADDING, counts_of, positions_of, rows_of

T = TypeVar("T")

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


class PlannedData(DataConfig):
    """Deals what is left of the plan out to the workers of a start, however many they are.

    Ray Train asks for it at every start, when it knows their number. What it hands over as the
    dataset stands for the plan only.
    """

    def __init__(self, prepared: PreparedRun) -> None:
        super().__init__(execution_options=execution_options(prepared.job.cluster))
        # Sent to all workers, as everything that Ray Train is told.
        self._prepared = prepared.slim()

    def configure(
        self,
        datasets: Mapping[str, Any],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **more: Any,
    ) -> Any:
        """The shards of each rank, by name of the dataset: the plan behind the last committed
        checkpoint.
        """
        with lasting():
            # In Ray Train's controller, where no error is tried again: workers that were lost
            # while storage is away wait for it here.
            committed, whole = patiently(
                lambda: (latest_committed(self._prepared.uri), self._prepared.whole())
            )
            step, seen = (committed[1].step, committed[1].samples_seen) if committed else (0, 0)
            data = dataset(whole, step, seen, world_size)
        (name,) = datasets
        return super().configure({name: data}, world_size, worker_handles, worker_node_ids, **more)


def planned(prepared: PreparedRun, step: int, samples_seen: int, world: int) -> pa.Table:
    """The rest of a run from optimiser step `step`, at plan position `samples_seen`, for `world`
    ranks: a row per share, those of one step in a row.

    Columns: those of `Share`; first, batch and rows int64, ids lists of int64.
    """
    job = prepared.job
    steps = plan_slice(
        prepared.manifest, job.run.seed, samples_seen, job.run.steps - step, job.plan_rules
    )
    ids = np.concatenate([np.empty(0, np.int64), *steps])
    sizes = np.array([len(batch) for batch in steps], np.int64)
    # `[steps * ranks]`, the ranks of a step side by side.
    micro = counts_of(sizes, world).ravel()
    edges = np.concatenate([[0], np.cumsum(micro)])
    return pa.table(
        {
            "first": samples_seen + edges[:-1],
            "batch": np.repeat(sizes, world),
            "rows": np.repeat(rows_of(sizes, world), world),
            # Large: a long run may have more samples than 32-bit offsets can count.
            "ids": pa.LargeListArray.from_arrays(pa.array(edges), pa.array(ids)),
        }
    )


def dataset(prepared: PreparedRun, step: int, samples_seen: int, world: int) -> Any:
    """Ray dataset of decoded shares of `world` ranks, from optimiser step `step`, at plan
    position `samples_seen`, to the end of the run.
    """
    rows = packed_blocks(prepared, planned(prepared, step, samples_seen, world), world)
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
        fn_constructor_args=(samples, prepared.spec, prepared.cache, prepared.job.run.name),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        # Actors have their next blocks at hand; between two tasks a core would be idle for a
        # good part of the time of one.
        compute=ActorPoolStrategy(
            size=prepared.job.cluster.decode_tasks, max_tasks_in_flight_per_actor=_AT_HAND
        ),
    )


def packed_blocks(prepared: PreparedRun, rows: pa.Table, ranks: int) -> pa.Table:
    """A row per block, whose `shares` are rows of `planned`: as many of one rank, of consecutive
    steps and of one shape, as Ray's work for a block is worth.
    """
    ids = rows["ids"].combine_chunks()
    # Shapes are those of the first sample of rank 0: all ranks have the same at a step.
    first = ids.values.to_numpy()[ids.offsets.to_numpy()[:-1:ranks]]
    buckets = prepared.manifest.samples["bucket"].to_numpy()[first]
    places = prepared.manifest.place[first]
    clips = (prepared.manifest.places["kind"].to_numpy(zero_copy_only=False) == "clip")[places]
    sizes = rows["rows"].to_numpy()[::ranks]
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


def _bytes_of(prepared: PreparedRun, sample: int) -> int:
    """What the pictures of a sample take."""
    if prepared.cache is not None and prepared.cached is not None:
        return int(np.prod(prepared.cached[sample].as_py()["shape"])) * int(
            prepared.cache.dtype.itemsize
        )
    (row,) = prepared.manifest.rows([sample])
    canvas = prepared.spec.canvas_of(row)
    return prepared.spec.frames_of(row) * canvas.height * canvas.width * 3


def blocks(prepared: PreparedRun, step: int, samples_seen: int, world: int) -> list[pa.Table]:
    """All of `planned` as `decode_block` takes it: for short runs, and for looking at."""
    rows = planned(prepared, step, samples_seen, world).to_pylist()
    return [block(prepared.manifest, prepared.cached, row) for row in rows]


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
            end = start + rows_of(size, world)
            batch = {name: column[start:end] for name, column in some.items()}
            got = batch["position"].tolist()
            wanted = positions_of(samples_seen, size, rank, world)
            if got != wanted:
                raise RuntimeError(
                    f"data stream at plan positions {_shown(got)}, expected {_shown(wanted)}"
                )
            yield cast(StreamBatch, batch)
            samples_seen += size
            start = end


def ahead(stream: Iterator[T]) -> Iterator[T]:
    """The same, but its first is made from now on, beside what the caller does."""
    first: Future[list[T]] = Future()

    def fetch() -> None:
        try:
            first.set_result(list(islice(stream, 1)))
        except BaseException as error:  # noqa: BLE001  raised where the first is asked for
            first.set_exception(error)

    # A daemon: a process that fails before the first is there does not wait for it.
    threading.Thread(target=fetch, daemon=True, name="gwp-stream").start()

    def all_of_it() -> Iterator[T]:
        yield from first.result()
        yield from stream

    return all_of_it()


def _shown(positions: list[int]) -> str:
    real = [position for position in positions if position != PADDING]
    return f"{real[0]}..{real[-1]}" if real else "of padding"

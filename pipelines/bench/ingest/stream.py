"""The stream itself, as training workers see it, and Ray's own reader of videos. A Ray cluster
must be there.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import ray.data

from pipelines.bench.ingest.sides import Side
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.stream import batches, dataset, execution_options


class _Worker:
    """A training worker without training: it takes batches as `pipelines.training.loop` does."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def take(self, shard: Any) -> tuple[np.ndarray, int]:
        """When each batch came (monotonic seconds) and how many good samples it had, `[batches,
        2]`; and bytes of pictures.
        """
        arrivals = []
        size = 0
        for batch in batches(shard, 0, self.rank, self.world):
            size += batch["latents" if "latents" in batch else "frames"].nbytes
            arrivals.append((time.monotonic(), float(batch["ok"].sum())))
        return np.array(arrivals).reshape(-1, 2), size


# Ray's decorator is typed to return the class itself, which has no `remote`.
_RemoteWorker: Any = ray.remote(num_cpus=1)(_Worker)


def stream(prepared: PreparedRun, warm: int) -> tuple[Side, float]:
    """All but the first and the last `warm` steps of a run, from the arrival of the first such
    batch to that of the first one behind them; and seconds to the first batch of all.
    """
    cluster = prepared.job.cluster
    world = cluster.max_workers
    workers = [_RemoteWorker.remote(rank, world) for rank in range(world)]
    try:
        # Workers take seconds to start, which is no matter of the stream.
        ray.get([w.__ray_ready__.remote() for w in workers], timeout=120)
        begin = time.monotonic()
        data = dataset(prepared, 0, 0, world)
        data.context.execution_options = execution_options(cluster)
        shards = data.streaming_split(world, equal=True)
        taken = ray.get(
            [w.take.remote(s) for w, s in zip(workers, shards, strict=True)], timeout=900
        )
    finally:
        for worker in workers:
            ray.kill(worker)
    arrivals = [rows for rows, _ in taken]
    # A global batch is there when its last worker has its part.
    started = max(rows[warm, 0] for rows in arrivals)
    ended = max(rows[-warm, 0] for rows in arrivals)
    samples = int(sum(rows[warm:-warm, 1].sum() for rows in arrivals))
    first = min(rows[0, 0] for rows in arrivals)
    return Side(samples, ended - started), first - begin


def read_videos(paths: Sequence[str], size: tuple[int, int], tasks: int) -> tuple[int, float]:
    """Frames of these files through `ray.data.read_videos`, scaled to `size` (height, width),
    and seconds from the first one on.
    """
    from gwp import storage

    filesystem, _ = storage.arrow_filesystem(paths[0])
    names = [storage.arrow_filesystem(path)[1] for path in paths]
    data = ray.data.read_videos(names, filesystem=filesystem, resize=size, concurrency=tasks)
    frames = 0
    begin = None
    for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2):
        # The clock starts at the first block, which does not count: before it, Ray starts up.
        if begin is None:
            begin = time.monotonic()
        else:
            frames += len(batch["frame_index"])
    return frames, time.monotonic() - (begin or 0.0)

"""`gwp bench ingest`: the stream into training workers, against bare decoding, a DataLoader and
Ray's own reader, side by side in one run.

All sides read the same samples in the same order with the same number of decoding processes.
The bare loops keep what the stream cannot do without: the frames themselves, sought or scanned
to as the reader does it, as RGB. They drop them, so they are the ceiling.
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import ray
import ray.data
import torch

from gwp.errors import GwpError
from pipelines.bench.act.bench import hardware
from pipelines.bench.ingest.jobs import Shape, made_set
from pipelines.bench.ingest.s3 import counted_s3
from pipelines.bench.ingest.sets import measure_set
from pipelines.bench.ingest.stream import stream
from pipelines.bench.ingest.watch import Watch, store


def bench_ingest(
    sets: Sequence[str], shape: Shape, origins: Sequence[str], cache: bool = True
) -> dict[str, Any]:
    """Everything that `gwp bench ingest` prints. `sets`: local folders, none: two small ones
    that are made; origins: where they are read from, `disk` and `s3`; cache: with the stream of
    cached latents.
    """
    with tempfile.TemporaryDirectory(prefix="gwp-bench-") as scratch, counted_s3() as s3:
        # Key frames 2 apart, as robot sets have them, and 60, as most other videos.
        sets = [str(Path(uri).resolve()) for uri in sets] or [
            made_set(Path(scratch), gop, (240, 320)) for gop in (2, 60)
        ]
        # Before Ray starts, so that a wrong name is told at once.
        for uri in sets:
            if not Path(uri).is_dir():
                raise GwpError(
                    f"{uri}: no such folder; sets to measure lie on this machine, their copy "
                    "in S3 is made from there"
                )
        start_ray(shape)
        try:
            results = [
                measure_set(uri, shape, origins, s3, Path(scratch) if cache else None)
                for uri in sets
            ]
        finally:
            ray.shutdown()
    return {
        "hardware": hardware(torch.device("cpu")),
        "cores": shape.cores,
        "workers": shape.workers,
        "canvas": list(shape.canvas),
        "window": {"chunk": shape.chunk, "stride": shape.stride},
        "clip": {"frames": shape.clip_frames, "fps": shape.clip_fps},
        "batch": shape.batch,
        "samples": shape.steps * shape.batch * shape.workers,
        "warm_up": shape.warm * shape.batch * shape.workers,
        "versions": {"ray": ray.__version__, "torch": torch.__version__, "av": av.__version__},
        "cached": "nothing but the set in the memory of S3 and of the page cache; with "
        "`cached`, latents in bfloat16",
        "sets": results,
    }


def start_ray(shape: Shape) -> None:
    """A cluster on this machine, as a stage starts it: a CPU per worker and decoding process,
    and one to spare.
    """
    # It listens on loopback, and nobody else's token fits it.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=shape.workers + shape.cores + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False


def soak(samples: int, shape: Shape) -> dict[str, Any]:
    """Memory while `samples` small ones (64 pixels) are streamed: MiB by kind of process in
    each tenth, and what was spilled.
    """
    with tempfile.TemporaryDirectory(prefix="gwp-bench-") as scratch:
        # Small pictures and a small set: what grows then is what the stream itself keeps.
        uri = made_set(Path(scratch), 2, (64, 64), episodes=12, rows=150, cameras=1)
        small = replace(
            shape,
            canvas=(64, 64),
            chunk=4,
            stride=1,
            # Rounded up to whole global batches.
            steps=-(-samples // (shape.batch * shape.workers)),
        )
        start_ray(small)
        try:
            prepared = small.prepared(uri)
            with Watch(1.0) as watch:
                side, _ = stream(prepared, small.warm)
            # Ray's counts end with it.
            object_store = store()
        finally:
            ray.shutdown()
    return {
        "samples": side.samples,
        "seconds": float(side.seconds),
        "samples_per_s": float(side.rate),
        "mb_by_tenth": _by_tenth([memory for _, memory in watch.seen]),
        "store": object_store,
    }


def _by_tenth(seen: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Medians of each tenth of what was seen; fewer than ten where less was seen."""
    edges = [i * len(seen) // 10 for i in range(11)]
    # By number and not by time: the watch looks at even intervals.
    tenths = []
    for start, stop in pairwise(edges):
        part = seen[start:stop]
        if part:
            tenths.append({kind: _median(part, kind) for kind in part[0]})
    return tenths


def _median(part: Sequence[dict[str, float]], kind: str) -> float:
    return float(np.median([memory[kind] for memory in part]))

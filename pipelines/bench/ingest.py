"""`gwp bench ingest`: the stream into training workers, against bare decoding, a DataLoader and
Ray's own reader, side by side in one run.

All sides read the same samples in the same order with the same number of decoding processes.
The bare loops keep what the stream cannot do without: the frames themselves, sought or scanned
to as the reader does it, as RGB. They drop them, so they are the ceiling.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from gwp import storage
from gwp.data.formats.lerobot.read import INFO
from gwp.data.latent_cache import LatentCache, sample_names
from gwp.data.video.decode import open_video, probe
from gwp.errors import GwpError
from pipelines.bench.act import hardware
from pipelines.bench.ingest_jobs import job_for, made_set, prepared_for
from pipelines.bench.ingest_sides import Side, bare, dataloader, wanted_of
from pipelines.bench.ingest_stream import read_videos, stream
from pipelines.bench.s3 import CountedS3, counted_s3
from pipelines.bench.watch import Watch, store
from pipelines.datasets.cache import build_cache
from pipelines.training.prepare import PreparedRun
from pipelines.training.stream import blocks, packed_blocks, planned, unpacked

_WHOLE_FRAMES = 17
"""Frames of the samples that are compared with `read_videos`, which gives every frame."""
_MORE = 10
"""Times as many steps for cached latents."""


@dataclass(frozen=True)
class Shape:
    """What is read. canvas: width and height, pixels; chunk, stride, clip_frames, clip_fps:
    windows of robots and of plain videos; batch: samples per micro-batch; steps: measured
    micro-batches of each worker; warm: those before them, and again behind them, so that as
    many are in work when the clock stops as when it starts; cores: decoding processes.
    """

    canvas: tuple[int, int] = (320, 384)
    chunk: int = 48
    stride: int = 12
    clip_frames: int = 5
    clip_fps: float = 5.0
    batch: int = 16
    steps: int = 40
    warm: int = 6
    workers: int = 2
    cores: int = 2

    def prepared(self, uri: str, whole: bool = False, fps: float | None = None) -> PreparedRun:
        """Its stream from the set at `uri`; `whole`: every frame of its videos once, at `fps`."""
        clip = {"frames": _WHOLE_FRAMES if whole else self.clip_frames, "fps": fps or self.clip_fps}
        return prepared_for(
            job_for(
                uri,
                canvas=self.canvas,
                chunk=self.chunk,
                stride=self.stride,
                clip=clip,
                batch=self.batch,
                workers=self.workers,
                tasks=self.cores,
                steps=self.steps + 2 * self.warm,
                whole=whole,
            )
        )


def bench_ingest(
    sets: Sequence[str], shape: Shape, places: Sequence[str], cache: bool = True
) -> dict[str, Any]:
    """Everything that `gwp bench ingest` prints. `sets`: local folders, none: two small ones
    that are made; places: disk, s3.
    """
    with tempfile.TemporaryDirectory(prefix="gwp-bench-") as scratch, counted_s3() as s3:
        sets = [str(Path(uri).resolve()) for uri in sets] or [
            made_set(Path(scratch), gop, (240, 320)) for gop in (2, 60)
        ]
        for uri in sets:
            if not Path(uri).is_dir():
                raise GwpError(
                    f"{uri}: no such folder; sets to measure lie on this machine, their copy "
                    "in S3 is made from there"
                )
        start_ray(shape)
        try:
            results = [
                _measure(uri, shape, places, s3, Path(scratch) if cache else None) for uri in sets
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


def _copy(uri: str, s3: CountedS3) -> str:
    """The set in S3; copied there when it is not."""
    remote = storage.join(s3.uri, Path(uri).name)
    if not storage.list_files(remote):
        storage.upload(uri, remote)
    return remote


def _measure(
    uri: str, shape: Shape, places: Sequence[str], s3: CountedS3, scratch: Path | None
) -> dict[str, Any]:
    """All sides of one set. The bare loops run before and after the stream of each place, and
    the mean counts: machines drift.
    """
    local = shape.prepared(uri)
    cut, last = shape.warm * shape.workers, (shape.warm + shape.steps) * shape.workers
    sides: dict[str, dict[str, Any]] = {}
    ratios, why, wanted, about = {}, "", 0, _videos(blocks(local, 0, 0))

    def told(name: str, figures: dict[str, Any]) -> None:
        sides[name] = figures
        print(
            f"{Path(uri).name}: {name} {figures['samples_per_s']:.1f} samples/s",
            file=sys.stderr,
            flush=True,
        )

    def alone() -> float:
        nonlocal wanted
        side, wanted = bare(*_as_packed(local, shape), local.spec, shape.cores)
        told(
            "pyav disk",
            _figures(side, wanted, shape) | {"decoded_per_used": (side.decoded or 0) / wanted},
        )
        return float(side.rate)

    for place in places:
        prepared = local if place == "disk" else shape.prepared(_copy(uri, s3))
        every, before = blocks(prepared, 0, 0), alone()
        apart = sum(
            len(times) for b in every[cut:last] for times in wanted_of(b, prepared.spec).values()
        )
        for name, by_sample in (("dataloader", False), ("dataloader by sample", True)):
            given = s3.given()
            with Watch() as watch:
                side = dataloader(every, (cut, last), prepared.spec, shape.cores, by_sample)
            figures = _figures(side, apart, shape) | {"peak_mb": watch.peak_mb}
            if side.decoded is not None and side.opened is not None:
                figures |= {
                    "decoded_per_used": side.decoded / apart,
                    "opens_per_thousand": 1e3 * side.opened / side.samples,
                }
            told(
                f"{name} {place}",
                figures | _from_s3(given, s3, place, len(every) / (last - cut) * apart),
            )
        told(f"stream {place}", _streamed(prepared, shape, wanted, s3, place))
        rates = {"pyav": (before + alone()) / 2}
        if scratch is not None:
            told(
                f"cached {place}",
                _from_cache(prepared, shape, wanted, s3, place, scratch / "cache" / Path(uri).name),
            )
        whole, why = _whole(prepared.job.data.sources[0].uri, about, shape)
        if whole:
            for name, figures in zip(("stream whole", "read_videos"), whole, strict=True):
                told(f"{name} {place}", figures)
        rates |= {
            name.removesuffix(f" {place}"): f["samples_per_s"]
            for name, f in sides.items()
            if name.endswith(place) and name != "pyav disk"
        }
        ratios[place] = _ratios(rates) | {
            "decoded_per_used": sides[f"dataloader {place}"]["decoded_per_used"]
        }
    return {
        "set": Path(uri).name,
        "videos": about,
        "read_videos": why,
        "sides": sides,
        "ratios": ratios,
        "frames_per_sample": wanted / (shape.steps * shape.workers * shape.batch),
    }


def _as_packed(prepared: PreparedRun, shape: Shape) -> tuple[list[pa.Table], list[pa.Table]]:
    """Blocks as the stream decodes them, which hold fewer different frames than their
    micro-batches: to warm up, and to measure.
    """
    found: tuple[list[pa.Table], list[pa.Table]] = ([], [])
    for row in packed_blocks(prepared, planned(prepared, 0, 0)).to_pylist():
        step = row["micro"][0]["first"] // (shape.batch * shape.workers)
        if step < shape.warm + shape.steps:
            found[step >= shape.warm].append(unpacked(prepared.manifest, prepared.cached, row))
    return found


def _ratios(rates: dict[str, float]) -> dict[str, float]:
    pairs = {
        "vs_pyav": ("stream", "pyav"),
        "vs_dataloader": ("stream", "dataloader"),
        "vs_dataloader_by_sample": ("stream", "dataloader by sample"),
        "vs_read_videos": ("stream whole", "read_videos"),
        "cached_vs_decoded": ("cached", "stream"),
    }
    return {
        name: rates[a] / rates[b] for name, (a, b) in pairs.items() if a in rates and b in rates
    }


def _from_cache(
    prepared: PreparedRun, shape: Shape, wanted: float, s3: CountedS3, place: str, folder: Path
) -> dict[str, Any]:
    """The stream of cached latents: the same samples first, and more of them, for it is soon
    through.
    """
    if not folder.exists():
        build_cache(prepared.job, str(folder), "bfloat16", 128.0, lambda *_, **__: None)
    uri = str(folder)
    if place == "s3":
        uri = storage.join(s3.uri, "cache", folder.name)
        storage.upload(folder, uri)
    cache, job = LatentCache.open(uri), prepared.job
    places = cache.find(
        "latents", sample_names(prepared.manifest.table, [s.uri for s in job.data.sources])
    )
    longer = replace(shape, steps=shape.steps * _MORE)
    run = job.run.model_copy(update={"steps": longer.steps + 2 * longer.warm})
    cached = replace(prepared, cache=cache, cached=places, job=job.model_copy(update={"run": run}))
    return _streamed(cached, longer, wanted * _MORE, s3, place)


def _streamed(
    prepared: PreparedRun, shape: Shape, wanted: float, s3: CountedS3, place: str
) -> dict[str, Any]:
    before = s3.given()
    with Watch() as watch:
        side, first = stream(prepared, shape.warm)
    every = wanted * (shape.steps + 2 * shape.warm) / shape.steps
    figures = _figures(side, wanted, shape) | {
        "first_batch_s": first,
        "peak_mb": watch.peak_mb,
        "store": store(),
    }
    return figures | _from_s3(before, s3, place, every)


def _figures(side: Side, frames: float, shape: Shape) -> dict[str, Any]:
    """`frames`: distinct ones in the measured samples, over all views."""
    return {
        "samples": side.samples,
        "seconds": float(side.seconds),
        "samples_per_s": float(side.rate),
        "samples_per_s_per_core": float(side.rate) / shape.cores,
        "frames_per_s_per_core": frames / float(side.seconds) / shape.cores,
    }


def _from_s3(before: Any, s3: CountedS3, place: str, frames: float) -> dict[str, float]:
    given = s3.given() - before
    return (
        {}
        if place == "disk"
        else {
            "s3_bytes_per_frame": given.bytes / frames,
            "s3_requests_per_thousand_frames": 1e3 * given.requests / frames,
            "s3_mb": given.bytes / 2**20,
        }
    )


def _videos(tables: Sequence[Any]) -> dict[str, Any]:
    """What kind of videos the blocks come from: codec, sides and distance of key frames, each
    with all values seen.
    """
    uris = {
        view["uri"]: view["bytes"]
        for table in tables
        for views in table["views"].to_pylist()
        for view in views
    }
    infos = []
    for uri, size in uris.items():
        with open_video(uri, size) as handle:
            infos.append(probe(handle))
    return {
        "files": len(uris),
        "codec": sorted({i.codec for i in infos}),
        "gop": sorted({i.gop for i in infos}),
        "size": sorted({f"{i.width}x{i.height}" for i in infos}),
        "fps": max(i.fps for i in infos),
    }


def _whole(
    uri: str, about: dict[str, Any], shape: Shape
) -> tuple[tuple[dict[str, Any], dict[str, Any]] | None, str]:
    """Every frame of the set's videos once: our stream and `read_videos`, or why that was left
    out. about: as `_videos` tells.
    """
    if find_spec("decord") is None:
        return None, "left out: it needs decord, which is not installed"
    if about["codec"] != ["h264"]:
        return None, f"left out: decord reads H.264, these are {', '.join(about['codec'])}"
    root = storage.join(uri, "videos") if storage.exists(storage.join(uri, INFO)) else uri
    prepared = shape.prepared(root, whole=True, fps=about["fps"])
    if prepared.manifest.table.num_rows < shape.batch * shape.workers:
        return None, "left out: the set has too few frames for a step of such windows"
    side, _ = stream(prepared, shape.warm)
    ours = _figures(side, side.samples * _WHOLE_FRAMES, shape)
    paths = sorted(
        {view["uri"] for views in prepared.manifest.table["views"].to_pylist() for view in views}
    )
    # As many files as give as many frames as we were given.
    each = max(1, prepared.manifest.table.num_rows * _WHOLE_FRAMES)
    paths *= max(1, -(-side.samples * _WHOLE_FRAMES // each))
    frames, seconds = read_videos(paths, (shape.canvas[1], shape.canvas[0]), shape.cores)
    return (
        ours,
        _figures(Side(round(frames / _WHOLE_FRAMES), seconds), frames, shape),
    ), "every frame of the videos once"


def soak(samples: int, shape: Shape) -> dict[str, Any]:
    """Memory while `samples` small ones (64 pixels) are streamed: MiB by kind of process in
    each tenth, and what was spilled.
    """
    with tempfile.TemporaryDirectory(prefix="gwp-bench-") as scratch:
        uri = made_set(Path(scratch), 2, (64, 64), episodes=12, rows=150, cameras=1)
        small = replace(
            shape,
            canvas=(64, 64),
            chunk=4,
            stride=1,
            steps=-(-samples // (shape.batch * shape.workers)),
        )
        start_ray(small)
        try:
            prepared = small.prepared(uri)
            with Watch(1.0) as watch:
                side, _ = stream(prepared, small.warm)
            found = store()
        finally:
            ray.shutdown()
    tenths = [
        {k: float(np.median([m[k] for _, m in part])) for k in part[0][1]}
        for part in (
            watch.seen[i * len(watch.seen) // 10 : (i + 1) * len(watch.seen) // 10]
            for i in range(10)
        )
        if part
    ]
    return {
        "samples": side.samples,
        "seconds": float(side.seconds),
        "samples_per_s": float(side.rate),
        "mb_by_tenth": tenths,
        "store": found,
    }

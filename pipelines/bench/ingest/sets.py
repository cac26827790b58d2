"""All sides of one set of `gwp bench ingest`, measured one after the other from where it lies.

Where a set lies is its origin: `disk`, or `s3` (the server on loopback).
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from gwp import storage
from gwp.data.formats.lerobot.read import INFO
from gwp.data.latent_cache import LatentCache, sample_names
from gwp.data.video.decode import open_video
from gwp.data.video.probe import probe
from gwp.errors import GwpError
from pipelines.bench.ingest.jobs import WHOLE_FRAMES, Shape
from pipelines.bench.ingest.s3 import CountedS3, Traffic
from pipelines.bench.ingest.sides import Side, Wanted, bare, dataloader, wanted_of
from pipelines.bench.ingest.stream import read_videos, stream
from pipelines.bench.ingest.watch import Watch, store
from pipelines.datasets.cache.cache import build_cache
from pipelines.training.prepare import PreparedRun
from pipelines.training.samples.decoder import unpacked
from pipelines.training.samples.stream import blocks, packed_blocks, planned

_MORE = 10
"""Times as many steps for cached latents."""

Figures = dict[str, Any]
"""What was measured of one side, by the names of the report."""


def measure_set(
    uri: str, shape: Shape, origins: Sequence[str], s3: CountedS3, scratch: Path | None
) -> dict[str, Any]:
    """The report of one set. uri: local folder; scratch: folder for a latent cache, None leaves
    that side out.
    """
    bench = _SetBench(uri, shape, s3, scratch)
    ratios = {origin: bench.measure(origin) for origin in origins}
    return {
        "set": bench.name,
        "videos": bench.videos,
        "read_videos": bench.read_videos,
        "sides": bench.sides,
        "ratios": ratios,
        "frames_per_sample": bench.frames / (shape.steps * shape.workers * shape.batch),
    }


class _SetBench:
    """One set and what was measured of it so far; made and used by `measure_set`.

    videos:      what kind they are, as `_videos` tells
    sides:       name of a side -> its figures
    frames:      different ones in the measured samples, over all views, as the stream packs them
    read_videos: what `ray.data.read_videos` was compared over, or why it was left out
    """

    def __init__(self, uri: str, shape: Shape, s3: CountedS3, scratch: Path | None) -> None:
        self.uri = uri
        self.shape = shape
        self.s3 = s3
        self.scratch = scratch
        self.name = Path(uri).name
        self.local = shape.prepared(uri)
        self.videos = _videos(blocks(self.local, 0, 0, self.shape.workers))
        self.sides: dict[str, Figures] = {}
        self.frames = 0
        self.read_videos = ""

    def measure(self, origin: str) -> dict[str, float]:
        """All sides from there; returns the ratios between them."""
        prepared = self.local if origin == "disk" else self.shape.prepared(_copy(self.uri, self.s3))
        # The bare loops run before and after the stream, and the mean counts: machines drift.
        before = self._bare()
        self._dataloaders(prepared, origin)
        self._note(f"stream {origin}", self._streamed(prepared, self.shape, self.frames, origin))
        rates = {"pyav": (before + self._bare()) / 2}
        # Then what has no bare loop beside it: cached latents, and all frames of the videos.
        if self.scratch is not None:
            folder = self.scratch / "cache" / self.name
            self._note(f"cached {origin}", self._from_cache(prepared, origin, folder))
        whole, self.read_videos = _whole(prepared.job.data.sources[0].uri, self.videos, self.shape)
        for name, figures in whole.items():
            self._note(f"{name} {origin}", figures)
        # The bare loops are in `rates` already, as the mean of both.
        for name, figures in self.sides.items():
            if name.endswith(origin) and name != "pyav disk":
                rates[name.removesuffix(f" {origin}")] = figures["samples_per_s"]
        decoded = self.sides[f"dataloader {origin}"]["decoded_per_used"]
        return _ratios(rates) | {"decoded_per_used": decoded}

    def _note(self, name: str, figures: Figures) -> None:
        """Keep them, and show that it goes on: a set takes minutes."""
        self.sides[name] = figures
        rate = figures["samples_per_s"]
        print(f"{self.name}: {name} {rate:.1f} samples/s", file=sys.stderr, flush=True)

    def _bare(self) -> float:
        """Samples per second of the bare loops, from disk."""
        warm, measured = _as_packed(self.local, self.shape)
        side, self.frames = bare(warm, measured, self.local.spec, self.shape.cores)
        figures = _figures(side, self.frames, self.shape)
        # What the ceiling itself decodes for each frame that it wants.
        figures["decoded_per_used"] = (side.decoded or 0) / self.frames
        self._note("pyav disk", figures)
        return float(side.rate)

    def _dataloaders(self, prepared: PreparedRun, origin: str) -> None:
        shape = self.shape
        every = blocks(prepared, 0, 0, shape.workers)
        # Micro-batches stand in the order of steps, one per worker and step.
        first = shape.warm * shape.workers
        end = (shape.warm + shape.steps) * shape.workers
        # More frames than the stream has to decode: here no two micro-batches travel together.
        frames = sum(_frames(wanted_of(b, prepared.spec)) for b in every[first:end])
        # S3 counts from the first micro-batch to the last, those that warm up included.
        all_frames = len(every) / (end - first) * frames
        for name, by_sample in (("dataloader", False), ("dataloader by sample", True)):
            before = self.s3.traffic()
            with Watch() as watch:
                side = dataloader(every, (first, end), prepared.spec, shape.cores, by_sample)
            figures = _figures(side, frames, shape) | {"peak_mb": watch.peak_mb}
            if side.decoded is not None and side.opened is not None:
                figures["decoded_per_used"] = side.decoded / frames
                figures["opens_per_thousand"] = 1e3 * side.opened / side.samples
            self._note(f"{name} {origin}", figures | self._from_s3(before, origin, all_frames))

    def _streamed(self, prepared: PreparedRun, shape: Shape, frames: float, origin: str) -> Figures:
        before = self.s3.traffic()
        with Watch() as watch:
            side, first = stream(prepared, shape.warm)
        figures = _figures(side, frames, shape) | {
            "first_batch_s": first,
            "peak_mb": watch.peak_mb,
            "store": store(),
        }
        # S3 counts warm-up too, before and behind what is measured.
        all_frames = frames * (shape.steps + 2 * shape.warm) / shape.steps
        return figures | self._from_s3(before, origin, all_frames)

    def _from_cache(self, prepared: PreparedRun, origin: str, folder: Path) -> Figures:
        """The stream of cached latents: the same samples first, and more of them, for it is
        soon through.
        """
        job = prepared.job
        # Once for all origins, from wherever the first of them has the set.
        if not folder.exists():
            build_cache(job, str(folder), "bfloat16", 128.0, lambda *_, **__: None)
        uri = str(folder)
        if origin == "s3":
            uri = storage.join(self.s3.uri, "cache", folder.name)
            storage.upload(folder, uri)
        cache = LatentCache.open(uri)
        sources = [source.uri for source in job.data.sources]
        cached = cache.find("latents", sample_names(prepared.manifest.table, sources))
        longer = replace(self.shape, steps=self.shape.steps * _MORE)
        run = job.run.model_copy(update={"steps": longer.steps + 2 * longer.warm})
        prepared = replace(
            prepared, cache=cache, cached=cached, job=job.model_copy(update={"run": run})
        )
        return self._streamed(prepared, longer, self.frames * _MORE, origin)

    def _from_s3(self, before: Traffic, origin: str, frames: float) -> dict[str, float]:
        """What S3 gave out since `before`, over all frames that were asked for meanwhile."""
        if origin == "disk":
            return {}
        traffic = self.s3.traffic() - before
        return {
            "s3_bytes_per_frame": traffic.bytes / frames,
            "s3_requests_per_thousand_frames": 1e3 * traffic.requests / frames,
            "s3_mb": traffic.bytes / 2**20,
        }


def _copy(uri: str, s3: CountedS3) -> str:
    """The set in S3; copied there when it is not."""
    remote = storage.join(s3.uri, Path(uri).name)
    if not storage.list_files(remote):
        storage.upload(uri, remote)
    return remote


def _frames(wanted: Wanted) -> int:
    return sum(len(times) for times in wanted.values())


def _as_packed(prepared: PreparedRun, shape: Shape) -> tuple[list[pa.Table], list[pa.Table]]:
    """Blocks as the stream decodes them, which hold fewer different frames than their
    micro-batches: to warm up, and to measure. GwpError when the first blocks hold all steps.
    """
    warm: list[pa.Table] = []
    measured: list[pa.Table] = []
    rows = planned(prepared, 0, 0, shape.workers)
    for row in packed_blocks(prepared, rows, shape.workers).to_pylist():
        # A block belongs where its first micro-batch does.
        step = row["shares"][0]["first"] // (shape.batch * shape.workers)
        if step < shape.warm + shape.steps:
            part = warm if step < shape.warm else measured
            part.append(unpacked(prepared.manifest, prepared.cached, row))
    if not measured:
        raise GwpError(
            f"--steps {shape.steps}: small micro-batches travel in blocks of several steps, and "
            "the first block holds all of these; give 16 or more, and --warm-up 8 or more"
        )
    return warm, measured


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


def _figures(side: Side, frames: float, shape: Shape) -> Figures:
    """`frames`: distinct ones in the measured samples, over all views."""
    return {
        "samples": side.samples,
        "seconds": float(side.seconds),
        "samples_per_s": float(side.rate),
        "samples_per_s_per_core": float(side.rate) / shape.cores,
        "frames_per_s_per_core": frames / float(side.seconds) / shape.cores,
    }


def _videos(tables: Sequence[pa.Table]) -> dict[str, Any]:
    """What kind of videos the blocks come from: codec, sides and distance of key frames, each
    with all values seen.
    """
    sizes = {
        view["uri"]: view["bytes"]
        for table in tables
        for views in table["views"].to_pylist()
        for view in views
    }
    infos = []
    for uri, size in sizes.items():
        with open_video(uri, size) as handle:
            infos.append(probe(handle))
    return {
        "files": len(sizes),
        "codec": sorted({i.codec for i in infos}),
        "gop": sorted({i.gop for i in infos}),
        "size": sorted({f"{i.width}x{i.height}" for i in infos}),
        "fps": max(i.fps for i in infos),
    }


def _whole(uri: str, videos: dict[str, Any], shape: Shape) -> tuple[dict[str, Figures], str]:
    """Every frame of the set's videos once, our stream and `read_videos`, and what was
    compared; or nothing, and why that was left out. videos: as `_videos` tells.
    """
    # Ray's reader decodes with decord.
    if find_spec("decord") is None:
        return {}, "left out: it needs decord, which is not installed"
    if videos["codec"] != ["h264"]:
        return {}, f"left out: decord reads H.264, these are {', '.join(videos['codec'])}"
    # `read_videos` knows files and no sets.
    root = storage.join(uri, "videos") if storage.exists(storage.join(uri, INFO)) else uri
    prepared = shape.prepared(root, whole=True, fps=videos["fps"])
    table = prepared.manifest.table
    # Windows of 17 frames: a small set may not have enough for one global batch.
    if table.num_rows < shape.batch * shape.workers:
        return {}, "left out: the set has too few frames for a step of such windows"
    side, _ = stream(prepared, shape.warm)
    ours = _figures(side, side.samples * WHOLE_FRAMES, shape)
    paths = sorted({view["uri"] for views in table["views"].to_pylist() for view in views})
    # As many files as give as many frames as we were given.
    each = max(1, table.num_rows * WHOLE_FRAMES)
    paths *= max(1, -(-side.samples * WHOLE_FRAMES // each))
    frames, seconds = read_videos(paths, (shape.canvas[1], shape.canvas[0]), shape.cores)
    theirs = _figures(Side(round(frames / WHOLE_FRAMES), seconds), frames, shape)
    return {"stream whole": ours, "read_videos": theirs}, "every frame of the videos once"

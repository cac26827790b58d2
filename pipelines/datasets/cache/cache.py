"""What `gwp data cache` does: decode every sample of a stage once, encode it in actors that
hold the codec, write shards.

A shard is a fixed range of the manifest and is written whole by one actor. So a run that is
killed loses the shards in work, and the next one writes only those that are not there.
CACHE.json comes last. See `gwp.data.latent_cache` for the form.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import (
    CACHE,
    PLAN,
    Key,
    LatentCache,
    NumberFormat,
    Part,
    read_header,
    shards_there,
    write_index,
)
from gwp.data.plan.manifest import Manifest
from gwp.errors import GwpError
from gwp.model.codecs.pca import check_frames
from gwp.model.codecs.text import load_text_encoder
from gwp.model.codecs.video import load_video_codec
from gwp.paths import absolute_paths
from pipelines.config.load import config_hash
from pipelines.console import warn
from pipelines.datasets.cache.rows import missing_shards, shapes, shard_rows, text_rows
from pipelines.datasets.cache.writers import LatentWriter, TextWriter, decode_block
from pipelines.jobs.cluster import POOL
from pipelines.jobs.resolve import (
    cache_key,
    init_uri,
    manifest_of,
    sample_spec,
    write_codec,
    write_text,
)
from pipelines.jobs.robots import read_embodiments, resolve_embodiments
from pipelines.jobs.train_job import TrainJob

# These say how a stage trains, not what its samples and codecs are.
_NOT_CACHED = (
    "run",
    "stage",
    "objective",
    "optimizer",
    "engine",
    "cluster",
    "data.batch_multiple",
    "data.batches",
    "data.together",
    "data.max_broken",
)
_ROUND = 4096
"""Shards that Ray is given at a time: their manifest rows lie in the object store."""
_PARALLEL = 16


@dataclass(frozen=True)
class CacheSummary:
    """A finished cache."""

    uri: str
    """Where it is."""
    samples: int
    """Samples with latents."""
    left_out: int
    """Samples that cannot be decoded; a stage that reads the cache skips them, as it would
    without.
    """
    texts: int
    """Text embeddings."""
    shards: int
    """Files of latents."""
    bytes: int
    """Of latents and embeddings."""
    bytes_per_sample: int
    """Latents of a sample, the mean."""
    encoded: int
    """Samples that this call encoded; the others were there."""
    seconds: float
    """Wall time of this call."""
    samples_per_s: float
    """Of those that this call encoded, preparation included."""


Progress = Callable[..., None]
"""Called with the samples done so far and, as fields, the newest figures."""


def cached_form(job: TrainJob) -> TrainJob:
    """The job as it is cached: centre crops, and nothing from a cache."""
    plain = {"augment": False, "zoom": 1.0, "light": 0.0, "cache": None}
    return job.model_copy(update={"data": job.data.model_copy(update=plain)})


def build_cache(
    job: TrainJob,
    uri: str,
    number_format: NumberFormat,
    shard_mb: float,
    progress: Progress,
    texts_from: Literal["encoder", "t5_embedding"] = "encoder",
) -> CacheSummary:
    """Cache the samples of a stage at `uri`. Goes on where an earlier call stopped; returns at
    once when it was finished.

    `shard_mb`: decoded frames of the samples of a shard, MiB; they pass through memory
    together. GwpError when another cache is there.
    """
    begin = time.monotonic()
    # What encodes stands in other folders.
    job, uri = absolute_paths(cached_form(job)), storage.absolute(uri)
    plan = plan_cache(job, uri, number_format, shard_mb, texts_from)
    if storage.exists(storage.join(uri, CACHE)):
        return _summary(uri, 0, begin)
    # Here, because a finished cache needs no cluster, and what trains is slow to import.
    from pipelines.jobs.growing import machines
    from pipelines.jobs.ray_start import ensure_ray

    ensure_ray(job)
    with machines(job):
        # They are there, or can never be.
        pass
    # As it was planned: what was added to the sets since would move the ranges of the shards.
    manifest = Manifest.load(storage.join(uri, "manifest.parquet"))
    # Latents: what earlier calls have written is not in `blocks`, and counts as done.
    table = shard_rows(manifest, job, plan["samples_per_shard"])
    blocks = missing_shards(table, shards_there(uri, "latents"))
    encoded, bytes_ = 0, 0
    done = table.num_rows - sum(b.num_rows for b in blocks)
    for row in _streamed(partial(_encoded, job, uri, number_format), blocks):
        encoded, bytes_ = encoded + row["samples"], bytes_ + row["bytes"]
        elapsed = time.monotonic() - begin
        progress(
            done + encoded,
            of=table.num_rows,
            samples_per_s=round(encoded / elapsed, 2),
            mb=round(bytes_ / 1e6, 1),
        )
    # Then texts, so that one kind of actors holds the GPUs at a time.
    every_text = text_rows(manifest, job, texts_from == "t5_embedding")
    texts = missing_shards(every_text, shards_there(uri, "texts"))
    embedded = 0
    for row in _streamed(partial(_embedded, job, uri, number_format), texts):
        embedded += row["samples"]
        progress(done + encoded, of=table.num_rows, texts=embedded)
    finish(
        uri, Key.model_validate(plan["key"]), table, every_text, plan["text_rows"], plan["text_dim"]
    )
    return _summary(uri, encoded, begin)


def plan_cache(
    job: TrainJob,
    uri: str,
    number_format: NumberFormat,
    shard_mb: float,
    texts_from: Literal["encoder", "t5_embedding"] = "encoder",
) -> dict[str, Any]:
    """What PLAN.json says, after writing it with the manifest and the codecs, or after checking
    that it is of this job.
    """
    # `run` is not compared, but its seed draws the clips that a linear codec is fitted on,
    # and its storage is where `init` may be. Shards stay as cut, whatever `shard_mb` says.
    request = (
        config_hash(job, exclude=_NOT_CACHED)
        + f" seed {job.run.seed} init {init_uri(job)} {number_format} {texts_from}"
    )
    plan_uri = storage.join(uri, PLAN)
    earlier = json.loads(storage.read_bytes(plan_uri)) if storage.exists(plan_uri) else None
    if earlier and earlier["request"] == request:
        return earlier
    # Another job may still mean the same samples and codecs: their key says so.
    reader = FileReader()
    init, embodiments = init_uri(job), resolve_embodiments(job, reader)
    manifest = manifest_of(job, embodiments, reader, warn)
    # No statistics: only frames are decoded.
    spec = sample_spec(job, embodiments, {})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_codec(job, init, manifest, spec, folder / "codec", reader)
        write_text(job, init, folder / "text")
        key = cache_key(job, manifest, folder, number_format).model_copy(
            update={"texts_from": texts_from}
        )
        if earlier:
            different = Key.model_validate(earlier["key"]).differences(key)
            if different:
                raise GwpError(
                    f"{uri} holds a cache with {'; '.join(different)}; give --out another "
                    "place, or remove that folder"
                )
            return earlier
        codec, text = load_video_codec(folder / "codec"), load_text_encoder(folder / "text")
        sizes = shapes(manifest, spec)
        # A shape costs nothing on the meta device, and a wrong one is told before the work.
        for shape in sizes:
            check_frames(torch.empty(1, *shape, dtype=torch.uint8, device="meta"), codec.spatial)
        largest = max(int(np.prod(shape)) for shape in sizes)
        (folder / "embodiments.json").write_text(
            json.dumps({n: e.model_dump(mode="json") for n, e in embodiments.items()}, indent=1)
        )
        storage.upload(folder, uri)
    manifest.save(storage.join(uri, "manifest.parquet"))
    # Written last, so that where a plan is, all that it speaks of is too.
    plan = {
        "request": request,
        "key": key.model_dump(mode="json"),
        "samples_per_shard": max(1, int(shard_mb * 2**20 / largest)),
        "text_rows": text.rows,
        "text_dim": text.dim,
        "job": job.model_dump(mode="json"),
    }
    storage.write_bytes(plan_uri, json.dumps(plan, indent=1).encode())
    return plan


def _streamed(
    build: Callable[[Sequence[pa.Table]], Any], blocks: Sequence[pa.Table]
) -> Iterator[dict[str, Any]]:
    """Rows of the Ray datasets that `build` makes of some blocks at a time. GwpError when one
    of them names an error.
    """
    for start in range(0, len(blocks), _ROUND):
        for row in build(blocks[start : start + _ROUND]).iter_rows():
            if row["error"]:
                raise GwpError(row["error"])
            yield row


def _dataset(blocks: Sequence[pa.Table]) -> Any:
    dataset = ray.data.from_arrow(list(blocks))
    # One block is one shard.
    dataset.context.target_max_block_size = None
    # An encoder may take longer for a shard than Ray waits for a sign of life.
    dataset.context.execution_no_progress_timeout_s = -1
    return dataset


def _actors(job: TrainJob, blocks: Sequence[pa.Table]) -> dict[str, Any]:
    """Settings of the stage that holds a codec: as many actors as the job has workers, and
    where those run.
    """
    c = job.cluster
    pool = {"label_selector": {POOL: c.train_pool}} if c.train_pool else {}
    return {
        "compute": ActorPoolStrategy(size=min(c.max_workers, len(blocks))),
        "num_cpus": c.cpus_per_worker,
        "num_gpus": 1 if c.gpu else 0,
        "batch_size": None,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        **pool,
    }


def _encoded(
    job: TrainJob, uri: str, number_format: NumberFormat, blocks: Sequence[pa.Table]
) -> Any:
    c = job.cluster
    spec = sample_spec(job, read_embodiments(uri), {})
    pool = {"label_selector": {POOL: c.data_pool}} if c.data_pool else {}
    decoded = _dataset(blocks).map_batches(
        partial(decode_block, spec=spec),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=TaskPoolStrategy(size=c.decode_tasks),
        **pool,
    )
    return decoded.map_batches(
        LatentWriter, fn_constructor_args=(uri, number_format, c.gpu), **_actors(job, blocks)
    )


def _embedded(
    job: TrainJob, uri: str, number_format: NumberFormat, blocks: Sequence[pa.Table]
) -> Any:
    args = (uri, number_format, job.cluster.gpu)
    return _dataset(blocks).map_batches(
        TextWriter, fn_constructor_args=args, **_actors(job, blocks)
    )


def finish(
    uri: str, key: Key, latents: pa.Table, texts: pa.Table, text_rows: int, text_dim: int
) -> None:
    """Write the index of all shards, and CACHE.json when it names all that it should."""
    note: dict[str, Any] = {}
    parts: tuple[tuple[Part, pa.Table], ...] = (("latents", latents), ("texts", texts))
    for part, wanted in parts:
        # Headers say what is in a shard without its numbers; reading them is mostly waiting.
        numbers = np.unique(wanted["shard"].to_numpy()).tolist()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            tables = list(pool.map(partial(read_header, uri, part), numbers))
        index = pa.concat_tables(tables)
        # Left by another plan, or by somebody else.
        if set(index["name"].to_pylist()) != set(wanted["name"].to_pylist()):
            raise GwpError(
                f"{uri}: shards of {part} hold other names than the manifest; remove "
                f"{storage.join(uri, part)} and run again"
            )
        write_index(uri, part, tables)
        # Shard -1 stands for what could not be decoded.
        shard, size = (
            pc.struct_field(index["place"], name).to_numpy() for name in ("shard", "bytes")
        )
        left_out = int((shard < 0).sum())
        note[part] = {
            "rows": len(index) - left_out,
            "left_out": left_out,
            "shards": len(numbers),
            "bytes": int(size.sum()),
        }
    LatentCache(uri, key, text_rows, text_dim).save(**note)


def _summary(uri: str, encoded: int, begin: float) -> CacheSummary:
    note = json.loads(storage.read_bytes(storage.join(uri, CACHE)))
    latents, texts = note["latents"], note["texts"]
    seconds = time.monotonic() - begin
    return CacheSummary(
        uri,
        latents["rows"],
        latents["left_out"],
        texts["rows"],
        latents["shards"],
        latents["bytes"] + texts["bytes"],
        latents["bytes"] // max(1, latents["rows"]),
        encoded,
        round(seconds, 2),
        round(encoded / seconds, 2),
    )

"""Everything a stage needs before its workers start: codec, text encoder, embodiments,
statistics, manifest. Written once per run.

Run folder: job.json, manifest.parquet, embodiments.json, stats.json, texts.json, codec/, text/,
and later checkpoints/, progress/, events/, quarantine/, final/.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gwp import storage
from gwp.data.decode import SampleSpec, decode_frames
from gwp.data.embodiment import Embodiment
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.latent_cache import Key, LatentCache, NumberFormat, sample_names
from gwp.data.plan.build import SCHEMA, Manifest, build_manifest
from gwp.data.plan.plan import Rules, make_plan, plan_slice
from gwp.data.stats.files import stats_for
from gwp.data.stats.normalise import Stats, compute_stats
from gwp.data.text import text_hash
from gwp.errors import GwpError
from gwp.model.codecs.pca import PcaCodec
from gwp.model.codecs.text import build_text_encoder, load_text_encoder
from gwp.model.codecs.video import build_video_codec, load_video_codec
from pipelines.config.load import config_hash
from pipelines.jobs.train_job import TrainJob

# Where a run is, how it restarts and which decay of logs it keeps do not change what it computes.
RUN_ONLY = (
    "run.storage",
    "run.experiment",
    "run.keep",
    "run.log_every",
    "run.checkpoint_every",
    "run.record_samples",
    "data.max_broken",
    "cluster",
)


@dataclass(frozen=True)
class PreparedRun:
    """A run folder that workers can start from."""

    uri: str
    job: TrainJob
    manifest: Manifest
    fingerprint: str
    """Of the manifest."""
    spec: SampleSpec
    config_hash: str
    init: str | None
    cache: LatentCache | None = None
    cached: pa.Array | None = None
    """Place of each manifest row in `cache`, as its `find` gives them."""

    def slim(self) -> "PreparedRun":
        """Without the samples, to be sent to many processes; those that need them call `whole`.
        Its manifest is empty.
        """
        return replace(self, manifest=Manifest.of(SCHEMA.empty_table()), cached=None)

    def whole(self) -> "PreparedRun":
        """The inverse of `slim`, out of the run folder."""
        manifest = Manifest.load(storage.join(self.uri, "manifest.parquet"))
        return replace(self, manifest=manifest, cached=_places(self.job, manifest, self.cache))


def run_uri(job: TrainJob) -> str:
    return storage.join(job.run.storage, job.run.name)


def init_uri(job: TrainJob) -> str | None:
    """Folder with `model/` (and `codec/`, `text/`) that weights start from, or a published
    checkpoint folder.
    """
    if job.init is None:
        return None
    if "/" not in job.init:
        final = storage.join(job.run.storage, job.init, "final")
        if not storage.exists(storage.join(final, "model", "config.json")):
            raise GwpError(
                f"init: run '{job.init}' has no finished weights below {job.run.storage}; run "
                "that stage first"
            )
        return final
    return job.init


def prepare(job: TrainJob) -> PreparedRun:
    """Build the run folder, or read it when the same job ran before; GwpError when another job
    has its name.
    """
    uri, digest = run_uri(job), config_hash(job, exclude=RUN_ONLY)
    if storage.exists(storage.join(uri, "job.json")):
        earlier = json.loads(storage.read_bytes(storage.join(uri, "job.json")))
        if earlier["config_hash"] != digest:
            raise GwpError(
                f"{uri} holds a run of another configuration; give run.name another name, or "
                "remove that folder"
            )
        return _read(uri, job, digest)
    init = init_uri(job)
    embodiments = resolve_embodiments(job)
    manifest = manifest_of(job, embodiments)
    # Here, and not in the workers, is where a mixture that fills no batch is told.
    make_plan(manifest, job.run.seed, 0, job.plan_rules)
    stats = compute_all_stats(job, embodiments)
    spec = sample_spec(job, embodiments, stats)
    cache = LatentCache.open(job.data.cache) if job.data.cache else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_codec(job, init, manifest, spec, folder / "codec")
        write_text(job, init, folder / "text")
        if cache:
            cache.require(cache_key(job, manifest, folder, cache.key.number_format))
            cache.find(
                "texts",
                pa.array(sorted({text_hash(t) for t in manifest.by_key.values()}), pa.string()),
            )
            _write_json(folder / "cache.json", cache.key.model_dump(mode="json"))
        _write_json(
            folder / "embodiments.json",
            {n: e.model_dump(mode="json") for n, e in embodiments.items()},
        )
        _write_json(folder / "stats.json", {n: s.to_json() for n, s in stats.items()})
        _write_json(folder / "texts.json", manifest.texts())
        _write_json(folder / "skipped.json", [dict(s) for s in manifest.skipped])
        storage.upload(folder, uri)
    manifest.save(storage.join(uri, "manifest.parquet"))
    # Last, so that a folder with job.json is complete.
    job_json = {"config_hash": digest, "job": job.model_dump(mode="json"), "init": init}
    storage.write_bytes(storage.join(uri, "job.json"), json.dumps(job_json, indent=1).encode())
    return PreparedRun(
        uri,
        job,
        manifest,
        manifest.fingerprint,
        spec,
        digest,
        init,
        cache,
        _places(job, manifest, cache),
    )


def _read(uri: str, job: TrainJob, digest: str) -> PreparedRun:
    embodiments, stats = read_embodiments(uri), read_stats(uri)
    manifest = Manifest.load(storage.join(uri, "manifest.parquet"))
    cache = LatentCache.open(job.data.cache) if job.data.cache else None
    if cache and cache.key != Key.model_validate_json(
        storage.read_bytes(storage.join(uri, "cache.json"))
    ):
        raise GwpError(
            f"data.cache {cache.uri} is not the one that {uri} began with; give run.name another name"
        )
    places = _places(job, manifest, cache)
    spec = sample_spec(job, embodiments, stats)
    return PreparedRun(
        uri, job, manifest, manifest.fingerprint, spec, digest, init_uri(job), cache, places
    )


def cache_key(job: TrainJob, manifest: Manifest, folder: Path, number_format: NumberFormat) -> Key:
    """What a cache of this job's samples depends on. `folder`: with its `codec/` and `text/`."""
    data = job.data
    return Key(
        codec=load_video_codec(folder / "codec").digest(),
        text=load_text_encoder(folder / "text").digest(),
        canvas=data.canvas,
        window=data.window,
        clip=data.clip,
        buckets=data.buckets,
        number_format=number_format,
        manifest=manifest.fingerprint,
    )


def _places(job: TrainJob, manifest: Manifest, cache: LatentCache | None) -> pa.Array | None:
    return cache.find("latents", manifest_names(manifest, job)) if cache else None


def manifest_names(manifest: Manifest, job: TrainJob) -> pa.Array:
    """`sample_names` of a whole manifest."""
    roots = [storage.absolute(s.uri) for s in job.data.sources]
    return pa.concat_arrays(
        [pa.array([], pa.string()), *(sample_names(rows, roots) for rows in manifest.pieces())]
    )


def read_embodiments(uri: str) -> dict[str, Embodiment]:
    raw: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, "embodiments.json")))
    return {n: Embodiment.model_validate(e) for n, e in raw.items()}


def read_stats(uri: str) -> dict[str, Stats]:
    raw: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, "stats.json")))
    return {n: Stats.from_json(s) for n, s in raw.items()}


def resolve_embodiments(job: TrainJob) -> dict[str, Embodiment]:
    """Complete each configured robot from the first data set that uses it."""
    chunk = job.data.window.chunk
    result = {}
    for name, config in job.data.embodiments.items():
        source = next((s for s in job.data.sources if s.embodiment == name), None)
        if source is None:
            raise GwpError(
                f"data.embodiments.{name}: no source uses it; remove it or set `embodiment: "
                f"{name}` on a source"
            )
        data = robots_at(source)
        if data is None:
            raise GwpError(
                f"{source.uri}: plain videos cannot describe robot {name}; remove `embodiment` "
                "from this source"
            )
        inferred = embodiment_of(
            data,
            name,
            chunk=chunk,
            replan=config.replan or max(1, chunk // 2),
            cameras=config.cameras,
            delta_mask=config.delta_mask or None,
            id=config.id,
        )
        changes = {
            "limits": config.limits,
            "resample": config.resample,
            "fps": config.fps or inferred.fps,
        }
        result[name] = Embodiment.model_validate(inferred.model_dump() | changes)
        widest = max(len(inferred.state_names), len(inferred.action_names))
        if widest > job.model_config_.action_channels:
            raise GwpError(
                f"embodiment {name} has {widest} state/action dimensions, model.action_channels is "
                f"{job.model_config_.action_channels}; raise it to at least {widest}"
            )
    return result


def compute_all_stats(job: TrainJob, embodiments: dict[str, Embodiment]) -> dict[str, Stats]:
    """Statistics of each robot: of its file, or over all its labelled sources under the
    loader's own window rule.
    """
    found = {}
    for name, embodiment in embodiments.items():
        sources, config = (
            [s for s in job.data.sources if s.embodiment == name and s.with_actions],
            job.data.embodiments[name],
        )
        if config.stats is not None:
            found[name] = stats_for(
                config.stats, embodiment, job.data.window, sources, config.stats_of_other_data
            )
        elif sources:
            found[name] = compute_stats(sources, embodiment, job.data.window)
    return found


def manifest_of(job: TrainJob, embodiments: dict[str, Embodiment]) -> Manifest:
    """Every sample that the job may read."""
    data = job.data
    return build_manifest(
        data.sources,
        embodiments=embodiments,
        window=data.window,
        clip=data.clip,
        buckets=data.buckets,
        curate=data.curate,
        max_broken=data.max_broken,
    )


def sample_spec(
    job: TrainJob, embodiments: dict[str, Embodiment], stats: dict[str, Stats]
) -> SampleSpec:
    return SampleSpec(
        canvas=job.data.canvas,
        window=job.data.window,
        clip=job.data.clip,
        embodiments=embodiments,
        stats=stats,
        model_dim=job.model_config_.action_channels,
        augment=job.data.augment,
        seed=job.run.seed,
        buckets=job.data.buckets,
    )


def write_codec(
    job: TrainJob, init: str | None, manifest: Manifest, spec: SampleSpec, folder: Path
) -> None:
    folder.mkdir()
    if job.codec is None:
        assert init is not None
        storage.download(storage.join(init, "codec"), folder)
    elif job.codec.kind == "pca" and job.data.cache:
        # Fitted anew, on this run's samples, it would not be the codec of the cache.
        storage.download(storage.join(job.data.cache, "codec"), folder)
        found = load_video_codec(folder)
        if (found.kind, found.channels, found.spatial) != (
            "pca",
            job.codec.channels,
            job.codec.spatial,
        ):
            raise GwpError(
                f"data.cache {job.data.cache} was made with a {found.kind} codec of "
                f"{found.channels} channels and blocks of "
                f"{found.spatial} pixels; correct codec, or make another cache with `gwp data cache`"
            )
    elif job.codec.kind == "pca":
        single = plan_slice(
            manifest, job.run.seed, 0, min(job.codec.fit_clips, len(manifest)), Rules.even(1)
        )
        frames, _ = decode_frames(manifest.rows(np.concatenate(single)), spec)
        clips = (torch.from_numpy(clip)[None] for clip in frames.values())
        PcaCodec.fit(clips, channels=job.codec.channels, spatial=job.codec.spatial).save(folder)
    else:
        build_video_codec(job.codec).save(folder)
    channels, wanted = load_video_codec(folder).channels, job.model_config_.in_channels
    if channels != wanted:
        raise GwpError(
            f"the codec gives {channels} latent channels, model.in_channels is {wanted}; make "
            "them equal"
        )


def write_text(job: TrainJob, init: str | None, folder: Path) -> None:
    folder.mkdir()
    if job.text is None:
        assert init is not None
        storage.download(storage.join(init, "text"), folder)
    else:
        build_text_encoder(job.text).save(folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))

"""What a job means before anything runs: statistics, samples, codec and text encoder; its robots are
in `robots`.

Planning, caching, inspecting and measuring need this much of a job and no training; the run
folder (`pipelines.training.prepare`) is written from it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gwp import storage
from gwp.data.decode import SampleSpec, decode_frames
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import Key, NumberFormat, sample_names
from gwp.data.plan.build import build_manifest, unheard
from gwp.data.plan.manifest import Manifest
from gwp.data.plan.plan import Rules, plan_slice
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.stats.files import stats_for
from gwp.data.stats.normalise import RANGES, Stats, compute_stats
from gwp.errors import GwpError
from gwp.model.codecs.pca import PcaCodec, PcaCodecConfig
from gwp.model.codecs.text import build_text_encoder, load_text_encoder
from gwp.model.codecs.video import build_video_codec, load_video_codec
from pipelines.jobs.train_job import TrainJob

FINAL_NOTE = "run.json"
"""File beside finished weights, written last: run, checkpoint and which weights they are."""


def run_uri(job: TrainJob) -> str:
    """Folder of the run."""
    return job.run.uri


def init_uri(job: TrainJob) -> str | None:
    """Folder with `model/` (and `codec/`, `text/`) that weights start from, or a published
    checkpoint folder.
    """
    if job.init is None:
        return None
    if job.init.startswith("models:/"):
        raise GwpError(f"init: {job.init} is known to the registry alone; give its folder here")
    # A name without a slash is a run beside this one, anything else a place.
    named = "/" not in job.init
    init = storage.join(job.run.storage, job.init, "final") if named else job.init.rstrip("/")
    # Those of a run are whole with the note that is written last.
    folder = init.removesuffix("/final")
    of_run = named or (folder != init and storage.exists(storage.join(folder, "job.json")))
    if of_run and not storage.exists(storage.join(init, FINAL_NOTE)):
        raise GwpError(
            f"init: {init} holds no finished weights; run that stage to its end first (the same "
            "command goes on where it stopped)"
        )
    return init


def cache_key(job: TrainJob, manifest: Manifest, folder: Path, number_format: NumberFormat) -> Key:
    """What a cache of this job's samples depends on. `folder`: with its `codec/` and `text/`."""
    data = job.data
    return Key(
        # Digests of what lies there: the configuration of a fitted codec says too little.
        codec=load_video_codec(folder / "codec").digest(),
        text=load_text_encoder(folder / "text").digest(),
        canvas=data.canvas,
        window=data.window,
        clip=data.clip,
        buckets=data.buckets,
        number_format=number_format,
        manifest=manifest.fingerprint,
    )


def manifest_names(manifest: Manifest, job: TrainJob) -> pa.Array:
    """`sample_names` of a whole manifest."""
    roots = [storage.absolute(s.uri) for s in job.data.sources]
    return pa.concat_arrays(
        # An empty one first: without samples there would be nothing to join.
        [pa.array([], pa.string()), *(sample_names(rows, roots) for rows in manifest.pieces())]
    )


def read_stats(uri: str) -> dict[str, Stats]:
    """Robot -> statistics, from a run folder."""
    raw: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, "stats.json")))
    return {n: Stats.from_json(s) for n, s in raw.items()}


def require_learning(job: TrainJob, manifest: Manifest, told: Callable[[str], None]) -> None:
    """GwpError when nothing of a manifest teaches anything under the job's losses; `told` of the
    sources of which nothing does.
    """
    if job.objective.video_weight > 0:
        return
    labelled = manifest.column("has_action")
    if not labelled.any():
        raise GwpError(
            "objective.video_weight 0 leaves actions alone to learn, and no sample of data.sources "
            "has any: give video_weight, or a source with actions"
        )
    source = manifest.column("source")
    for number in sorted(set(source.tolist()) - set(source[labelled].tolist())):
        told(
            f"{job.data.sources[number].uri} has no actions, and objective.video_weight 0 leaves "
            "nothing else to learn: its samples teach nothing"
        )


def compute_all_stats(
    job: TrainJob, embodiments: dict[str, Embodiment], reader: FileReader
) -> dict[str, Stats]:
    """Statistics of each robot: of its file, or over all its labelled sources under the
    loader's own window rule.
    """
    stats = {}
    for name, embodiment in embodiments.items():
        sources = [s for s in job.data.sources if s.embodiment == name and s.with_actions]
        config = job.data.embodiments[name]
        if config.stats is not None:
            # Compared with the sources unless the user says that they are of other data.
            other = config.stats_of_other_data
            stats[name] = stats_for(
                config.stats, embodiment, job.data.window, sources, other, reader
            )
        elif sources:
            stats[name] = compute_stats(sources, embodiment, job.data.window, reader)
        # A robot whose sources are all without actions needs none.
        if config.ranges and name in stats:
            said = stats[name].metadata | {RANGES: config.ranges}
            stats[name] = replace(stats[name], metadata=said)
    return stats


def manifest_of(
    job: TrainJob,
    embodiments: dict[str, Embodiment],
    reader: FileReader,
    tell: Callable[[str], None] = unheard,
    sources: Sequence[Source] | None = None,
) -> Manifest:
    """Every sample that the job may read. tell: is given what looks wrong and costs nothing;
    sources: others than those that train
    """
    data = job.data
    return build_manifest(
        sources or data.sources,
        embodiments=embodiments,
        window=data.window,
        clip=data.clip,
        buckets=data.buckets,
        curate=data.curate,
        max_broken=data.max_broken,
        reader=reader,
        tell=tell,
    )


def held_out(
    job: TrainJob,
    embodiments: dict[str, Embodiment],
    stats: dict[str, Stats],
    trained: Manifest,
    reader: FileReader,
) -> Manifest | None:
    """The samples that the job is judged by; GwpError when it trains on one of their episodes,
    or has no statistics for one of their robots.
    """
    if job.validation is None:
        return None
    whole = manifest_of(job, embodiments, reader, sources=job.validation.sources)
    shared = _recordings(whole) & _recordings(trained)
    if shared:
        raise GwpError(
            f"validation: {len(shared)} of its episodes or videos are also in data.sources, "
            f"{min(shared)} is one; choose others with `split`, `only` or `episodes` in both"
        )
    robots = whole.places["embodiment"].to_pylist()
    acting = {r for r, a in zip(robots, whole.places["has_action"].to_pylist(), strict=True) if a}
    if unknown := sorted(acting - set(stats)):
        raise GwpError(
            f"validation: no source in data.sources has actions of {', '.join(unknown)}, so there "
            "are no statistics for it; set `with_actions: false` there, or name a file of "
            f"statistics in data.embodiments.{unknown[0]}.stats"
        )
    count = min(job.validation.samples, len(whole))
    ids = np.linspace(0, len(whole) - 1, count).round().astype(np.int64)
    return Manifest.of(whole.take(ids), whole.skipped, whole.by_key, whole.rule)


def _recordings(manifest: Manifest) -> set[str]:
    """Episodes and videos of the samples, by set and name."""
    # Samples of an episode share a place; one of them is enough.
    _, first = np.unique(manifest.place, return_index=True)
    ids = manifest.samples["sample_id"].take(pa.array(first)).to_pylist()
    return {str(name).rpartition("/")[0] for name in ids}


def sample_spec(
    job: TrainJob, embodiments: dict[str, Embodiment], stats: dict[str, Stats]
) -> SampleSpec:
    """How a decoding process turns a row of the manifest into a sample of this job."""
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
        zoom=job.data.zoom,
        light=job.data.light,
    )


def write_codec(
    job: TrainJob,
    init: str | None,
    manifest: Manifest,
    spec: SampleSpec,
    folder: Path,
    reader: FileReader,
) -> None:
    """The video codec of the run into the new, local `folder`: that of `init`, a saved one, that of
    the cache, one that is fitted on samples, or the configured one. GwpError when it does not fit.
    """
    folder.mkdir()
    if job.codec is None:
        assert init is not None
        storage.download(storage.join(init, "codec"), folder)
    elif job.codec.kind == "pca" and job.codec.saved:
        uri = job.codec.saved
        _copy_codec(job.codec, uri, folder, f"codec.saved {uri} is", "or name another one")
    elif job.codec.kind == "pca" and job.data.cache:
        # Fitted anew, on this run's samples, it would not be the codec of the cache.
        uri = storage.join(job.data.cache, "codec")
        told = f"data.cache {job.data.cache} was made with"
        _copy_codec(job.codec, uri, folder, told, "or make another cache with `gwp data cache`")
    elif job.codec.kind == "pca":
        # The first of a plan are a draw over all sources, the same one for the same seed.
        count = min(job.codec.fit_clips, len(manifest))
        single = plan_slice(manifest, job.run.seed, 0, count, Rules.even(1))
        # Those that cannot be decoded are left out; the run names them when it meets them.
        frames, _ = decode_frames(manifest.rows(np.concatenate(single)), spec, reader)
        clips = (torch.from_numpy(clip)[None] for clip in frames.values())
        PcaCodec.fit(clips, channels=job.codec.channels, spatial=job.codec.spatial).save(folder)
    else:
        build_video_codec(job.codec).save(folder)
    # Read back, so that every way of writing it ends in the same check.
    channels = load_video_codec(folder).channels
    wanted = job.model_config_.in_channels
    if channels != wanted:
        raise GwpError(
            f"the codec gives {channels} latent channels, model.in_channels is {wanted}; make "
            "them equal"
        )


def _copy_codec(config: PcaCodecConfig, uri: str, folder: Path, told: str, mend: str) -> None:
    """A codec into the local `folder`; GwpError, which begins and ends like this, where it is not
    the configured one.
    """
    storage.download(uri, folder)
    codec = load_video_codec(folder)
    if (codec.kind, codec.channels, codec.spatial) != ("pca", config.channels, config.spatial):
        raise GwpError(
            f"{told} a {codec.kind} codec of {codec.channels} channels and blocks of "
            f"{codec.spatial} pixels; correct codec, {mend}"
        )


def write_text(job: TrainJob, init: str | None, folder: Path) -> None:
    """The text encoder of the run into the new, local `folder`: that of `init`, or the
    configured one.
    """
    folder.mkdir()
    if job.text is None:
        assert init is not None
        storage.download(storage.join(init, "text"), folder)
    else:
        build_text_encoder(job.text).save(folder)

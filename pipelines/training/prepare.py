"""Everything a stage needs before its workers start: codec, text encoder, embodiments,
statistics, manifest. Written once per run.

Run folder: job.json, manifest.parquet, validation.parquet, embodiments.json, stats.json, texts.json,
codec/, text/, embeddings/, and later checkpoints/, progress/, events/, quarantine/, final/.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from gwp import storage
from gwp.data.decode import SampleSpec
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import Key, LatentCache
from gwp.data.plan.manifest import SCHEMA, Manifest
from gwp.data.plan.plan import Plan, make_plan
from gwp.data.text import text_hash
from gwp.errors import GwpError
from gwp.model.codecs.embeddings import write_embeddings
from gwp.model.codecs.text import load_text_encoder
from gwp.paths import absolute_paths
from pipelines.config.load import config_hash
from pipelines.console import event, warn
from pipelines.jobs.resolve import (
    cache_key,
    compute_all_stats,
    held_out,
    manifest_names,
    manifest_of,
    read_stats,
    require_learning,
    run_uri,
    sample_spec,
    write_codec,
    write_text,
)
from pipelines.jobs.robots import notes, read_embodiments, resolve_embodiments
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.checkpoints import CheckpointManifest, latest_committed
from pipelines.training.control.changes import RUN_ONLY, as_begun, changes_of, require_allowed, told
from pipelines.training.measure.startup import StartUp
from pipelines.training.origin import moves, origin_of

EMBEDDINGS = "embeddings"
"""Folder of the run with all its instructions as the text encoder says them."""
# About 3 GB of a umT5-XXL, for each machine that trains.
_MOST_TEXTS = 20_000


@dataclass(frozen=True)
class PreparedRun:
    """A run folder that workers can start from. `prepare` makes it; the stream, the loop and
    the export read it.
    """

    uri: str
    """The run folder."""
    job: TrainJob
    """With absolute paths."""
    manifest: Manifest
    """Every sample of the run; empty in a `slim` one."""
    fingerprint: str
    """Of the manifest."""
    spec: SampleSpec
    """How a row of the manifest becomes a sample."""
    config_hash: str
    """Of the job without `RUN_ONLY`."""
    init: str | None
    """Folder of the weights that it starts from."""
    cache: LatentCache | None = None
    """Latents in place of videos."""
    cached: pa.Array | None = None
    """Place of each manifest row in `cache`, as its `find` gives them."""
    plan_hash: str = ""
    """Of the plan of the first epoch, as `gwp data plan` tells it: manifest, weights, seed,
    batches and the order they lead to.
    """
    validation: Manifest | None = None
    """The samples that the run is judged by."""

    def require_own(self, uri: str, checkpoint: CheckpointManifest) -> None:
        """GwpError when a checkpoint was written by another job, or by one that took its
        samples in another order.
        """
        if checkpoint.config_hash != self.config_hash:
            raise GwpError(
                f"{uri} was written by another configuration; give run.name another name"
            )
        # Checkpoints of earlier versions have the fingerprint of the manifest instead.
        if checkpoint.plan_hash not in (self.plan_hash, self.fingerprint):
            raise GwpError(
                f"{uri} was written with another order of samples (plan "
                f"{checkpoint.plan_hash[:12]}, now "
                f"{self.plan_hash[:12]}): its manifest or the way of planning changed; give "
                "run.name another name"
            )

    def slim(self) -> "PreparedRun":
        """Without the samples, to be sent to many processes; those that need them call `whole`.
        Its manifest is empty.
        """
        return replace(self, manifest=Manifest.of(SCHEMA.empty_table()), cached=None)

    def whole(self) -> "PreparedRun":
        """The inverse of `slim`, out of the run folder."""
        # The cache does not change, so places are found again instead of being sent.
        manifest = Manifest.load(storage.join(self.uri, "manifest.parquet"))
        return replace(self, manifest=manifest, cached=_places(self.job, manifest, self.cache))


def prepare(
    job: TrainJob, allowed: tuple[str, ...] = (), start: StartUp | None = None
) -> PreparedRun:
    """Build the run folder, or read it when the same job ran before; GwpError when another job
    has its name.

    allowed: fields that may have changed since the run began; start: told what it takes
    """
    start = start or StartUp()
    start.over("machines")
    given = job
    # Workers stand in other folders.
    job = absolute_paths(job)
    uri = run_uri(job)
    digest = config_hash(job, exclude=RUN_ONLY)
    if storage.exists(storage.join(uri, "job.json")):
        record = _record(uri)
        # Of the job as it came: with absolute paths it has all fields, and nobody knows which its
        # file gave.
        job = absolute_paths(as_begun(given, record["job"]))
        # Before anything is made of it: what has changed may not go with what lies there.
        _take_changes(uri, job, record, allowed)
        # What an alias means may have changed since.
        init = record["init"] if moves(job.init) else origin_of(job)
        found = _read(uri, job, record["config_hash"], init)
        start.over("plan")
        return found
    init = origin_of(job)
    reader = FileReader()
    embodiments = resolve_embodiments(job, reader)
    for text in notes(job, embodiments):
        event("note", text=text)
    manifest = manifest_of(job, embodiments, reader, warn)
    require_learning(job, manifest, warn)
    start.over("list")
    # Here, and not in the workers, is where a mixture that fills no batch is told.
    plan = make_plan(manifest, job.run.seed, 0, job.plan_rules)
    start.over("plan")
    stats = compute_all_stats(job, embodiments, reader)
    start.over("statistics")
    spec = sample_spec(job, embodiments, stats)
    validation = held_out(job, embodiments, stats, manifest, reader)
    cache = LatentCache.open(job.data.cache) if job.data.cache else None
    # Collected here first: what cannot be made leaves no half of a run folder behind.
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_codec(job, init, manifest, spec, folder / "codec", reader)
        write_text(job, init, folder / "text")
        # The codec and the encoder are written by now: their digests are part of the key.
        if cache:
            cache.require(cache_key(job, manifest, folder, cache.key.number_format))
            # It raises for a text that is not there: better now than at the step that needs it.
            texts = sorted({text_hash(t) for t in manifest.by_key.values()})
            cache.find("texts", pa.array(texts, pa.string()))
            _write_json(folder / "cache.json", cache.key.model_dump(mode="json"))
        # A cache has those that train.
        _encode_texts([m for m in (None if cache else manifest, validation) if m], folder)
        robots = {n: e.model_dump(mode="json") for n, e in embodiments.items()}
        _write_json(folder / "embodiments.json", robots)
        _write_json(folder / "stats.json", {n: s.to_json() for n, s in stats.items()})
        texts_of_all = (validation.texts() if validation else {}) | manifest.texts()
        _write_json(folder / "texts.json", texts_of_all)
        _write_json(folder / "skipped.json", [dict(s) for s in manifest.skipped])
        storage.upload(folder, uri)
    manifest.save(storage.join(uri, "manifest.parquet"))
    if validation:
        validation.save(storage.join(uri, "validation.parquet"))
    # Last, so that a folder with job.json is complete.
    job_json = {"config_hash": digest, "job": job.model_dump(mode="json"), "init": init}
    storage.write_bytes(storage.join(uri, "job.json"), json.dumps(job_json, indent=1).encode())
    found = _prepared(uri, job, manifest, spec, digest, init, cache, plan, validation)
    start.over("run folder")
    return found


def _read(uri: str, job: TrainJob, digest: str, init: str | None) -> PreparedRun:
    """What the first start wrote, so that data that changed since do not change the run."""
    embodiments = read_embodiments(uri)
    stats = read_stats(uri)
    manifest = Manifest.load(storage.join(uri, "manifest.parquet"))
    cache = LatentCache.open(job.data.cache) if job.data.cache else None
    if cache:
        # Another cache may lie at that place since.
        key = storage.read_bytes(storage.join(uri, "cache.json"))
        if cache.key != Key.model_validate_json(key):
            raise GwpError(
                f"data.cache {cache.uri} is not the one that {uri} began with; give run.name another name"
            )
    spec = sample_spec(job, embodiments, stats)
    plan = make_plan(manifest, job.run.seed, 0, job.plan_rules)
    validation = None
    if job.validation:
        validation = Manifest.load(storage.join(uri, "validation.parquet"))
    return _prepared(uri, job, manifest, spec, digest, init, cache, plan, validation)


def _prepared(
    uri: str,
    job: TrainJob,
    manifest: Manifest,
    spec: SampleSpec,
    digest: str,
    init: str | None,
    cache: LatentCache | None,
    plan: Plan,
    validation: Manifest | None,
) -> PreparedRun:
    """With what follows from the samples: their fingerprint, and their places in the cache."""
    return PreparedRun(
        uri=uri,
        job=job,
        manifest=manifest,
        fingerprint=manifest.fingerprint,
        spec=spec,
        config_hash=digest,
        init=init,
        cache=cache,
        cached=_places(job, manifest, cache),
        plan_hash=plan.hash,
        validation=validation,
    )


def _record(uri: str) -> dict[str, Any]:
    """What the first start, and those that changed something, noted of the job."""
    path = storage.join(uri, "job.json")
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise GwpError(f"{path} is no JSON; restore it, or give run.name another name") from error
    return record


def _take_changes(
    uri: str, job: TrainJob, record: dict[str, Any], allowed: tuple[str, ...]
) -> None:
    """Note in the run folder what changed since the last start; GwpError when that cannot be."""
    changes = changes_of(record["job"], job)
    require_allowed(uri, changes, allowed)
    if not changes:
        return
    committed = latest_committed(uri)
    done = committed[1].step if committed else 0
    if done > job.run.steps:
        raise GwpError(
            f"run.steps {job.run.steps}: {uri} has done {done} steps already; ask for as many at "
            "least, or give run.name another name"
        )
    stages = changes.get("engine.zero_stage", (None, None))
    if done and {0, 3} & set(stages):
        raise GwpError(
            f"engine.zero_stage was {stages[0]} and is {stages[1]}: the checkpoints of {uri} go on "
            "with their own stage; only 1 and 2 read each other's"
        )
    for line in told(changes, job):
        event("changed", text=line)
    # Its hash stays: checkpoints know the run by it.
    pairs = {name: list(pair) for name, pair in changes.items()}
    note = {"step": done, "time": time.time(), "changes": pairs}
    record |= {
        "job": job.model_dump(mode="json"),
        "changes": [*record.get("changes", []), note],
    }
    storage.write_bytes(storage.join(uri, "job.json"), json.dumps(record, indent=1).encode())


def _places(job: TrainJob, manifest: Manifest, cache: LatentCache | None) -> pa.Array | None:
    """Where each sample lies in the cache; GwpError when it lacks one."""
    return cache.find("latents", manifest_names(manifest, job)) if cache else None


def _encode_texts(manifests: Sequence[Manifest], folder: Path) -> None:
    """Encode all instructions once, beside the text encoder in `folder`."""
    texts: set[str] = set().union(*(m.by_key.values() for m in manifests))
    if not manifests:
        return
    if len(texts) > _MOST_TEXTS:
        event(
            "note",
            text=f"{len(texts)} texts are too many to keep their embeddings: each worker loads the "
            "text encoder and encodes what it meets; `gwp data cache` encodes them before",
        )
        return
    write_embeddings(load_text_encoder(folder / "text"), texts, folder / EMBEDDINGS)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))

"""What all cells share: recordings, one codec, and the latents of every mixture of sets. Each is
made once; what is there already is kept.
"""

import tempfile
from collections import Counter
from pathlib import Path

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.source import Source
from gwp.errors import GwpError
from gwp.machine import cores
from gwp.sim.benchmarks import find
from pipelines.console import event, progress, warn
from pipelines.datasets.cache.cache import build_cache
from pipelines.jobs.resolve import manifest_of, sample_spec, write_codec, write_text
from pipelines.jobs.robots import resolve_embodiments
from pipelines.jobs.train_job import TrainJob
from pipelines.studies.cells.pieces import StudyPlan
from pipelines.studies.cells.sets import Key, key, uncut

_INFO = "meta/info.json"
_SHARD_MB = 64.0


def record_missing(plan: StudyPlan) -> None:
    """Record the sets that are not there and that something of the plan sees."""
    # Simulators are an extra, which a study of sets that are there does not need.
    seen = plan.seen
    for name, one in plan.study.data.items():
        uri = plan.place(name)
        if isinstance(one, Source) or name not in seen:
            continue
        if storage.exists(storage.join(uri, _INFO)):
            continue
        from gwp.sim.record import record

        with progress(f"record {name}", one.episodes * len(one.tasks)) as bar:
            record(
                uri,
                find(one.benchmark),
                list(one.tasks),
                one.episodes,
                one.seed,
                noise=one.noise,
                size=one.size,
                max_steps=one.max_steps,
                with_actions=one.with_actions,
                workers=cores(),
                progress=bar.update,
            )


def require_nested(plan: StudyPlan) -> None:
    """GwpError when the first episodes of the labelled set do not hold as many of each task, as
    those of a set that is recorded here do. Recordings that were there have no tasks to count.
    """
    study = plan.study
    labelled = study.data[study.labelled]
    if isinstance(labelled, Source):
        return
    uri = plan.place(study.labelled)
    robots = robots_at(Source(uri=uri), FileReader())
    if robots is None:
        raise GwpError(f"{uri}: no robot set there; data.{study.labelled} needs states and actions")
    tasks = len(labelled.tasks)
    texts = [episode.text_at(0) for episode in robots.episodes]
    for count in study.demonstrations:
        each = Counter(texts[: count * tasks])
        if len(each) != tasks or set(each.values()) != {count}:
            raise GwpError(
                f"{uri}: its first {count * tasks} episodes are {dict(each)}, and {count} of each of "
                f"{tasks} tasks are needed; record it with `gwp data record`, tasks alternate then"
            )


def make_codec(plan: StudyPlan) -> None:
    """The codec and text encoder of all arms."""
    if storage.exists(storage.join(plan.codec, "text", "text.json")):
        return
    job = next(iter(plan.cells.values())).job
    seen: dict[Key, Source] = {}
    robots = dict(job.data.embodiments)
    wanted = {key(plan.study, plan.source(name)) for name in plan.study.fitted_on}
    for other in plan.jobs:
        robots |= other.data.embodiments
        for source in other.data.sources:
            if (own := key(plan.study, source)) not in wanted:
                continue
            # Where one stage looks at the robot and another at the pictures alone, the robot counts.
            if own not in seen or source.embodiment:
                seen[own] = uncut(plan.study, source)
    if len(seen) < len(wanted):
        raise GwpError(
            f"codec_data: no stage of these cells reads all of {', '.join(plan.study.fitted_on)}; name "
            "sets that one reads"
        )
    named = {source.embodiment for source in seen.values()}
    data = job.data.model_copy(
        update={
            "sources": tuple(seen.values()),
            "cache": None,
            # Of pictures as they are, whatever training makes of them.
            "augment": False,
            "zoom": 1.0,
            "light": 0.0,
            "embodiments": {name: robot for name, robot in robots.items() if name in named},
        }
    )
    study = plan.study
    job = job.model_copy(
        update={"data": data, "init": None, "codec": study.codec, "text": study.text}
    )
    reader = FileReader()
    embodiments = resolve_embodiments(job, reader)
    manifest = manifest_of(job, embodiments, reader, warn)
    spec = sample_spec(job, embodiments, {})
    event("codec", codec=study.codec.kind, samples=len(manifest))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_codec(job, None, manifest, spec, folder / "codec", reader)
        write_text(job, None, folder / "text")
        # The text encoder last: with it both are there.
        storage.upload(folder / "codec", storage.join(plan.codec, "codec"))
        storage.upload(folder / "text", storage.join(plan.codec, "text"))


def make_caches(plan: StudyPlan) -> None:
    """The latents of every mixture of sets, encoded once for all seeds, arms and demonstrations; none
    where cells train from pictures.
    """
    jobs: dict[str, TrainJob] = {}
    for job in plan.jobs:
        if job.data.cache is None:
            continue
        # Fewer demonstrations are a part of the most.
        whole = tuple(uncut(plan.study, source) for source in job.data.sources)
        jobs.setdefault(
            job.data.cache,
            job.model_copy(
                update={
                    "data": job.data.model_copy(update={"sources": whole}),
                    "init": plan.codec,
                    "codec": None,
                    "text": None,
                }
            ),
        )
    for uri, job in jobs.items():
        with progress(f"latents {uri.rpartition('/')[2]}") as bar:
            build_cache(job, uri, "bfloat16", _SHARD_MB, bar.update)

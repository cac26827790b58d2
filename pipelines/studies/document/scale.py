"""The same study, smaller: to see in minutes that it runs to its end. It shows nothing else."""

from collections.abc import Iterator, Mapping, Sequence

from gwp.sim.benchmarks import find
from pipelines.jobs.train_job import TrainJob
from pipelines.studies.document.judgements import (
    ClosedLoopJudgement,
    Judgement,
    LatencyJudgement,
    VideoJudgement,
)
from pipelines.studies.document.sets import SetConfig, StudySet
from pipelines.studies.document.study import Comparison, Study

# Below them nothing that a study is made of can run.
_LEAST_STEPS = 6
_LEAST_MAX_STEPS = 24
_LEAST_CLIPS = 2
_FEW = 0.2
"""Below this the first two seeds, and the least and the most demonstrations, stand for all."""


def times(value: int, factor: float, least: int = 1) -> int:
    """`value` scaled, as a whole number of at least `least`; never more than `value`."""
    return min(value, max(least, round(value * factor)))


def scaled(study: Study, factor: float) -> Study:
    """Fewer recordings, demonstrations and episodes; at 1 the study itself."""
    if factor == 1:
        return study
    counts: Sequence[int] = study.demonstrations
    seeds: Sequence[int] = study.seeds
    if factor < _FEW:
        counts, seeds = [*counts[:1], *counts[-1:]], seeds[:2]
    demonstrations: list[int] = []
    for count in dict.fromkeys(counts):
        # Still ascending.
        least = demonstrations[-1] + 1 if demonstrations else 1
        demonstrations.append(times(count, factor, least))
    most = max(demonstrations, default=1)
    data: dict[str, StudySet] = {
        name: _set(one, factor, most if name == study.labelled else 1)
        for name, one in study.data.items()
    }
    smaller = dict(zip(dict.fromkeys(counts), demonstrations, strict=True))
    return study.model_copy(
        update={
            "name": f"{study.name}-x{factor:g}",
            "data": data,
            "demonstrations": tuple(demonstrations),
            "seeds": tuple(seeds),
            "judge": tuple(_judgement(one, factor) for one in study.judge),
            "compare": tuple(_comparisons(study, smaller)),
        }
    )


def _set(one: StudySet, factor: float, least: int) -> StudySet:
    if not isinstance(one, SetConfig):
        # Nothing of it has to be made.
        return one
    return one.model_copy(update={"episodes": times(one.episodes, factor, least)})


def _comparisons(study: Study, smaller: Mapping[int, int]) -> Iterator[Comparison]:
    """Those whose numbers of demonstrations are still there."""
    for pair in study.compare:
        if pair.demonstrations is None:
            yield pair
        elif all(count in smaller for count in pair.demonstrations):
            a, b = (smaller[count] for count in pair.demonstrations)
            yield pair.model_copy(update={"demonstrations": (a, b)})


def _judgement(one: Judgement, factor: float) -> Judgement:
    if isinstance(one, ClosedLoopJudgement):
        episodes = times(one.episodes, factor)
        max_steps = times(one.max_steps or find(one.benchmark).steps, factor, _LEAST_MAX_STEPS)
        return one.model_copy(update={"episodes": episodes, "max_steps": max_steps})
    if isinstance(one, VideoJudgement):
        return one.model_copy(update={"clips": times(one.clips, factor, _LEAST_CLIPS)})
    if isinstance(one, LatencyJudgement):
        return one.model_copy(update={"repeats": times(one.repeats, factor, 3)})
    return one


def scaled_job(job: TrainJob, factor: float) -> TrainJob:
    """Fewer steps, two checkpoints and a small codec fit; at 1 the job itself."""
    if factor == 1:
        return job
    steps = times(job.run.steps, factor, _LEAST_STEPS)
    every = min(times(job.run.checkpoint_every, factor), max(1, steps // 2))
    run = job.run.model_copy(update={"steps": steps, "checkpoint_every": every})
    warmup = times(job.optimizer.warmup_steps, factor, 0)
    optimizer = job.optimizer.model_copy(update={"warmup_steps": warmup})
    validation = job.validation
    if validation:
        validation = validation.model_copy(
            update={
                "samples": times(validation.samples, factor, 8),
                "looked_at": times(validation.looked_at, factor, 4),
            }
        )
    return job.model_copy(update={"run": run, "optimizer": optimizer, "validation": validation})

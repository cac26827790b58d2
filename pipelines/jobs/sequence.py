"""Stages that are trained one after another: what can be known of them before the first begins."""

from collections.abc import Sequence

from gwp import storage
from gwp.errors import GwpError
from gwp.model.weights.derive import differences
from gwp.paths import absolute_paths
from pipelines.jobs.train_job import TrainJob


def require_sequence(jobs: Sequence[TrainJob]) -> None:
    """GwpError when stages cannot follow each other in this order: two of them are one run, a
    parent comes behind its child, or has another model.
    """
    places = [absolute_paths(job).run.uri for job in jobs]
    for number, (job, place) in enumerate(zip(jobs, places, strict=True)):
        if place in places[:number]:
            raise GwpError(f"two of the files are the run {place}; give one another run.name")
        parent = parent_of(job, places)
        if parent is None:
            continue
        if parent >= number:
            raise GwpError(
                f"{job.run.name} starts from {jobs[parent].run.name}, which is given behind it; give "
                "the files in the order in which they are trained"
            )
        # The weights are taken as they are; the third stage must not find out after two. They are
        # the same whatever sees what.
        theirs = jobs[parent].model_config_.model_dump()
        other = [f"{k} {v}" for k, v in differences(theirs, job.model_config_).items()]
        if other:
            raise GwpError(
                f"{job.run.name} starts from {jobs[parent].run.name}, whose model has "
                f"{', '.join(other)}; give both the same `model`"
            )


def parent_of(job: TrainJob, places: Sequence[str]) -> int | None:
    """Which of these run folders `init` means; None when it is something else."""
    if job.init is None or job.init.startswith("models:/"):
        return None
    absolute = absolute_paths(job)
    if "/" not in job.init:
        place = storage.join(absolute.run.storage, job.init)
    else:
        place = (absolute.init or "").rstrip("/").removesuffix("/final")
    return places.index(place) if place in places else None

"""Run a stage: prepare, start the workers under Ray Train, track in MLflow, leave finished
weights in `final/`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from gwp.errors import GwpError
from gwp.paths import absolute_paths
from pipelines.console import warn
from pipelines.jobs.growing import machines
from pipelines.jobs.ray_start import ensure_ray, require_packages, require_secrets
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.checkpoints import (
    DamagedError,
    go_back,
    latest_committed,
    set_aside,
)
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.control.failures import interruptible
from pipelines.training.control.lease import lease
from pipelines.training.export import write_final
from pipelines.training.judge.beside import judged_beside
from pipelines.training.measure.startup import StartUp
from pipelines.training.prepare import PreparedRun, prepare
from pipelines.training.tracked import finished, open_run, record_of
from pipelines.training.workers import run_workers


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    uri: str
    """Run folder."""
    final: str
    """Folder of the finished weights, codec and text encoder; the next stage's `init`."""
    run_id: str
    """MLflow run; empty when MLflow did not answer until the end."""
    steps: int
    """Optimiser steps done."""
    samples: int
    """Samples seen."""
    seconds: float
    """Wall time of training, preparation included."""


def train(
    job: TrainJob, allowed: tuple[str, ...] = (), from_step: int | None = None
) -> StageResult:
    """Run one stage to its end and write its weights. Running it again resumes, or returns at
    once when it is done.

    allowed: fields of the job that may have changed since the run began; from_step: of the
    checkpoint to go on from, newer ones are set aside; None: the newest
    """
    begin = time.time()
    start = StartUp()
    require_secrets(job)
    require_packages(job)
    ensure_ray(job)
    # Behind `ensure_ray`: ray.init puts handlers of its own there.
    with interruptible():
        place = run_uri(absolute_paths(job))
        with lease(place):
            # One that is done needs none.
            done = from_step is None and _is_done(job, place)
            with nullcontext() if done else machines(job):
                prepared = prepare(job, allowed, start)
            if from_step is not None:
                go_back(prepared.uri, from_step)
            complete = _complete(prepared)
            record = record_of(prepared)
            with (
                open_run(record),
                _sent_back(from_step),
                judged_beside(prepared, record) as judging,
            ):
                if not complete:
                    run_workers(prepared, record, start)
                checkpoint = patiently(lambda: latest_committed(prepared.uri))
                assert checkpoint is not None
                uri, manifest = checkpoint
                if manifest.step < job.run.steps:
                    raise KeyboardInterrupt(
                        f"stopped at step {manifest.step} of {job.run.steps} with a checkpoint; "
                        "the same command goes on from there"
                    )
                try:
                    final = patiently(lambda: write_final(prepared, uri, record.noted()))
                except DamagedError as error:
                    set_aside(uri, str(error))
                    raise GwpError(
                        f"{error}. It is set aside: the same command trains again from the one before"
                    ) from error
                if judging:
                    judging.finish()
                seen = str(manifest.samples_seen)
                tags = {"checkpoint_uri": uri, "final_uri": final, "samples_seen": seen}
                run_id = finished(record, manifest.step, tags)
    seconds = time.time() - begin
    return StageResult(prepared.uri, final, run_id, manifest.step, manifest.samples_seen, seconds)


def _is_done(job: TrainJob, uri: str) -> bool:
    """Whether the last step is done, as far as can be told before the run is prepared."""
    checkpoint = latest_committed(uri)
    return checkpoint is not None and checkpoint[1].step >= job.run.steps


def _complete(prepared: PreparedRun) -> bool:
    """Whether the last step is done; GwpError when the checkpoint is not of this run."""
    checkpoint = latest_committed(prepared.uri)
    if checkpoint is None:
        return False
    uri, manifest = checkpoint
    prepared.require_own(uri, manifest)
    return manifest.step >= prepared.job.run.steps


@contextmanager
def _sent_back(step: int | None) -> Iterator[None]:
    """Say before a line that names the same command what that would do, when this one has gone
    back to `step`.
    """
    try:
        yield
    except BaseException:
        if step is not None:
            warn(f"leave --from out to go on: with it the run goes back to step {step} again")
        raise

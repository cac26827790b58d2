"""Run a stage: prepare, start the workers under Ray Train, track in MLflow, leave finished
weights in `final/`.
"""

import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.data
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gwp.errors import GwpError
from gwp.paths import absolute_paths
from pipelines.compat import before_resize, count_workers_by
from pipelines.console import event, warn
from pipelines.jobs.ray_start import check_resources, ensure_ray
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import POOL, TrainJob
from pipelines.tracking.runs import tracking_uri
from pipelines.training.checkpoint.checkpoints import (
    DamagedError,
    go_back,
    latest_committed,
    set_aside,
)
from pipelines.training.checkpoint.uploads import patiently
from pipelines.training.control.failures import Interrupts, StopForGood, gave_up, interruptible
from pipelines.training.control.lease import lease
from pipelines.training.control.machines import room_for
from pipelines.training.control.stop import ask_to_stop, forget_asked, save_and_pause
from pipelines.training.control.stopped import first
from pipelines.training.control.watchdog import at_work, clear_earlier, watchdog
from pipelines.training.export import write_final
from pipelines.training.loop import train_loop
from pipelines.training.prepare import PreparedRun, prepare
from pipelines.training.samples.stream import PlannedData
from pipelines.training.tracked import RunRecord, finished, open_run, record_of

_ANSWER = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
# Seconds; an interrupt is seen between two waits.
_WAIT_S = 0.5


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
    ensure_ray(job)
    # Behind `ensure_ray`: ray.init puts handlers of its own there.
    with interruptible():
        check_resources(job)
        with lease(run_uri(absolute_paths(job))):
            prepared = prepare(job, allowed)
            if from_step is not None:
                go_back(prepared.uri, from_step)
            complete = _complete(prepared)
            record = record_of(prepared)
            with open_run(record):
                if not complete:
                    _fit(prepared, record)
                checkpoint = latest_committed(prepared.uri)
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
                seen = str(manifest.samples_seen)
                tags = {"checkpoint_uri": uri, "final_uri": final, "samples_seen": seen}
                run_id = finished(record, manifest.step, tags)
    seconds = time.time() - begin
    return StageResult(prepared.uri, final, run_id, manifest.step, manifest.samples_seen, seconds)


def _complete(prepared: PreparedRun) -> bool:
    """Whether the last step is done; GwpError when the checkpoint is not of this run."""
    checkpoint = latest_committed(prepared.uri)
    if checkpoint is None:
        return False
    uri, manifest = checkpoint
    prepared.require_own(uri, manifest)
    return manifest.step >= prepared.job.run.steps


def _fit(prepared: PreparedRun, record: RunRecord) -> None:
    """The workers under Ray Train, to the last step; GwpError when one of ours was the cause of
    the end.
    """
    cluster = prepared.job.cluster
    pool = cluster.train_pool
    # Type checkers see the interface that Ray had before, here and below; at run time it is the
    # new one.
    scaling: dict[str, Any] = {
        "num_workers": cluster.workers,
        "elastic_resize_monitor_interval_s": cluster.resize_every_s,
    }
    if pool:
        scaling["label_selector"] = {POOL: pool}
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.gpu:
        resources["GPU"] = 1
    loop_config: dict[str, Any] = {
        "prepared": prepared.slim(),
        "record": record,
        "tracking_uri": tracking_uri(),
    }
    callbacks: list[Any] = [StopForGood(prepared.uri)]
    if cluster.elastic:
        callbacks.append(before_resize(partial(save_and_pause, prepared.uri)))
    # Ray is given no checkpoints and has nothing to store; but it looks at its storage at each
    # start, without patience. So that is a folder here, and an empty one wherever else it looks.
    unused = tempfile.TemporaryDirectory(prefix="gwp-ray-")
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        torch_config=TorchConfig(
            backend="nccl" if cluster.gpu else "gloo",
            # Of those who wait for a rank that stands still, if nobody ends it before.
            timeout_s=math.ceil(cluster.patience_s),
        ),
        scaling_config=ScalingConfig(
            use_gpu=cluster.gpu,
            resources_per_worker=resources,
            **scaling,
        ),
        run_config=RunConfig(
            # What it finds under a name that it knows it would go on with.
            name=f"ray-{int(time.time() * 1000)}",
            storage_path=unused.name,
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                # Ray's default, -1, would start a failing controller again for ever.
                controller_failure_limit=5,  # type: ignore[call-arg]
            ),
            callbacks=callbacks,
        ),
        # The name of the plan: what it is follows from the number of workers, which is known
        # when they start.
        datasets={"train": ray.data.range(1)},
        dataset_config=PlannedData(prepared),
    )
    if cluster.elastic:
        count_workers_by(trainer, room_for(cluster))
    clear_earlier(prepared.uri)
    forget_asked(prepared.uri)
    with (
        unused,
        _answers_within(cluster.patience_s),
        watchdog(prepared.uri, cluster.hang_s) as watch,
    ):
        try:
            _until_over(trainer, prepared.uri)
        except ray.train.TrainingFailedError as error:
            # Ray wraps what a worker raised; the user's line is that of the worker.
            cause = first(error, GwpError)
            told = cause or gave_up(error, watch.hung(), cluster.max_failures + 1)
            if told is None:
                raise
            raise told from error


def _ask_to_stop(run_uri: str, nobody: threading.Event) -> None:
    """nobody: set when there is none who could stop"""
    try:
        ask_to_stop(run_uri)
        if not at_work(run_uri):
            nobody.set()
    except (OSError, GwpError) as error:
        warn(f"the workers cannot be asked to stop ({error}); once more ends at once")


@contextmanager
def _answers_within(seconds: float) -> Iterator[None]:
    """How long a worker may not answer Ray Train, which reads it when it starts; what is in the
    environment already goes before.
    """
    if _ANSWER in os.environ:
        yield
        return
    os.environ[_ANSWER] = f"{seconds:g}"
    try:
        yield
    finally:
        os.environ.pop(_ANSWER, None)


def _until_over(trainer: TorchTrainer, run_uri: str) -> None:
    """Run the workers to their end. The first Ctrl-C or SIGTERM asks them to stop with a
    checkpoint; the second one, and the first while they wait for room, ends at once with
    KeyboardInterrupt.
    """
    failed: list[BaseException] = []
    nobody = threading.Event()
    # Not `join`: Python 3.11 takes a thread whose join is interrupted for one that has ended.
    over = threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  raised again below
            failed.append(error)
        finally:
            over.set()

    asked = False
    with Interrupts() as interrupts:
        # Not in the main thread: there Ray Train takes Ctrl-C for itself, and drops what is done. A
        # daemon, because nobody waits for it behind the second one.
        threading.Thread(target=fit, daemon=True, name="gwp-fit").start()
        while not over.wait(_WAIT_S):
            if interrupts.count > 1 or nobody.is_set():
                raise KeyboardInterrupt(
                    "ended at once; the same command goes on from the last checkpoint"
                )
            if interrupts.count and not asked:
                asked = True
                event(
                    "stopping",
                    text="a checkpoint is taken at the next step; once more ends at once",
                )
                # Not here: storage may be slow, and the second one is waited for.
                threading.Thread(target=_ask_to_stop, args=(run_uri, nobody), daemon=True).start()
    if failed:
        raise failed[0]

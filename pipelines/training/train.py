"""Run a stage: prepare, start the workers under Ray Train, track in MLflow, leave finished
weights in `final/`.
"""

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gwp import storage
from gwp.errors import GwpError
from gwp.paths import absolute_paths
from pipelines.console import event, warn
from pipelines.jobs.ray_start import check_resources, ensure_ray
from pipelines.jobs.resolve import FINAL_NOTE, run_uri
from pipelines.jobs.train_job import POOL, TrainJob
from pipelines.tracking.runs import (
    STOPPED_TAG,
    create_run,
    find_run,
    finish_run,
    log_inputs,
    tracking_uri,
)
from pipelines.training.checkpoint.checkpoints import (
    DamagedError,
    go_back,
    latest_committed,
    set_aside,
)
from pipelines.training.control.failures import Interrupts, StopForGood, gave_up, interruptible
from pipelines.training.control.lease import lease
from pipelines.training.control.lookout import clear_earlier, lookout
from pipelines.training.control.stop import ask_to_stop, forget_stop
from pipelines.training.control.stopped import first
from pipelines.training.export import write_final
from pipelines.training.loop import train_loop
from pipelines.training.prepare import PreparedRun, prepare
from pipelines.training.stream import execution_options, remaining_dataset

_REASON_LENGTH = 500
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
    """MLflow run."""
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
            with open_run(prepared) as run_id:
                if not complete:
                    _fit(prepared, run_id)
                checkpoint = latest_committed(prepared.uri)
                assert checkpoint is not None
                uri, manifest = checkpoint
                if manifest.step < job.run.steps:
                    raise KeyboardInterrupt(
                        f"stopped at step {manifest.step} of {job.run.steps} with a checkpoint; "
                        "the same command goes on from there"
                    )
                try:
                    final = write_final(prepared, uri, run_id)
                except DamagedError as error:
                    set_aside(uri, str(error))
                    raise GwpError(
                        f"{error}. It is set aside: the same command trains again from the one before"
                    ) from error
                seen = str(manifest.samples_seen)
                finish_run(
                    run_id, {"checkpoint_uri": uri, "final_uri": final, "samples_seen": seen}
                )
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


@contextmanager
def open_run(prepared: PreparedRun) -> Iterator[str]:
    """The MLflow run of this run folder, the same one on every attempt.

    Whatever leaves the block ends it: errors as FAILED, interruptions as KILLED, each with the
    reason. What a killed process left is gone on with at the next start.
    """
    run_id = None
    try:
        run_id = _run_of(prepared)
        yield run_id
    # Base: KeyboardInterrupt ends a run too, and must not leave it RUNNING.
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        run_id = run_id or _half_open(prepared)
        if run_id:
            reason = str(error)[:_REASON_LENGTH] or type(error).__name__
            finish_run(run_id, {STOPPED_TAG: reason}, status)
        raise


def _run_of(prepared: PreparedRun) -> str:
    """Its id: the noted one, or that of a run which is opened now."""
    note = storage.join(prepared.uri, "run_id")
    if storage.exists(note):
        return storage.read_bytes(note).decode()
    # First of all, so that a run opened by a start that came no further is found again.
    key_uri = _key_uri(prepared)
    if not storage.exists(key_uri):
        storage.write_bytes(key_uri, uuid.uuid4().hex.encode())
    key = storage.read_bytes(key_uri).decode()
    job = prepared.job
    name = f"{job.stage}/{job.run.name}"
    params = job.model_dump(mode="json")
    run_id = create_run(job.run.experiment, name, params, prepared.uri, _parents(prepared), key=key)
    manifest = prepared.manifest
    sources = [source.uri for source in job.data.sources]
    log_inputs(run_id, prepared.fingerprint, len(manifest), len(manifest.skipped), sources)
    storage.write_bytes(note, run_id.encode())
    return run_id


def _half_open(prepared: PreparedRun) -> str | None:
    """The run that an interrupted `_run_of` has opened; None when there is none, or MLflow does
    not answer.
    """
    try:
        key_uri = _key_uri(prepared)
        if not storage.exists(key_uri):
            return None
        return find_run(prepared.job.run.experiment, storage.read_bytes(key_uri).decode())
    except Exception:  # noqa: BLE001  the error that brought us here is the one to tell
        return None


def _key_uri(prepared: PreparedRun) -> str:
    return storage.join(prepared.uri, "run_key")


def _parents(prepared: PreparedRun) -> tuple[str, ...]:
    """The MLflow run whose weights this one starts from, when it was one of ours."""
    if not prepared.init:
        return ()
    note = storage.join(prepared.init, FINAL_NOTE)
    if not storage.exists(note):
        return ()
    return (json.loads(storage.read_bytes(note))["run_id"],)


def _fit(prepared: PreparedRun, run_id: str) -> None:
    """The workers under Ray Train, to the last step; GwpError when one of ours was the cause of
    the end.
    """
    job = prepared.job
    # A filesystem of pyarrow and a path without scheme: so Ray gets address and credentials.
    filesystem, path = storage.arrow_filesystem(prepared.uri)
    pool = job.cluster.train_pool
    selector: dict[str, Any] = {"label_selector": {POOL: pool}} if pool else {}
    resources: dict[str, float] = {"CPU": job.cluster.cpus_per_worker}
    if job.cluster.gpu:
        resources["GPU"] = 1
    loop_config: dict[str, Any] = {
        "prepared": prepared.slim(),
        "run_id": run_id,
        "tracking_uri": tracking_uri(),
    }
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        torch_config=TorchConfig(
            backend="nccl" if job.cluster.gpu else "gloo",
            # Of those who wait for a rank that stands still, if nobody ends it before.
            timeout_s=math.ceil(job.cluster.patience_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=job.cluster.workers,
            use_gpu=job.cluster.gpu,
            resources_per_worker=resources,
            **selector,
        ),
        run_config=RunConfig(
            # Ray's own snapshots are not what we resume from, so each submission has a name of
            # its own.
            name=f"ray-{int(time.time() * 1000)}",
            storage_path=f"{path}/ray",
            storage_filesystem=filesystem,
            # Type checkers see the interface that Ray had before; at run time it is the new one.
            failure_config=FailureConfig(
                max_failures=job.cluster.max_failures,
                # Ray's default, -1, would start a failing controller again for ever.
                controller_failure_limit=5,  # type: ignore[call-arg]
            ),
            callbacks=[StopForGood(prepared.uri)],  # type: ignore[list-item]
        ),
        # A callable: Ray asks it at every start of the workers, for what is left then.
        datasets={"train": remaining_dataset(prepared)},
        dataset_config=DataConfig(execution_options=execution_options(job.cluster)),
    )
    clear_earlier(prepared.uri)
    forget_stop(prepared.uri)
    cluster = job.cluster
    with _answers_within(cluster.patience_s), lookout(prepared.uri, cluster.hang_s) as watch:
        try:
            _until_over(trainer, prepared.uri)
        except ray.train.TrainingFailedError as error:
            # Ray wraps what a worker raised; the user's line is that of the worker.
            cause = first(error, GwpError)
            told = cause or gave_up(error, watch.hung(), job.cluster.max_failures + 1)
            if told is None:
                raise
            raise told from error


def _ask_to_stop(run_uri: str) -> None:
    try:
        ask_to_stop(run_uri)
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
    checkpoint, the second one ends at once with KeyboardInterrupt.
    """
    failed: list[BaseException] = []
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
            if interrupts.count > 1:
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
                threading.Thread(target=_ask_to_stop, args=(run_uri,), daemon=True).start()
    if failed:
        raise failed[0]

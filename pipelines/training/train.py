"""Run a stage: prepare, start the workers under Ray Train, track in MLflow, leave finished
weights in `final/`.
"""

import json
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from gwp import storage
from gwp.errors import GwpError
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.runs import create_run, finish_run, log_inputs, tracking_uri
from pipelines.training.checkpoints import latest_committed
from pipelines.training.export import write_final
from pipelines.training.loop import stopped_uri, train_loop
from pipelines.training.prepare import PreparedRun, prepare
from pipelines.training.stream import POOL, execution_options, remaining_dataset


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


def ensure_ray(job: TrainJob) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine with enough logical
    CPUs.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    # Workers hold a CPU each; decoding on a machine without a spare one would wait for ever.
    needed = int(job.cluster.workers * job.cluster.cpus_per_worker + job.cluster.decode_tasks + 1)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    ray.init(
        address="local",
        num_cpus=max(needed, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
    )


def check_resources(job: TrainJob) -> None:
    """GwpError when the cluster can never hold the workers and one decoding task, instead of a
    silent wait.
    """
    nodes = [n for n in ray.nodes() if n["Alive"]]

    def cpus(pool: str | None) -> float:
        return sum(
            n["Resources"].get("CPU", 0.0)
            for n in nodes
            if pool is None or n["Labels"].get(POOL) == pool
        )

    workers = job.cluster.workers * job.cluster.cpus_per_worker
    same = job.cluster.train_pool == job.cluster.data_pool
    if cpus(job.cluster.train_pool) < workers + (1 if same else 0):
        raise GwpError(
            f"the cluster has {cpus(job.cluster.train_pool):g} CPUs in pool "
            f"'{job.cluster.train_pool}'; {job.cluster.workers} "
            f"workers{' and decoding' if same else ''} need {workers + (1 if same else 0):g}: "
            "lower cluster.cpus_per_worker"
        )
    if not same and cpus(job.cluster.data_pool) < 1:
        raise GwpError(
            f"no CPU in pool '{job.cluster.data_pool}' for decoding; set cluster.data_pool to "
            "a label the cluster has"
        )


def train(job: TrainJob) -> StageResult:
    """Run one stage to its end and write its weights. Running it again resumes, or returns at
    once when it is done.
    """
    begin = time.time()
    ensure_ray(job)
    check_resources(job)
    prepared = prepare(job)
    run_id = _open_run(prepared)
    if not _complete(prepared):
        storage.remove(stopped_uri(prepared.uri))
        _fit(prepared, run_id)
        _refuse_broken(prepared, run_id)
    found = latest_committed(prepared.uri)
    assert found is not None
    uri, manifest = found
    final = write_final(prepared, uri, run_id)
    finish_run(
        run_id,
        {"checkpoint_uri": uri, "final_uri": final, "samples_seen": str(manifest.samples_seen)},
    )
    return StageResult(
        prepared.uri, final, run_id, manifest.step, manifest.samples_seen, time.time() - begin
    )


def _refuse_broken(prepared: PreparedRun, run_id: str) -> None:
    """GwpError when the workers stopped because too many samples were broken."""
    place = stopped_uri(prepared.uri)
    if not storage.exists(place):
        return
    told = json.loads(storage.read_bytes(place))
    finish_run(run_id, {}, status="FAILED")
    raise GwpError(
        f"{told['broken']} of {told['samples']} samples were broken by step {told['step']}, "
        "more than data.max_broken "
        f"{prepared.job.data.max_broken:g} allows; {storage.join(prepared.uri, 'quarantine')} "
        "names each with its reason. Mend the data, "
        "or raise data.max_broken; the run goes on from its last checkpoint"
    )


def _complete(prepared: PreparedRun) -> bool:
    found = latest_committed(prepared.uri)
    return found is not None and found[1].step >= prepared.job.run.steps


def _open_run(prepared: PreparedRun) -> str:
    """The MLflow run of this run folder; the same one on every attempt."""
    place = storage.join(prepared.uri, "run_id")
    if storage.exists(place):
        return storage.read_bytes(place).decode()
    job = prepared.job
    run_id = create_run(
        job.run.experiment,
        f"{job.stage}/{job.run.name}",
        job.model_dump(mode="json"),
        prepared.uri,
        _parents(prepared),
    )
    log_inputs(run_id, prepared.fingerprint, len(prepared.manifest), len(prepared.manifest.skipped))
    storage.write_bytes(place, run_id.encode())
    return run_id


def _parents(prepared: PreparedRun) -> tuple[str, ...]:
    """The MLflow run whose weights this one starts from, when it was one of ours."""
    place = storage.join(prepared.init, "run.json") if prepared.init else None
    if place is None or not storage.exists(place):
        return ()
    return (json.loads(storage.read_bytes(place))["run_id"],)


def _fit(prepared: PreparedRun, run_id: str) -> None:
    job = prepared.job
    filesystem, path = storage.arrow_filesystem(prepared.uri)
    selector = {"label_selector": {POOL: job.cluster.train_pool}} if job.cluster.train_pool else {}
    loop_config: dict[str, Any] = {
        "prepared": prepared.slim(),
        "run_id": run_id,
        "tracking_uri": tracking_uri(),
    }
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        torch_config=TorchConfig(backend="nccl" if job.cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.cluster.workers,
            use_gpu=job.cluster.gpu,
            resources_per_worker={"CPU": job.cluster.cpus_per_worker}
            | ({"GPU": 1} if job.cluster.gpu else {}),
            **selector,
        ),
        run_config=RunConfig(
            # Ray's own snapshots are not what we resume from, so each submission has a name of
            # its own.
            name=f"ray-{int(time.time() * 1000)}",
            storage_path=f"{path}/ray",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=job.cluster.max_failures, controller_failure_limit=5
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={"train": remaining_dataset(prepared)},
        dataset_config=DataConfig(execution_options=execution_options(job.cluster)),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        finish_run(run_id, {}, status="FAILED")
        cause = _root(error)
        if isinstance(cause, GwpError):
            raise cause from error
        raise


def _root(error: BaseException) -> BaseException:
    """The first error of ours inside Ray's wrappers, else the error itself."""
    seen: list[BaseException] = [error]
    for e in seen:
        failures = getattr(e, "worker_failures", None) or {}
        nested = [*failures.values(), e.__cause__, getattr(e, "cause", None)]
        for inner in nested:
            if isinstance(inner, GwpError):
                return inner
            if isinstance(inner, BaseException) and inner not in seen:
                seen.append(inner)
    return error

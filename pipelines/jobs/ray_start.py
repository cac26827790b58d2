"""Ray for a job: connect or start it, and say at once when it can never hold the job."""

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec

import ray

from gwp.errors import GwpError
from pipelines.jobs.cluster import POOL, named
from pipelines.jobs.train_job import TrainJob


def require_secrets(job: TrainJob) -> None:
    """GwpError when a variable of `cluster.secrets` is not set here."""
    unset = [name for name in job.cluster.secrets if not os.environ.get(name)]
    if unset:
        raise GwpError(
            f"cluster.secrets: {', '.join(unset)} is not set in the environment of this machine; set "
            "it there, on every node"
        )


def require_packages(job: TrainJob) -> None:
    """GwpError when what the job's optimiser or its adapters need is not installed here, where a
    worker would find out much later.
    """
    needed = {"pytorch_optimizer": job.optimizer.kind == "came", "peft": job.lora is not None}
    missing = [name for name, needs in needed.items() if needs and find_spec(name) is None]
    if missing:
        raise GwpError(
            f"this stage needs {' and '.join(missing)}: pip install 'gwp[cluster]' here and on every "
            "node"
        )


def ensure_ray(*jobs: TrainJob, at_once: int = 1) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine with enough logical
    CPUs for each of the jobs, `at_once` of them at a time.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    # Ray looks at its workers every two seconds otherwise, long beside a small run's steps.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, *(at_once * cpus_of(job) for job in jobs)),
        include_dashboard=False,
        log_to_driver=False,
    )


def cpus_of(job: TrainJob) -> int:
    """Logical CPUs with which nothing of a job waits for a place."""
    cluster = job.cluster
    # Workers hold a CPU each; decoding on a machine without a spare one would wait for ever.
    needed = int(cluster.max_workers * cluster.cpus_per_worker + cluster.decode_tasks + 1)
    return needed + (math.ceil(job.validator.cpus) if job.validator else 0)


def room(pool: str | None, each: Mapping[str, float]) -> int:
    """Processes with these resources each that the living machines of a pool could hold, were they
    free; None: those of any. Each process is on one machine.
    """
    return sum(
        int(min(resources.get(name, 0.0) // amount for name, amount in each.items()))
        for resources in _of(pool)
    )


def _of(pool: str | None) -> list[dict[str, float]]:
    """Resources of each of them."""
    return [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and (pool is None or node["Labels"].get(POOL) == pool)
    ]


def check_resources(job: TrainJob) -> None:
    """GwpError when the cluster can never hold the workers and one decoding task, instead of a
    silent wait.
    """
    cluster = job.cluster
    each = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
    found = room(cluster.train_pool, each)
    if found < cluster.min_workers:
        raise GwpError(
            f"the machines in {named(cluster.train_pool)} have room for {found} workers with "
            f"{cluster.cpus_per_worker:g} CPU{' and a GPU' if cluster.gpu else ''} each, and "
            f"{cluster.min_workers} are asked for: lower cluster.workers or cluster.cpus_per_worker"
        )
    same = cluster.train_pool == cluster.data_pool
    # Workers keep their CPUs to the end; without one more nothing is ever decoded.
    needed = cluster.min_workers * cluster.cpus_per_worker + 1
    cpus = sum(resources.get("CPU", 0.0) for resources in _of(cluster.train_pool))
    if same and cpus < needed:
        raise GwpError(
            f"the cluster has {cpus:g} CPUs in {named(cluster.train_pool)}; "
            f"{cluster.min_workers} workers and decoding need {needed:g}: lower "
            "cluster.cpus_per_worker"
        )
    if not same and not room(cluster.data_pool, {"CPU": 1.0}):
        raise GwpError(
            f"no CPU in {named(cluster.data_pool)} for decoding; set cluster.data_pool to "
            "a label the cluster has"
        )

"""Ray for a job: connect or start it, and say at once when it can never hold the job."""

import os

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
    cluster = job.cluster
    needed = int(cluster.max_workers * cluster.cpus_per_worker + cluster.decode_tasks + 1)
    # Ray looks at its workers every two seconds otherwise, long beside a small run's steps.
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
    cluster = job.cluster
    nodes = [n for n in ray.nodes() if n["Alive"]]

    def of(pool: str | None) -> list[dict[str, float]]:
        """Resources of the living nodes of a pool; None: of any."""
        return [
            node["Resources"] for node in nodes if pool is None or node["Labels"].get(POOL) == pool
        ]

    def cpus(pool: str | None) -> float:
        return sum(resources.get("CPU", 0.0) for resources in of(pool))

    # A worker is on one machine.
    room = 0
    for resources in of(cluster.train_pool):
        fitting = resources.get("CPU", 0.0) // cluster.cpus_per_worker
        room += int(min(fitting, resources.get("GPU", 0.0)) if cluster.gpu else fitting)
    if room < cluster.min_workers:
        raise GwpError(
            f"the machines in {named(cluster.train_pool)} have room for {room} workers with "
            f"{cluster.cpus_per_worker:g} CPU{' and a GPU' if cluster.gpu else ''} each, and "
            f"{cluster.min_workers} are asked for: lower cluster.workers or cluster.cpus_per_worker"
        )
    same = cluster.train_pool == cluster.data_pool
    # Workers keep their CPUs to the end; without one more nothing is ever decoded.
    needed = cluster.min_workers * cluster.cpus_per_worker + 1
    if same and cpus(cluster.train_pool) < needed:
        raise GwpError(
            f"the cluster has {cpus(cluster.train_pool):g} CPUs in {named(cluster.train_pool)}; "
            f"{cluster.min_workers} workers and decoding need {needed:g}: lower "
            "cluster.cpus_per_worker"
        )
    if not same and cpus(cluster.data_pool) < 1:
        raise GwpError(
            f"no CPU in {named(cluster.data_pool)} for decoding; set cluster.data_pool to "
            "a label the cluster has"
        )

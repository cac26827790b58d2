"""A stage on a cluster: what it needs, and what there is not."""

from collections.abc import Iterator
from dataclasses import dataclass

from clusters.document.cluster import Cluster
from clusters.document.pools import DATA, HEAD, TRAIN, Pool
from pipelines.jobs.train_job import TrainJob
from pipelines.placement.reach import Target, unreached
from pipelines.placement.validator import (
    misfit,
    nodes_to_decode,
    nodes_to_train,
    place_of,
    workers_of_a_node,
)
from pipelines.plan.choice import fits


@dataclass(frozen=True)
class Needs:
    """Nodes that a stage needs at least."""

    train: int
    data: int


def needs(job: TrainJob, cluster: Cluster) -> Needs:
    """Of a stage that `misfits` found nothing against."""
    assert cluster.pools.train is not None
    place = _place_of_validator(job, cluster)
    beside = job.validator if place == TRAIN else None
    data = cluster.pools.data if decodes_apart(job, cluster) else None
    train = nodes_to_train(job, cluster.pools.train, beside, decodes=data is None)
    return Needs(train, nodes_to_decode(job, data, place) if data else 0)


def _place_of_validator(job: TrainJob, cluster: Cluster, target: Target = "kuberay") -> str | None:
    pools = cluster.pools
    assert pools.train is not None
    most = {name: _most(pool, target) for name, pool in pools.workers().items()}
    return place_of(job, pools.train, pools.data if decodes_apart(job, cluster) else None, most)


def decodes_apart(job: TrainJob, cluster: Cluster) -> bool:
    """Whether decoding has nodes of its own."""
    return cluster.pools.data is not None and job.cluster.data_pool != TRAIN


def misfits(job: TrainJob, cluster: Cluster, target: Target) -> Iterator[str]:
    """A line for each reason why the stage cannot run there."""
    yield from unreached(job, cluster, target, (HEAD, TRAIN, DATA))
    yield from _unset(job, cluster, target)
    pools = cluster.pools
    for field, pool, known in (
        ("train_pool", job.cluster.train_pool, (None, TRAIN)),
        ("data_pool", job.cluster.data_pool, (None, TRAIN, DATA)),
    ):
        if pool not in known:
            names = " or ".join(str(k) for k in known if k)
            yield f"cluster.{field}: {pool!r} is no pool of a cluster document; give {names}"
    if pools.train is None:
        yield "pools.train: missing, and a stage needs nodes to train on"
        return
    short = list(_room(job, pools.train, target, apart=decodes_apart(job, cluster)))
    yield from short
    if not short:
        yield from misfit(job, _place_of_validator(job, cluster, target))
    memory_gb = pools.train.gpu_memory_gb
    if job.cluster.gpu and memory_gb and not short:
        line = fits(job, memory_gb, job.cluster.min_workers)
        if line:
            yield f"pools.train.gpu_memory_gb: {line}"


def _unset(job: TrainJob, cluster: Cluster, target: Target) -> Iterator[str]:
    """Variables that the job cannot work without, and that no pod that trains or decodes has."""
    if target != "kuberay":
        return
    for name in job.cluster.secrets:
        if name in cluster.env:
            continue
        secret = cluster.secrets.get(name)
        pools = {HEAD, TRAIN, DATA} & set(cluster.pools.all())
        if secret is None or (secret.pools and not pools <= set(secret.pools)):
            yield (
                f"cluster.secrets: {name} is not set in the pods of the stage; name its Secret under "
                f"secrets.{name} of the cluster document"
            )


def _room(job: TrainJob, pool: Pool, target: Target, *, apart: bool) -> Iterator[str]:
    """What the pool `train` has too little of. apart: whether decoding is elsewhere"""
    workers = job.cluster.min_workers
    most = _most(pool, target)
    there = f"{most} x {pool.gpus} GPUs" if job.cluster.gpu else f"{most} x {pool.cpus} CPUs"
    if job.cluster.gpu and most * pool.gpus < workers:
        yield (
            f"cluster.workers: {workers} workers need a GPU each, and pools.train has "
            f"{most * pool.gpus} ({there}); lower cluster.workers, or raise pools.train.max_nodes"
        )
        return
    each = workers_of_a_node(job, pool)
    if each < 1:
        yield (
            f"cluster.cpus_per_worker: {job.cluster.cpus_per_worker:g} is more than a node of "
            f"pools.train has ({pool.cpus} CPUs)"
        )
        return
    if most * each < workers:
        yield (
            f"cluster.workers: {workers} workers of {job.cluster.cpus_per_worker:g} CPUs do not "
            f"fit into pools.train ({there}, {each} workers a node); lower cluster.workers or "
            "cluster.cpus_per_worker, or raise pools.train.max_nodes"
        )
        return
    # Workers keep their CPUs to the end.
    left = most * pool.cpus - workers * job.cluster.cpus_per_worker
    if not apart and left < 1:
        yield (
            f"pools.train: {workers} workers take all of its {most * pool.cpus} CPUs, and none is "
            f"left for decoding; lower cluster.cpus_per_worker, or give pools.data"
        )


def _most(pool: Pool, target: Target) -> int:
    # On this machine each pool is one node.
    return 1 if target == "local" else pool.max_nodes

"""The process that judges a stage's checkpoints beside its steps: where a cluster has room for it."""

import math
from collections.abc import Iterator

from clusters.document.pools import DATA, TRAIN, Pool
from pipelines.jobs.train_job import TrainJob
from pipelines.jobs.validation import ValidatorConfig


def workers_of_a_node(job: TrainJob, pool: Pool, beside: ValidatorConfig | None = None) -> int:
    """Training workers that a node has room for; beside: who is there, too. Below 0: not even that
    has room.
    """
    cpus = pool.cpus - (beside.cpus if beside else 0)
    gpus = pool.gpus - (beside.gpus if beside else 0)
    if cpus < 0 or gpus < 0:
        return -1
    by_cpu = int(cpus // job.cluster.cpus_per_worker)
    return min(by_cpu, gpus) if job.cluster.gpu else by_cpu


def nodes_to_train(
    job: TrainJob, pool: Pool, beside: ValidatorConfig | None, *, decodes: bool
) -> int:
    """Nodes for the least of the workers; beside: who is on one of them, too; decodes: whether they
    decode there.
    """
    workers, each = job.cluster.min_workers, workers_of_a_node(job, pool)
    nodes = math.ceil(workers / each)
    if beside:
        first = workers_of_a_node(job, pool, beside)
        nodes = 1 + math.ceil(max(0, workers - first) / each)
    left = nodes * pool.cpus - workers * job.cluster.cpus_per_worker
    left -= beside.cpus if beside else 0
    # Workers keep their CPUs to the end, and so does who is beside them.
    return nodes + 1 if decodes and left < 1 else nodes


def nodes_to_decode(job: TrainJob, pool: Pool, place: str | None) -> int:
    """Nodes of their own that decode at least. place: of who judges beside the steps"""
    asked = job.validator
    left = pool.cpus - (asked.cpus if asked and place == DATA else 0)
    return 1 if left >= 1 else 2


def place_of(job: TrainJob, train: Pool, data: Pool | None, most: dict[str, int]) -> str | None:
    """The pool with room for it beside what the stage needs there; None: none. data: None where
    decoding has no nodes of its own; most: pool -> nodes
    """
    asked = job.validator
    if asked is None:
        return None
    if asked.pool in (None, DATA) and data and _beside_decoding(asked, data, most[DATA]):
        return DATA
    if asked.pool in (None, TRAIN) and _beside_workers(
        job, asked, train, most[TRAIN], decodes=data is None
    ):
        return TRAIN
    return None


def _beside_decoding(asked: ValidatorConfig, pool: Pool, most: int) -> bool:
    fits = pool.cpus >= asked.cpus and pool.gpus >= asked.gpus
    # One is left for decoding.
    return fits and most * pool.cpus - asked.cpus >= 1


def _beside_workers(
    job: TrainJob, asked: ValidatorConfig, pool: Pool, most: int, *, decodes: bool
) -> bool:
    first = workers_of_a_node(job, pool, asked)
    workers = job.cluster.min_workers
    if first < 0 or first + (most - 1) * workers_of_a_node(job, pool) < workers:
        return False
    left = most * pool.cpus - workers * job.cluster.cpus_per_worker - asked.cpus
    return left >= (1 if decodes else 0)


def misfit(job: TrainJob, place: str | None) -> Iterator[str]:
    """A line where no pool has room for it. place: that has"""
    asked = job.validator
    if asked is None or place:
        return
    if asked.pool not in (None, TRAIN, DATA):
        yield f"validation.worker.pool: {asked.pool!r} is no pool that a stage uses; give train or data"
        return
    pools = f"pools.{asked.pool}" if asked.pool else "neither pools.train nor pools.data"
    lacks = "has no" if asked.pool else "has"
    yield (
        f"validation.worker: {pools} {lacks} room for it ({asked.text}) beside "
        f"{job.cluster.min_workers} workers and decoding; raise max_nodes there, or let the workers "
        "judge (validation.worker: null)"
    )

"""A cluster that starts machines when work asks for them: a run asks, says what it waits for, and
keeps what came until its workers are there.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from gwp.errors import GwpError
from pipelines import compat
from pipelines.console import event
from pipelines.jobs.cluster import POOL, ClusterConfig, named
from pipelines.jobs.ray_start import check_resources
from pipelines.jobs.train_job import TrainJob

# Seconds: of a wait that nobody has to be told of, between two lines, and between two looks.
_QUIET_S = 3.0
_TELL_S = 60.0
_LOOK_S = 1.0
# After so long no kind of machine has been found that would do, none will be.
_SURE_S = 15.0


@contextmanager
def machines(job: TrainJob) -> Iterator[None]:
    """Hold room for the workers and for decoding while the block prepares the run.

    Where machines come by themselves, it asks for them and waits, as long as it takes. GwpError when
    they cannot come: the cluster is as it is and too small, or knows no machine that would do.
    """
    # On the one that this process started for itself there is nobody to ask.
    if compat.autoscaler_state() is None:
        check_resources(job)
        holding: Any = nullcontext()
    else:
        holding = _held(job)
    with holding:
        yield


@contextmanager
def _held(job: TrainJob) -> Iterator[None]:
    wanted = _wanted(job.cluster)
    group = placement_group(
        [resources for resources, _ in wanted],
        bundle_label_selector=[{POOL: pool} if pool else {} for _, pool in wanted],
    )
    try:
        _await(group, job)
        yield
    finally:
        # Ray Train and Ray Data ask anew, and find the machines there.
        remove_placement_group(group)


def _await(group: PlacementGroup, job: TrainJob) -> None:
    begin = time.monotonic()
    told = None
    while not group.wait(_LOOK_S):
        waited = time.monotonic() - begin
        if waited > _SURE_S and _infeasible(group):
            # Of what is there nothing will do either, once it is free.
            _require_possible(job)
        if waited > _QUIET_S and (told is None or waited - told > _TELL_S):
            told = waited
            event("waiting", text=f"for machines: {asked(job.cluster)}; {there(ray.nodes())}")
    if told is not None:
        event("machines", text=f"there after {time.monotonic() - begin:.0f} s")


def _wanted(cluster: ClusterConfig) -> list[tuple[dict[str, float], str | None]]:
    """Resources and pool of each worker, and of one decoding task."""
    worker = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
    workers = [(worker, cluster.train_pool) for _ in range(cluster.min_workers)]
    return [*workers, ({"CPU": 1.0}, cluster.data_pool)]


def asked(cluster: ClusterConfig) -> str:
    """What a run asks for, in words."""
    each = f"{cluster.cpus_per_worker:g} CPU" + (" and a GPU" if cluster.gpu else "")
    return (
        f"{cluster.min_workers} workers with {each} each in {named(cluster.train_pool)}, 1 CPU for "
        f"decoding in {named(cluster.data_pool)}"
    )


def there(nodes: list[dict[str, Any]]) -> str:
    """What a cluster has, in words. nodes: those of `ray.nodes`"""
    alive = [node for node in nodes if node["Alive"]]
    counts = Counter(node["Labels"].get(POOL) for node in alive)
    cpus: Counter[str | None] = Counter()
    for node in alive:
        cpus[node["Labels"].get(POOL)] += node["Resources"].get("CPU", 0)
    pools = [
        f"{n} in {named(p) if p else 'no pool'} with {cpus[p]:g} CPU"
        for p, n in sorted(counts.items(), key=lambda pool: pool[0] or "")
    ]
    return f"there are {', '.join(pools)}"


def _infeasible(group: PlacementGroup) -> bool:
    """Whether the autoscaler knows no kind of machine that it may start for this."""
    state = compat.autoscaler_state()
    refused = state.infeasible_gang_resource_requests if state is not None else ()
    return any(request.details.startswith(group.id.hex()) for request in refused)


def _require_possible(job: TrainJob) -> None:
    try:
        check_resources(job)
    except GwpError as error:
        raise GwpError(f"{error}; and the autoscaler has no kind of machine for it") from error

"""A cluster that starts machines when work asks for them: a run asks, says what it waits for, and
keeps what came until its workers are there.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from gwp.errors import GwpError
from pipelines import compat
from pipelines.console import event
from pipelines.jobs.cluster import POOL, ClusterConfig, named
from pipelines.jobs.ray_start import check_resources, room
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
        holding: AbstractContextManager[None] = nullcontext()
    else:
        holding = _held(wanted(job.cluster))
    with holding:
        yield


@dataclass(frozen=True)
class Wanted:
    """One part of what a run needs."""

    text: str
    """In words."""
    count: int
    each: dict[str, float]
    """Resources of each of so many processes."""
    pool: str | None


def wanted(cluster: ClusterConfig) -> tuple[Wanted, Wanted]:
    """The least that a run can begin with: its workers, and one decoding task."""
    each = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.gpu else {})
    text = f"{cluster.min_workers} workers with {cluster.cpus_per_worker:g} CPU"
    text += f"{' and a GPU' if cluster.gpu else ''} each in {named(cluster.train_pool)}"
    decoding = f"1 CPU for decoding in {named(cluster.data_pool)}"
    return (
        Wanted(text, cluster.min_workers, each, cluster.train_pool),
        Wanted(decoding, 1, {"CPU": 1.0}, cluster.data_pool),
    )


@contextmanager
def _held(parts: Sequence[Wanted]) -> Iterator[None]:
    each = [(part.each, part.pool) for part in parts for _ in range(part.count)]
    # All or nothing: runs that each hold a part of what another waits for would wait for ever.
    group = placement_group(
        [resources for resources, _ in each],
        bundle_label_selector=[{POOL: pool} if pool else {} for _, pool in each],
    )
    try:
        _await(group, parts)
        yield
    finally:
        # Ray Train and Ray Data ask anew, and find the machines there.
        remove_placement_group(group)


def _await(group: PlacementGroup, parts: Sequence[Wanted]) -> None:
    begin = time.monotonic()
    told = None
    asked = ", ".join(part.text for part in parts)
    while not group.wait(_LOOK_S):
        waited = time.monotonic() - begin
        lacking = any(room(part.pool, part.each) < part.count for part in parts)
        # What is there will not do either, when it is free.
        if waited > _SURE_S and lacking and _infeasible(group):
            raise GwpError(
                f"the cluster can never have this together: {asked}. Its autoscaler has no kind of "
                f"machine for a part of it, and {there(ray.nodes())}; change the cluster, or "
                "`cluster` of the file"
            )
        if waited > _QUIET_S and (told is None or waited - told > _TELL_S):
            told = waited
            event("waiting", text=f"for machines: {asked}; {there(ray.nodes())}")
    if told is not None:
        event("machines", text=f"there after {time.monotonic() - begin:.0f} s")


def _infeasible(group: PlacementGroup) -> bool:
    """Whether the autoscaler knows no kind of machine that it may start for this."""
    state = compat.autoscaler_state()
    refused = state.infeasible_gang_resource_requests if state is not None else ()
    return any(request.details.startswith(group.id.hex()) for request in refused)


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

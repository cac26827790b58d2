"""How many training workers a cluster has room for; Ray Train's controller asks it for a job whose
number of workers is `[least, most]`.
"""

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from pipelines import compat
from pipelines.jobs.cluster import POOL, ClusterConfig
from pipelines.jobs.validation import ValidatorConfig

# Seconds. Ray takes longer to notice that a machine is gone, and would wait for workers on it.
_ANSWER_S = 1.0


def room_for(
    cluster: ClusterConfig, validator: ValidatorConfig | None = None
) -> Callable[[int], int]:
    """What tells how many workers there is room for, given how many of this job run now.
    validator: that needs a place, too
    """

    def room(running: int) -> int:
        leaving = compat.draining_nodes()
        nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in leaving]
        if not running:
            nodes = _answering(nodes)
        free = compat.free_of_nodes() if running else {}
        return workers_on(nodes, free, running, cluster, validator)

    return room


def workers_on(
    nodes: list[Mapping[str, Any]],
    free: Mapping[str, Mapping[str, float]],
    running: int,
    cluster: ClusterConfig,
    validator: ValidatorConfig | None = None,
) -> int:
    """Workers that these nodes of `ray.nodes` have room for: beside the `running` ones those that
    find what is `free`; when none run, all that fit. validator: its place is none for workers; where
    nobody has room for it, it has none
    """
    place = _place_of(validator, nodes, cluster) if validator else None
    found = []
    for number, node in enumerate(nodes):
        if _in_pool(node, cluster.train_pool):
            taken = validator.each if validator and number == place else {}
            found.append((node, _without(node["Resources"], taken)))
    count = sum(_fitting(resources, cluster) for _, resources in found)
    if cluster.train_pool == cluster.data_pool:
        # Workers hold their CPUs to the end; without one more nothing is ever decoded.
        spare = sum(resources.get("CPU", 0.0) for _, resources in found) - 1
        count = min(count, int(spare // cluster.cpus_per_worker))
    if running:
        # Others may hold the rest: workers that run are not ended for more that find no place.
        more = sum(_fitting(free.get(n["NodeID"], {}), cluster) for n, _ in found)
        return max(running, min(count, running + more))
    return max(0, count)


def _in_pool(node: Mapping[str, Any], pool: str | None) -> bool:
    return pool is None or node["Labels"].get(POOL) == pool


def _place_of(
    validator: ValidatorConfig, nodes: list[Mapping[str, Any]], cluster: ClusterConfig
) -> int | None:
    """Number of the node with room for it where it costs the fewest workers; None: none has room."""
    costs = {}
    for number, node in enumerate(nodes):
        resources = node["Resources"]
        rest = _without(resources, validator.each)
        if not _in_pool(node, validator.pool) or min(rest.values(), default=-1.0) < 0:
            continue
        lost = _fitting(resources, cluster) - _fitting(rest, cluster)
        # A machine without workers has nothing to lose.
        costs[number] = lost if _in_pool(node, cluster.train_pool) else -1
    return min(costs, key=lambda number: costs[number]) if costs else None


def _without(resources: Mapping[str, float], taken: Mapping[str, float]) -> dict[str, float]:
    """What is left of what a node has, below zero where it has too little."""
    return {**resources} | {n: resources.get(n, 0.0) - amount for n, amount in taken.items()}


def _fitting(resources: Mapping[str, float], cluster: ClusterConfig) -> int:
    """Workers that find place in these."""
    count = int(resources.get("CPU", 0.0) // cluster.cpus_per_worker)
    return min(count, int(resources.get("GPU", 0.0))) if cluster.gpu else count


def _answering(nodes: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without machines that are gone and that Ray has not noticed yet."""
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(_answers, nodes)
        return [node for node, answers in zip(nodes, answers, strict=True) if answers]


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        place = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(place, _ANSWER_S).close()
    except OSError:
        return False
    return True

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

# Seconds. Ray takes longer to notice that a machine is gone, and would wait for workers on it.
_ANSWER_S = 1.0


def room_for(cluster: ClusterConfig) -> Callable[[int], int]:
    """What tells how many workers there is room for, given how many of this job run now."""

    def room(running: int) -> int:
        leaving = compat.draining_nodes()
        nodes = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in leaving]
        if not running:
            nodes = _answering(nodes)
        free = compat.free_of_nodes() if running else {}
        return workers_on(nodes, free, running, cluster)

    return room


def workers_on(
    nodes: list[Mapping[str, Any]],
    free: Mapping[str, Mapping[str, float]],
    running: int,
    cluster: ClusterConfig,
) -> int:
    """Workers that these nodes of `ray.nodes` have room for: beside the `running` ones those that
    find what is `free`; when none run, all that fit.
    """
    pool = cluster.train_pool
    found = [n for n in nodes if pool is None or n["Labels"].get(POOL) == pool]
    count = sum(_fitting(n["Resources"], cluster) for n in found)
    if cluster.train_pool == cluster.data_pool:
        # Workers hold their CPUs to the end; without one more nothing is ever decoded.
        spare = sum(n["Resources"].get("CPU", 0.0) for n in found) - 1
        count = min(count, int(spare // cluster.cpus_per_worker))
    if running:
        # Others may hold the rest: workers that run are not ended for more that find no place.
        more = sum(_fitting(free.get(n["NodeID"], {}), cluster) for n in found)
        return max(running, min(count, running + more))
    return max(0, count)


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

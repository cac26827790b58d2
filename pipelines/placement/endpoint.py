"""An endpoint on a cluster: what it needs, and what there is not."""

import math
from collections.abc import Iterator

from clusters.document.addresses import loopback
from clusters.document.cluster import Cluster
from clusters.document.pools import HEAD, SERVE, Pool
from pipelines.placement.reach import Target, unreached
from serve.config import ServeApp


def misfits(app: ServeApp, cluster: Cluster, target: Target) -> Iterator[str]:
    """A line for each reason why the endpoint cannot run there."""
    # The head resolves names of policies, and the replicas fetch them.
    yield from unreached(app, cluster, target, (HEAD, SERVE))
    pool = cluster.pools.serve
    if pool is None:
        yield "pools.serve: missing, and an endpoint needs nodes to run on"
        return
    pools = {"replica.pool": app.replica.pool}
    if app.separate:
        pools["gateway.pool"] = app.separate.pool
    for field, named in pools.items():
        if named not in (None, SERVE):
            yield f"{field}: {named!r} is not in the cluster of an endpoint; give {SERVE}"
    if target == "kuberay":
        if loopback(f"http://{app.host}") and app.host not in ("0.0.0.0", "::"):  # noqa: S104
            yield f"host: {app.host} is reached inside its pod alone; give host: 0.0.0.0"
        keys = cluster.secrets.get(app.api_keys_env or "")
        if app.api_keys_env and (keys is None or (keys.pools and SERVE not in keys.pools)):
            yield (
                f"api_keys_env: {app.api_keys_env} is not set in any pod; name its Secret under "
                f"secrets.{app.api_keys_env} of the cluster document"
            )
    yield from _room(app, pool)


def nodes(app: ServeApp, pool: Pool) -> int:
    """Nodes that it needs at least: for its first replicas, and one for each gateway if there are
    so many.
    """
    replicas = math.ceil(app.autoscaling.min_replicas / max(1, _replicas_of_a_node(app, pool)))
    gateways = app.separate.replicas if app.separate else 0
    return max(replicas, min(gateways, pool.max_nodes))


def gateways_of_a_node(app: ServeApp, pool: Pool) -> int:
    """Gateways on one node at most, so that each node that can has one."""
    assert app.separate
    return math.ceil(app.separate.replicas / max(1, nodes(app, pool)))


def _room(app: ServeApp, pool: Pool) -> Iterator[str]:
    each = _replicas_of_a_node(app, pool)
    if each < 1:
        yield (
            f"replica: {app.replica.cpus:g} CPUs and {app.replica.gpus:g} GPUs are more than a node "
            f"of pools.serve has ({pool.cpus} and {pool.gpus})"
        )
    elif each * pool.max_nodes < app.autoscaling.min_replicas:
        yield (
            f"autoscaling.min_replicas: {app.autoscaling.min_replicas} replicas do not fit into "
            f"pools.serve ({pool.max_nodes} nodes, {each} replicas each); raise "
            "pools.serve.max_nodes"
        )


def _replicas_of_a_node(app: ServeApp, pool: Pool) -> int:
    cpus = pool.cpus - (app.separate.cpus if app.separate else 0)
    bounds = [cpus / app.replica.cpus] if app.replica.cpus else []
    if app.replica.gpus:
        bounds.append(pool.gpus / app.replica.gpus)
    return math.floor(min(bounds)) if bounds else 1

"""The Ray cluster inside RayCluster, RayJob and RayService."""

from collections.abc import Mapping
from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.pools import HEAD, POOL
from clusters.kuberay.objects import RAY_VERSION
from clusters.kuberay.pods import (
    container_security,
    image_check,
    object_store_bytes,
    pod_template,
)

HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_IDLE_S = 300


def cluster_spec(
    cluster: Cluster,
    least: Mapping[str, int],
    *,
    autoscaling: bool = True,
    head: dict[str, Any] | None = None,
    workers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`spec` of a RayCluster.

    least: pool -> nodes at the start; pools that it lacks are left out; autoscaling: up to the
    `max_nodes` of each pool; head, workers: options of `pod_template`
    """
    spec: dict[str, Any] = {
        "rayVersion": RAY_VERSION,
        "authOptions": _access(cluster),
        "enableInTreeAutoscaling": autoscaling,
    }
    if autoscaling:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": _IDLE_S,
            "securityContext": container_security(),
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"cpu": "1", "memory": "1Gi"},
            },
        }
    template = pod_template(cluster, HEAD, cluster.pools.head, **_head_options(head))
    template["spec"]["initContainers"] = [image_check(cluster)]
    if autoscaling:
        # The autoscaler asks the API server: as the account that is named, or one of KubeRay's.
        template["spec"]["automountServiceAccountToken"] = True
    spec["headGroupSpec"] = {
        "rayStartParams": {
            # Drivers and controllers have it to themselves.
            "num-cpus": "0",
            "object-store-memory": str(object_store_bytes(cluster.pools.head)),
        },
        "labels": {POOL: HEAD, **cluster.pools.head.labels},
        "template": template,
    }
    spec["workerGroupSpecs"] = [
        _group(cluster, name, least[name], autoscaling, workers)
        for name in cluster.pools.workers()
        if name in least
    ]
    return spec


def _group(
    cluster: Cluster,
    name: str,
    least: int,
    autoscaling: bool,
    options: dict[str, Any] | None,
) -> dict[str, Any]:
    pool = cluster.pools.workers()[name]
    return {
        "groupName": name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": max(least, pool.max_nodes) if autoscaling else least,
        "rayStartParams": {"object-store-memory": str(object_store_bytes(pool))},
        "labels": {POOL: name, **pool.labels},
        "template": pod_template(cluster, name, pool, **(options or {})),
    }


def _head_options(options: dict[str, Any] | None) -> dict[str, Any]:
    given = dict(options or {})
    # A Service of KubeRay takes its ports from here.
    given["ports"] = HEAD_PORTS | given.get("ports", {})
    return given


def _access(cluster: Cluster) -> dict[str, Any]:
    if not cluster.token_auth:
        return {"mode": "disabled"}
    options = {"mode": "token"}
    if cluster.token_secret:
        options["secretName"] = cluster.token_secret
    return options

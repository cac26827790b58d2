"""A pool as a template of pods."""

import math
from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.mounts import CACHE, SHARED, SPILL, STAGE_FOLDER
from clusters.document.pools import POOL, Pool, Toleration
from clusters.document.targets import SecretKey
from clusters.kuberay.objects import OF, gibibytes
from gwp import __version__

USER = 1000
"""User and group that the image runs as."""
METRICS_PORT = 8080
# Beside the object store, other things lie in shared memory: NCCL's buffers, PyTorch's.
_BESIDE = 0.1
_OPERATOR = "ray-logs"
"""KubeRay mounts a volume of this name there for its autoscaler, unless it is ours already."""
_GIB = 1 << 30


def pod_template(
    cluster: Cluster,
    pool_name: str,
    pool: Pool,
    *,
    ports: dict[str, int] | None = None,
    stage: str | None = None,
    grace_s: float = 30,
    probe: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The pods of a pool.

    ports: further ones of the Ray container, by name; stage: ConfigMap with the stage file that it
    mounts; grace_s: from the notice to the end of a pod, seconds; probe: when a pod may get
    traffic, None: as KubeRay asks; env: further variables
    """
    config = cluster.kubernetes
    mounts = _mounts(cluster, pool, stage)
    named_ports = {**(ports or {}), "metrics": METRICS_PORT}
    container: dict[str, Any] = {
        "name": "ray",
        "image": cluster.image,
        "imagePullPolicy": "IfNotPresent",
        "env": environment(cluster, pool_name, env),
        "ports": [{"name": n, "containerPort": p} for n, p in named_ports.items()],
        "resources": _resources(cluster, pool),
        "volumeMounts": [mount for mount, _ in mounts],
        "securityContext": container_security(),
    }
    if probe:
        container["readinessProbe"] = probe
    spec: dict[str, Any] = {
        # As the autoscaler wants it: a pod that ended is replaced by another one.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(grace_s),
        "automountServiceAccountToken": config.service_account is not None,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [volume for _, volume in mounts],
    }
    if config.service_account:
        spec["serviceAccountName"] = config.service_account
    if config.pull_secret:
        spec["imagePullSecrets"] = [{"name": config.pull_secret}]
    if pool.priority:
        spec["priorityClassName"] = pool.priority
    spec |= _placed(cluster, pool)
    labels = {"app.kubernetes.io/part-of": "gwp", OF: cluster.name, POOL: pool_name}
    return {"metadata": {"labels": labels}, "spec": spec}


def image_check(cluster: Cluster) -> dict[str, Any]:
    """A container that ends the start of a head whose image has no gwp, or another one, with a
    line that `kubectl describe pod` shows.
    """
    wanted = f"gwp {__version__}"
    script = (
        'have="$(gwp --version 2>/dev/null || echo no gwp)"; '
        f'[ "$have" = "{wanted}" ] || {{ echo "the image has $have, these manifests are of '
        f'{wanted}: build it from clusters/image/Dockerfile, or render again" >&2; exit 1; }}'
    )
    return {
        "name": "image-has-gwp",
        "image": cluster.image,
        "command": ["/bin/sh", "-c", script],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {
            "requests": {"cpu": "200m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "securityContext": container_security(),
    }


def environment(
    cluster: Cluster, pool_name: str, more: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """`env` of a container: addresses, then what the document gives, then secrets by name."""
    plain = {
        "AWS_ENDPOINT_URL": cluster.storage.endpoint,
        "AWS_REGION": cluster.storage.region,
        "MLFLOW_TRACKING_URI": cluster.mlflow,
        "GWP_CACHE": f"{CACHE}/policies",
        "RAY_USAGE_STATS_ENABLED": "0",
        **(more or {}),
        **cluster.env,
    }
    entries: dict[str, dict[str, Any]] = {
        name: {"value": value} for name, value in plain.items() if value is not None
    }
    entries |= {
        name: {"valueFrom": {"secretKeyRef": secret_key(secret)}}
        for name, secret in cluster.secrets.items()
        if pool_name in secret.pools or not secret.pools
    }
    return [{"name": name, **entry} for name, entry in entries.items()]


def secret_key(secret: SecretKey) -> dict[str, str]:
    """A `secretKeyRef`."""
    return {"name": secret.name, "key": secret.key}


def container_security() -> dict[str, Any]:
    """What a container may do: nothing beyond its own processes."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def object_store_bytes(pool: Pool) -> int:
    """For `ray start --object-store-memory`."""
    return int(pool.object_store_gb * _GIB)


def _resources(cluster: Cluster, pool: Pool) -> dict[str, Any]:
    limits = {"cpu": str(pool.cpus), "memory": gibibytes(pool.memory_gb)}
    if pool.gpus:
        limits[cluster.kubernetes.gpu_resource] = str(pool.gpus)
    # Requests like limits: nobody else's work takes what Ray counts with.
    return {"requests": {**limits, "ephemeral-storage": gibibytes(pool.spill_gb)}, "limits": limits}


def _mounts(
    cluster: Cluster, pool: Pool, stage: str | None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Mount and volume of each."""
    shared = gibibytes(pool.object_store_gb + max(1.0, _BESIDE * pool.object_store_gb))
    disk = gibibytes(pool.spill_gb)
    pairs: list[tuple[str, str, bool, dict[str, Any]]] = [
        ("shared-mem", SHARED, False, {"emptyDir": {"medium": "Memory", "sizeLimit": shared}}),
        (_OPERATOR, SPILL, False, {"emptyDir": {"sizeLimit": disk}}),
        ("cache", CACHE, False, {"emptyDir": {}}),
    ]
    for i, v in enumerate(cluster.kubernetes.volumes):
        claim = {"claimName": v.claim, "readOnly": v.read_only}
        pairs.append((f"data-{i}", v.path, v.read_only, {"persistentVolumeClaim": claim}))
    if stage:
        pairs.append(("stage", STAGE_FOLDER, True, {"configMap": {"name": stage}}))
    return [
        (
            {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {}),
            {"name": name, **volume},
        )
        for name, path, read_only, volume in pairs
    ]


def _placed(cluster: Cluster, pool: Pool) -> dict[str, Any]:
    """Which nodes take it."""
    spot = cluster.spot if pool.spot else None
    selector = {**pool.node_selector, **(spot.node_selector if spot else {})}
    tolerations = [*pool.tolerations, *(spot.tolerations if spot else ())]
    if pool.gpu_type:
        selector[cluster.kubernetes.gpu_label] = pool.gpu_type
    if pool.gpus:
        # Most clusters taint their GPU nodes so, to keep other work away.
        tolerations.append(Toleration(key=cluster.kubernetes.gpu_resource, effect="NoSchedule"))
    placed: dict[str, Any] = {}
    if selector:
        placed["nodeSelector"] = selector
    if tolerations:
        placed["tolerations"] = [_toleration(t) for t in dict.fromkeys(tolerations)]
    return placed


def _toleration(toleration: Toleration) -> dict[str, str]:
    entry = {"key": toleration.key, "operator": "Exists" if toleration.value is None else "Equal"}
    if toleration.value is not None:
        entry["value"] = toleration.value
    if toleration.effect is not None:
        entry["effect"] = toleration.effect
    return entry

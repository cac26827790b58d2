"""What runs: a cluster to develop on, a RayJob for each stage, a RayService for the endpoint."""

import math
from typing import Any

import yaml

from clusters.document.cluster import Cluster
from clusters.document.mounts import STAGE_FOLDER
from clusters.document.pools import DATA, SERVE, TRAIN
from clusters.document.work import Endpoint, Stage
from clusters.kuberay.groups import cluster_spec
from clusters.kuberay.objects import OF, Manifest, metadata
from clusters.kuberay.pods import USER, container_security, secret_key
from gwp.errors import GwpError

_HOUR = 3600
_FILE = "stage.yaml"
# Between the notice and the end of a pod: its Service forgets it, then Ray lets it go as a machine
# that is taken away (runs take a checkpoint, the endpoint moves), then its processes end.
_FORGOTTEN_S = 5
_CHECKPOINT_S = 120
_PROCESS_S = 15
_LET_GO = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_SUSPENDED = (
    "DECIDE: it waits until somebody says so: kubectl -n {namespace} patch rayjob {name} "
    """--type merge -p '{{"spec": {{"suspend": false}}}}'"""
)


def development(cluster: Cluster) -> Manifest:
    """A RayCluster with all pools, for `gwp submit` and `gwp serve`."""
    least = {name: pool.min_nodes for name, pool in cluster.pools.workers().items()}
    spec = cluster_spec(cluster, least)
    # Another image or pool makes the cluster anew; what runs on it then goes on by itself.
    spec["upgradeStrategy"] = {"type": "Recreate"}
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": metadata(cluster, cluster.name),
        "spec": spec,
    }
    reach = (
        f"kubectl -n {cluster.kubernetes.namespace} port-forward service/{cluster.name}-head-svc"
    )
    notes = (
        "For developing: it runs until it is deleted, idle or not.",
        f"Dashboard and `gwp submit`: {reach} 8265",
    )
    return Manifest(body, notes)


def object_name(run: str) -> str:
    """A run's name as that of a Kubernetes object; GwpError when nothing is left of it."""
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in run.lower()).strip("-")
    name = name if not name[:1].isdigit() else f"run-{name}"
    if not name or len(name) > 40:
        raise GwpError(
            f"run.name {run!r} cannot name a RayJob (letters, digits and -, at most 40); set "
            "run.name"
        )
    return name


def stage_file(cluster: Cluster, stage: Stage) -> Manifest:
    """The resolved stage file as a ConfigMap."""
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, f"{object_name(stage.name)}-stage"),
        "data": {_FILE: stage.document},
    }
    return Manifest(body)


def training(cluster: Cluster, stage: Stage) -> Manifest:
    """A stage as a RayJob: its own cluster, which goes when it is done."""
    rules = cluster.kubernetes.jobs
    name = object_name(stage.name)
    least = {TRAIN: max(stage.train_nodes, _min_nodes(cluster, TRAIN))}
    if cluster.pools.data is not None:
        least[DATA] = max(stage.data_nodes, _min_nodes(cluster, DATA))
    leaving = _leaving(_CHECKPOINT_S)
    head = {"stage": f"{name}-stage", **leaving}
    suspended = rules.queue is not None or stage.after is not None
    spec: dict[str, Any] = {
        "entrypoint": f"gwp train {STAGE_FOLDER}/{_FILE}",
        "submissionMode": rules.submission,
        "backoffLimit": rules.retries,
        "suspend": suspended,
    }
    if rules.deadline_h:
        spec["activeDeadlineSeconds"] = math.ceil(rules.deadline_h * _HOUR)
    if rules.start_deadline_h:
        spec["preRunningDeadlineSeconds"] = math.ceil(rules.start_deadline_h * _HOUR)
    spec |= _deletion(rules.keep_failed_h, suspended)
    spec["rayClusterSpec"] = cluster_spec(
        cluster, least, autoscaling=rules.queue is None, head=head, workers=leaving
    )
    if rules.submission == "K8sJobMode":
        spec["submitterPodTemplate"] = _submitter(cluster)
        spec["submitterConfig"] = {"backoffLimit": 2}
    labels = {"kueue.x-k8s.io/queue-name": rules.queue} if rules.queue else {}
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(cluster, name, labels),
        "spec": spec,
    }
    return Manifest(body, _job_notes(cluster, stage, name))


def serving(cluster: Cluster, endpoint: Endpoint) -> Manifest:
    """The endpoint as a RayService."""
    rules = cluster.kubernetes.service
    # Serve gives a process some seconds beyond its drain.
    leaving = _leaving(endpoint.drain_s + _PROCESS_S)
    # No request passes a proxy of Ray Serve, so there is none to exchange either.
    leaving["env"]["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    leaving["ports"] = {"serve": endpoint.port}
    spec = cluster_spec(
        cluster,
        {SERVE: max(endpoint.nodes, _min_nodes(cluster, SERVE))},
        head=leaving,
        workers={"probe": _answers(), **leaving},
    )
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        # A Service forgets a pod a moment after its end has begun.
        sleep = ["/bin/sh", "-c", f"sleep {_FORGOTTEN_S}"]
        container["lifecycle"] = {"preStop": {"exec": {"command": sleep}}}
    if rules.redis:
        spec["gcsFaultToleranceOptions"] = _kept(cluster)
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata(cluster, cluster.name),
        "spec": {
            "serveConfigV2": yaml.safe_dump(endpoint.config, sort_keys=False),
            "upgradeStrategy": _upgrade(cluster),
            # It holds no gateway.
            "excludeHeadPodFromServeSvc": True,
            # Robots that are still connected there get their answers first.
            "rayClusterDeletionDelaySeconds": max(60, math.ceil(leaving["grace_s"])),
            "rayClusterConfig": spec,
        },
    }
    return Manifest(body, _service_notes(cluster, endpoint))


def _leaving(let_go_s: float) -> dict[str, Any]:
    """Options of `pod_template` for pods that Ray lets go within so many seconds."""
    return {
        "grace_s": _FORGOTTEN_S + let_go_s + _PROCESS_S,
        "env": {_LET_GO: str(math.ceil(let_go_s))},
    }


def _min_nodes(cluster: Cluster, name: str) -> int:
    return cluster.pools.workers()[name].min_nodes


def _deletion(keep_failed_h: float, suspended: bool) -> dict[str, Any]:
    """When the pods of a stage go."""
    keep_s = math.ceil(keep_failed_h * _HOUR)
    if suspended:
        # KubeRay suspends only what is shut down with its job, and Kueue asks for it.
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": keep_s}
    rules = [
        {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 0}},
        {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": keep_s}},
    ]
    return {"deletionStrategy": {"deletionRules": rules}}


def _submitter(cluster: Cluster) -> dict[str, Any]:
    """The small pod that hands the stage in; one of the cluster's, for the network policies."""
    return {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "gwp", OF: cluster.name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "submitter",
                    "image": cluster.image,
                    "resources": {
                        "requests": {"cpu": "200m", "memory": "512Mi"},
                        "limits": {"cpu": "1", "memory": "1Gi"},
                    },
                    "securityContext": container_security(),
                }
            ],
        }
        | ({"imagePullSecrets": [{"name": s}]} if (s := cluster.kubernetes.pull_secret) else {}),
    }


def _answers() -> dict[str, Any]:
    """Whether a pod may get robots: its gateway answers, and a replica answers it. Whether the
    pod lives is asked by KubeRay, of its raylet; whether a gateway lives, by Ray Serve.
    """
    return {
        "httpGet": {"path": "/readyz", "port": "serve"},
        "periodSeconds": 2,
        "timeoutSeconds": 2,
        "failureThreshold": 2,
    }


def _upgrade(cluster: Cluster) -> dict[str, Any]:
    rules = cluster.kubernetes.service
    if rules.upgrade == "in-place":
        return {"type": "None"}
    if rules.upgrade == "new-cluster":
        return {"type": "NewCluster"}
    return {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": rules.gateway_class,
            "stepSizePercent": rules.step_percent,
            "intervalSeconds": rules.interval_s,
            "maxSurgePercent": rules.surge_percent,
        },
    }


def _kept(cluster: Cluster) -> dict[str, Any]:
    redis = cluster.kubernetes.service.redis
    assert redis is not None
    options: dict[str, Any] = {"redisAddress": redis.address}
    if redis.password:
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": secret_key(redis.password)}}
    return options


def _job_notes(cluster: Cluster, stage: Stage, name: str) -> tuple[str, ...]:
    again = "kubectl replace --force -f THIS_FILE"
    notes = [f"Run {stage.name}. After its end, `{again}` resumes it, or says that it is done."]
    if stage.after:
        notes.append(f"It begins with the weights of {stage.after}, which must have ended.")
    if stage.after and cluster.kubernetes.jobs.queue is None:
        notes.append(_SUSPENDED.format(namespace=cluster.kubernetes.namespace, name=name))
    return tuple(notes)


def _service_notes(cluster: Cluster, endpoint: Endpoint) -> tuple[str, ...]:
    outside = (
        "DECIDE: TLS and the way in from outside (Ingress, Gateway, load balancer) are yours; let "
        "it keep websockets open, and ask /readyz."
    )
    service = f"{cluster.name}-serve-svc:{endpoint.port}"
    notes = [f"Robots ask {service}, a Service that KubeRay makes.", outside]
    if cluster.kubernetes.service.redis is None:
        notes.append(
            "DECIDE: without kubernetes.service.redis the endpoint starts anew when its head is lost."
        )
    return tuple(notes)

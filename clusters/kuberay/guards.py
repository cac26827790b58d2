"""Who may reach the pods, and how many may go at a time."""

from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.pools import HEAD, POOL, SERVE
from clusters.document.work import Endpoint
from clusters.kuberay.groups import HEAD_PORTS
from clusters.kuberay.objects import OF, Manifest, metadata
from clusters.kuberay.pods import METRICS_PORT

_NAMESPACE = "kubernetes.io/metadata.name"
# Ports of the autoscaler's and the dashboard's own metrics, as KubeRay sets them.
_OF_THE_HEAD = (44217, 44227)


def namespace(cluster: Cluster) -> Manifest:
    """The namespace, with Kubernetes' own rules for pods."""
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": cluster.kubernetes.namespace,
            "labels": {
                "app.kubernetes.io/part-of": "gwp",
                "pod-security.kubernetes.io/enforce": "baseline",
                "pod-security.kubernetes.io/warn": "restricted",
            },
        },
    }
    return Manifest(body, ("Leave it out where somebody else makes namespaces.",))


def policies(cluster: Cluster, endpoint: Endpoint | None) -> list[Manifest]:
    """Nobody outside reaches a pod, but whom one of these lets in."""
    kubernetes = cluster.kubernetes
    operator = _of_namespace(kubernetes.operator_namespace) | {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    }
    found = [
        _policy(
            cluster,
            "inside",
            {},
            {"from": [{"podSelector": {"matchLabels": {OF: cluster.name}}}]},
            "Pods of the cluster reach each other; everybody else is shut out of 6379, 8265, 10001 "
            "and all other ports, unless a policy beside this one lets him in.",
        ),
        _policy(
            cluster,
            "operator",
            {POOL: HEAD},
            {"from": [operator], "ports": _ports(HEAD_PORTS["dashboard"])},
            "KubeRay asks the dashboard how jobs and the endpoint are.",
        ),
    ]
    if kubernetes.monitoring_namespace:
        place = _of_namespace(kubernetes.monitoring_namespace)
        entry = {"from": [place], "ports": _ports(METRICS_PORT, *_OF_THE_HEAD)}
        found.append(_policy(cluster, "metrics", {}, entry, "Prometheus reads all metrics."))
    if endpoint:
        entry = {"ports": _ports(endpoint.port)}
        if networks := kubernetes.service.robots:
            entry["from"] = [{"ipBlock": {"cidr": network}} for network in networks]
        note = "Robots, and what stands in front of them, reach the gateways."
        found.append(_policy(cluster, "robots", {POOL: SERVE}, entry, note))
    return found


def budgets(cluster: Cluster, endpoint: Endpoint | None) -> list[Manifest]:
    """How many pods a drained node may take with it."""
    kept = (
        "No node is drained under a head: a run would lose its driver. Delete this to let it go; "
        "the run goes on from its checkpoint."
    )
    found = [_budget(cluster, HEAD, 0, (kept,))]
    if endpoint:
        found.append(_budget(cluster, SERVE, 1))
    return found


def monitors(cluster: Cluster) -> list[Manifest]:
    """For the operator of Prometheus: which pods and Services have metrics."""
    if cluster.kubernetes.monitoring_namespace is None:
        return []
    note = "Needs the Prometheus operator (monitoring.coreos.com)."
    endpoint = {
        "interval": "15s",
        "relabelings": [_relabel("ray_io_cluster"), _relabel("gwp_pool")],
    }
    pods = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(cluster, cluster.name),
        "spec": {
            "selector": {"matchLabels": {OF: cluster.name}},
            "podMetricsEndpoints": [{"port": "metrics", **endpoint}],
        },
    }
    # The autoscaler and the dashboard have ports of their own on the head's Service.
    head = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(cluster, f"{cluster.name}-head"),
        "spec": {
            "selector": {"matchLabels": {"ray.io/node-type": "head"}},
            "endpoints": [{"port": "as-metrics"}, {"port": "dash-metrics"}],
            "targetLabels": ["ray.io/cluster"],
        },
    }
    return [Manifest(pods, (note,)), Manifest(head, (note,))]


def _relabel(label: str) -> dict[str, Any]:
    source = f"__meta_kubernetes_pod_label_{label}"
    return {"action": "replace", "sourceLabels": [source], "targetLabel": label}


def _of_namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE: name}}}


def _ports(*ports: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _policy(
    cluster: Cluster, name: str, of: dict[str, str], entry: dict[str, Any], note: str
) -> Manifest:
    """Pods of the cluster with the labels `of` may be reached as `entry` says."""
    body = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(cluster, f"{cluster.name}-{name}"),
        "spec": {
            "podSelector": {"matchLabels": {OF: cluster.name, **of}},
            "policyTypes": ["Ingress"],
            "ingress": [entry],
        },
    }
    return Manifest(body, (note,))


def _budget(cluster: Cluster, pool: str, gone: int, notes: tuple[str, ...] = ()) -> Manifest:
    body = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(cluster, f"{cluster.name}-{pool}"),
        "spec": {
            "maxUnavailable": gone,
            "selector": {"matchLabels": {OF: cluster.name, POOL: pool}},
        },
    }
    return Manifest(body, notes)

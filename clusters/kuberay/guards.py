"""Who may reach the pods, and how many may go at a time."""

from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.pools import HEAD, SERVE
from clusters.document.work import Endpoint
from clusters.kuberay.groups import HEAD_PORTS
from clusters.kuberay.objects import OF, POOL_LABEL, Manifest, metadata
from clusters.kuberay.pods import METRICS_PORT

_NAMESPACE = "kubernetes.io/metadata.name"


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
    rules = [
        (
            "inside",
            {},
            [{"from": [{"podSelector": {"matchLabels": {OF: cluster.name}}}]}],
            "Pods of the cluster reach each other; everybody else is shut out of 6379, 8265, 10001 "
            "and all other ports, unless a policy beside this one names them.",
        ),
        (
            "operator",
            {POOL_LABEL: HEAD},
            [
                {
                    "from": [
                        {
                            "namespaceSelector": {
                                "matchLabels": {_NAMESPACE: cluster.kubernetes.operator_namespace}
                            },
                            "podSelector": {
                                "matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}
                            },
                        }
                    ],
                    "ports": _ports(HEAD_PORTS["dashboard"]),
                }
            ],
            "KubeRay asks the dashboard how jobs and the endpoint are.",
        ),
    ]
    if cluster.kubernetes.monitoring_namespace:
        place = {"matchLabels": {_NAMESPACE: cluster.kubernetes.monitoring_namespace}}
        source = [{"from": [{"namespaceSelector": place}], "ports": _ports(METRICS_PORT)}]
        rules.append(("metrics", {}, source, "Prometheus reads the metrics of all pods."))
    if endpoint:
        networks = cluster.kubernetes.service.robots
        entry: dict[str, Any] = {"ports": _ports(endpoint.port)}
        if networks:
            entry = {"from": [{"ipBlock": {"cidr": n}} for n in networks], **entry}
        note = "Robots, and what stands in front of them, reach the gateways."
        rules.append(("robots", {POOL_LABEL: SERVE}, [entry], note))
    return [_policy(cluster, *rule) for rule in rules]


def budgets(cluster: Cluster, endpoint: Endpoint | None) -> list[Manifest]:
    """How many pods a drained node may take with it."""
    found = [_budget(cluster, "head", {POOL_LABEL: HEAD}, {"maxUnavailable": 0})]
    found[0] = Manifest(
        found[0].body,
        (
            "A node is not drained under a head: a run would lose its driver. Delete this to let it "
            "go; the run goes on from its checkpoint.",
        ),
    )
    if endpoint:
        found.append(_budget(cluster, "serve", {POOL_LABEL: SERVE}, {"maxUnavailable": 1}))
    return found


def monitors(cluster: Cluster) -> list[Manifest]:
    """For the operator of Prometheus: which pods and Services have metrics."""
    if cluster.kubernetes.monitoring_namespace is None:
        return []
    note = "Needs the Prometheus operator (monitoring.coreos.com)."
    endpoint = {"interval": "15s", "relabelings": [_relabel("ray_io_cluster"), _relabel("gwp_pool")]}
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


def _ports(port: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port}]


def _policy(
    cluster: Cluster, name: str, of: dict[str, str], ingress: list[dict[str, Any]], note: str
) -> Manifest:
    body = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(cluster, f"{cluster.name}-{name}"),
        "spec": {
            "podSelector": {"matchLabels": {OF: cluster.name, **of}},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }
    return Manifest(body, (note,))


def _budget(
    cluster: Cluster, name: str, of: dict[str, str], allowed: dict[str, int]
) -> Manifest:
    body = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(cluster, f"{cluster.name}-{name}"),
        "spec": {**allowed, "selector": {"matchLabels": {OF: cluster.name, **of}}},
    }
    return Manifest(body)

"""Whether the nodes that a Kubernetes cluster has can hold the pods of a document."""

import json
import re
from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.pools import Pool
from clusters.kuberay.pods import pod_template
from gwp.errors import GwpError

_SUFFIXES = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}
_QUANTITY = re.compile(r"([0-9.]+)([A-Za-z]*)")
_SHOWN = 3


def quantity(text: str) -> float:
    """A quantity of Kubernetes as a number; ValueError when it is none."""
    match = _QUANTITY.fullmatch(text)
    if not match or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity of Kubernetes")
    return float(match[1]) * _SUFFIXES[match[2]]


def read_nodes(text: str, name: str) -> list[dict[str, Any]]:
    """The nodes in what `kubectl get nodes -o json` says; GwpError when it is something else."""
    try:
        items = json.loads(text)["items"]
        nodes = [item for item in items if item["kind"] == "Node"]
    except (ValueError, KeyError, TypeError) as error:
        raise GwpError(f"{name}: not what `kubectl get nodes -o json` prints") from error
    if not nodes:
        raise GwpError(f"{name}: no node in it; `kubectl get nodes -o json` prints them")
    return nodes


def unplaced(cluster: Cluster, nodes: list[dict[str, Any]]) -> list[str]:
    """A line for each pool that no node can hold."""
    lines = []
    for name, pool in cluster.pools.all().items():
        reasons = [_against(cluster, name, pool, node) for node in nodes]
        if all(reasons):
            shown = "; ".join(filter(None, reasons[:_SHOWN]))
            more = f"; and {len(reasons) - _SHOWN} others" if len(reasons) > _SHOWN else ""
            lines.append(f"pools.{name} fits on no node: {shown}{more}")
    return lines


def _against(cluster: Cluster, name: str, pool: Pool, node: dict[str, Any]) -> str | None:
    """Why a pod of the pool cannot be on a node; None: it can."""
    where = node["metadata"]["name"]
    spec = pod_template(cluster, name, pool)["spec"]
    labels = node["metadata"].get("labels", {})
    for key, value in spec.get("nodeSelector", {}).items():
        if labels.get(key) != value:
            return f"{where} has no label {key}={value}"
    for taint in node["spec"].get("taints", ()):
        held = taint["effect"] != "PreferNoSchedule"
        if held and not any(_tolerates(t, taint) for t in spec.get("tolerations", ())):
            return f"{where} is tainted {taint['key']}:{taint['effect']}"
    there = node["status"]["allocatable"]
    for resource, asked in spec["containers"][0]["resources"]["requests"].items():
        if quantity(there.get(resource, "0")) < quantity(asked):
            return f"{where} has {there.get(resource, 'no')} {resource}, a pod needs {asked}"
    return None


def _tolerates(toleration: dict[str, str], taint: dict[str, str]) -> bool:
    if toleration["key"] != taint["key"]:
        return False
    if toleration.get("effect", taint["effect"]) != taint["effect"]:
        return False
    return toleration["operator"] == "Exists" or toleration.get("value") == taint.get("value", "")

"""Whether the nodes that a Kubernetes cluster has can hold the pods of a document."""

import json
import re
from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.pools import Pool
from clusters.kuberay.pods import pod_template
from gwp.errors import GwpError

_DECIMAL = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {f"{letter}i": 2.0 ** (10 * i) for i, letter in enumerate("KMGTPE", 1)}
_SUFFIXES = {**_DECIMAL, "P": 1e15, "E": 1e18, **_BINARY}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_QUANTITY = re.compile(rf"({_NUMBER})(?:([eE][-+]?[0-9]+)|([A-Za-z]*))")
_SHOWN = 3


def quantity(text: str) -> float:
    """A quantity of Kubernetes as a number; ValueError when it is none."""
    match = _QUANTITY.fullmatch(text)
    if not match or (match[3] or "") not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity of Kubernetes")
    return float(match[1] + (match[2] or "")) * _SUFFIXES[match[3] or ""]


def read_nodes(text: str, name: str) -> list[dict[str, Any]]:
    """The nodes in what `kubectl get nodes -o json` says; GwpError when it is something else."""
    try:
        items = json.loads(text)["items"]
        nodes = [item for item in items if item["kind"] == "Node"]
        for node in nodes:
            _require_whole(node)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GwpError(f"{name}: not what `kubectl get nodes -o json` prints") from error
    if not nodes:
        raise GwpError(f"{name}: no node in it; `kubectl get nodes -o json` prints them")
    return nodes


def _require_whole(node: dict[str, Any]) -> None:
    """KeyError, TypeError, AttributeError or ValueError when it lacks what is asked of nodes."""
    if not isinstance(node["metadata"]["name"], str):
        raise TypeError("a node without a name")
    for text in node["status"]["allocatable"].values():
        quantity(text)
    for taint in _taints(node):
        if not {"key", "effect"} <= taint.keys():
            raise KeyError("a taint without a key")


def _taints(node: dict[str, Any]) -> list[dict[str, str]]:
    return node.get("spec", {}).get("taints") or []


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
    if node.get("spec", {}).get("unschedulable"):
        return f"{where} is cordoned"
    labels = node["metadata"].get("labels") or {}
    for key, value in spec.get("nodeSelector", {}).items():
        if labels.get(key) != value:
            return f"{where} has no label {key}={value}"
    for taint in _taints(node):
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

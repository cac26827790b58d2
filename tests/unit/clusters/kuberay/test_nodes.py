"""Pools against the nodes that are there."""

import json
from typing import Any

import pytest

from clusters.kuberay.nodes import quantity, read_nodes, unplaced
from gwp.errors import GwpError
from tests.support.clusters import cluster

SMALL = {"cpus": 2, "memory_gb": 4}
GPU = {"cpus": 16, "memory_gb": 64, "gpus": 2, "gpu_type": "H100"}


def node(name: str, taints: list[dict[str, str]] | None = None, **changes: Any) -> dict[str, Any]:
    allocatable = {"cpu": "3920m", "memory": "15Gi", "ephemeral-storage": "94Gi"}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": changes.pop("labels", {})},
        "spec": {"taints": taints or []},
        "status": {"allocatable": allocatable | changes},
    }


def gpu_node(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
        "labels": {"nvidia.com/gpu.product": "H100"},
        "cpu": "32",
        "memory": "128000000Ki",
        "nvidia.com/gpu": "2",
    }
    return node("gpu", **(fields | changes))


def test_pods_are_where_they_can_be() -> None:
    document = cluster(pools={"head": SMALL, "train": GPU})
    assert not unplaced(document, [node("a"), gpu_node()])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": "15900m"}, "gpu has 15900m cpu, a pod needs 16"),
        ({"memory": "60Gi"}, "gpu has 60Gi memory, a pod needs 64Gi"),
        ({"nvidia.com/gpu": "1"}, "gpu has 1 nvidia.com/gpu, a pod needs 2"),
        ({"labels": {}}, "gpu has no label nvidia.com/gpu.product=H100"),
        ({"taints": [{"key": "other", "effect": "NoExecute"}]}, "gpu is tainted other:NoExecute"),
        ({"taints": [{"key": "other", "effect": "PreferNoSchedule"}]}, None),
    ],
)
def test_a_pool_that_no_node_holds_is_told_with_the_reasons(
    changes: dict[str, Any], said: str | None
) -> None:
    document = cluster(pools={"head": SMALL, "train": GPU})
    lines = unplaced(document, [node("a"), gpu_node(**changes)])
    if said is None:
        assert not lines
        return
    (line,) = lines
    assert (
        line == f"pools.train fits on no node: a has no label nvidia.com/gpu.product=H100; {said}"
    )


def test_many_nodes_make_one_line() -> None:
    document = cluster(pools={"head": SMALL, "train": GPU})
    (line,) = unplaced(document, [node(f"n{i}") for i in range(50)])
    assert line.endswith("; and 47 others")


@pytest.mark.parametrize(
    ("text", "number"), [("2", 2), ("250m", 0.25), ("1Gi", 2**30), ("1.5k", 1500), ("3G", 3e9)]
)
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize("text", ["", "{", "[]", '{"items": []}', '{"items": [{"kind": "Pod"}]}'])
def test_what_is_no_list_of_nodes_is_told(text: str) -> None:
    with pytest.raises(GwpError, match="kubectl get nodes -o json"):
        read_nodes(text, "nodes.json")
    assert read_nodes(json.dumps({"items": [node("a")]}), "nodes.json")

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
        "spec": {"taints": taints or [], "unschedulable": changes.pop("unschedulable", False)},
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
        # As a taint of somebody else, it may go again, and no pod comes there until then.
        ({"unschedulable": True}, "gpu is cordoned"),
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
    ("text", "number"),
    [
        ("2", 2),
        ("250m", 0.25),
        ("1Gi", 2**30),
        ("1.5k", 1500),
        ("3G", 3e9),
        ("1e3", 1000),
        ("12E6", 12e6),
        ("2E", 2e18),
        ("1Pi", 2**50),
        (".5", 0.5),
        ("100n", 1e-7),
    ],
)
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["-1", "1 G", "1gi", "x", "", "1e", "1.2.3", "0x10"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


WRONG = [
    {"kind": "Node"},
    node("a") | {"metadata": {}},
    node("a") | {"metadata": None},
    node("a") | {"status": {}},
    node("a") | {"status": {"allocatable": []}},
    node("a", cpu="many"),
    node("a", cpu=None),
    node("a", taints=[{"value": "x"}]),
    {"kind": "Pod"},
]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"items": []}', *(json.dumps({"items": [w]}) for w in WRONG)]
)
def test_what_is_no_list_of_nodes_is_told(text: str) -> None:
    with pytest.raises(GwpError, match="kubectl get nodes -o json"):
        read_nodes(text, "nodes.json")
    bare = node("a") | {"spec": {}}
    assert read_nodes(json.dumps({"items": [node("a"), bare]}), "nodes.json")

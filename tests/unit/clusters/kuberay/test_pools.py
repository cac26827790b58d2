"""Round trip: from the manifests, the same pools can be read again."""

from typing import Any

import pytest

from clusters.document.cluster import Cluster
from clusters.document.pools import POOL, Pool
from clusters.kuberay.render import manifests
from tests.support.clusters import STAGE, any_cluster, cluster

GIB = 1 << 30


def gib(text: str) -> float:
    return float(text[:-2]) / {"Gi": 1, "Mi": 1024}[text[-2:]]


def read_pool(document: Cluster, group: dict[str, Any]) -> dict[str, Any]:
    """What a group says of its nodes."""
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    limits = container["resources"]["limits"]
    requests = container["resources"]["requests"]
    assert {k: requests[k] for k in limits} == limits
    selector = dict(spec.get("nodeSelector", {}))
    gpu_type = selector.pop(document.kubernetes.gpu_label, None)
    tolerations = [(t["key"], t.get("value"), t.get("effect")) for t in spec.get("tolerations", ())]
    return {
        "cpus": int(limits["cpu"]),
        "memory_gb": gib(limits["memory"]),
        "gpus": int(limits.get(document.kubernetes.gpu_resource, 0)),
        "gpu_type": gpu_type,
        "object_store_gb": int(group["rayStartParams"]["object-store-memory"]) / GIB,
        "spill_gb": gib(requests["ephemeral-storage"]),
        "labels": group["labels"],
        "node_selector": selector,
        "tolerations": sorted(tolerations, key=str),
        "priority": spec.get("priorityClassName"),
        "nodes": (group.get("minReplicas", 1), group.get("maxReplicas", 1)),
    }


def expected(document: Cluster, name: str, pool: Pool) -> dict[str, Any]:
    spot = document.spot if pool.spot else None
    taints = [*pool.tolerations, *(spot.tolerations if spot else ())]
    tolerations = {(t.key, t.value, t.effect) for t in taints}
    if pool.gpus:
        tolerations.add((document.kubernetes.gpu_resource, None, "NoSchedule"))
    return {
        "cpus": pool.cpus,
        "memory_gb": pytest.approx(pool.memory_gb, abs=1 / 1024),
        "gpus": pool.gpus,
        "gpu_type": pool.gpu_type,
        "object_store_gb": pytest.approx(pool.object_store_gb, abs=1e-6),
        "spill_gb": pytest.approx(pool.spill_gb, abs=1 / 1024),
        "labels": {POOL: name, **pool.labels},
        "node_selector": {**pool.node_selector, **(spot.node_selector if spot else {})},
        "tolerations": sorted(tolerations, key=str),
        "priority": pool.priority,
        "nodes": (pool.min_nodes, pool.max_nodes),
    }


@pytest.mark.parametrize("seed", range(20))
def test_the_pools_of_a_cluster_are_read_again(seed: int) -> None:
    document = any_cluster(seed)
    (spec,) = [m.body["spec"] for m in manifests(document) if m.body["kind"] == "RayCluster"]
    groups = {"head": spec["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert {name: read_pool(document, group) for name, group in groups.items()} == {
        name: expected(document, name, pool) for name, pool in document.pools.all().items()
    }


def test_shared_memory_holds_the_object_store_and_is_part_of_the_memory() -> None:
    for seed in range(20):
        document = any_cluster(seed)
        (spec,) = [m.body["spec"] for m in manifests(document) if m.body["kind"] == "RayCluster"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (volume,) = [v for v in pod["volumes"] if v["name"] == "shared-mem"]
            shared = gib(volume["emptyDir"]["sizeLimit"])
            assert int(group["rayStartParams"]["object-store-memory"]) <= shared * GIB


def test_the_head_takes_no_work() -> None:
    (spec,) = [m.body["spec"] for m in manifests(cluster()) if m.body["kind"] == "RayCluster"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "num-cpus" not in spec["workerGroupSpecs"][0]["rayStartParams"]


def test_a_stage_has_the_nodes_that_it_needs_and_no_others() -> None:
    document = cluster(
        pools={
            "head": {"cpus": 2, "memory_gb": 8},
            "train": {"cpus": 8, "memory_gb": 32, "max_nodes": 5},
            "data": {"cpus": 8, "memory_gb": 32, "min_nodes": 3, "max_nodes": 4},
            "serve": {"cpus": 8, "memory_gb": 32, "min_nodes": 9, "max_nodes": 9},
        }
    )
    (job,) = [m.body for m in manifests(document, [STAGE]) if m.body["kind"] == "RayJob"]
    nodes = {
        group["groupName"]: (group["minReplicas"], group["maxReplicas"])
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    # STAGE asks for two nodes to train and one to decode.
    assert nodes == {"train": (2, 5), "data": (3, 4)}

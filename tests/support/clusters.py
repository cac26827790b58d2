"""Cluster documents that tests share."""

import random
from typing import Any

from clusters.document.cluster import Cluster
from clusters.document.work import Endpoint, Stage

POOL = {"cpus": 8, "memory_gb": 32}
SECRETS = {
    "AWS_ACCESS_KEY_ID": {"name": "s3", "key": "id"},
    "AWS_SECRET_ACCESS_KEY": {"name": "s3", "key": "secret"},
}
STAGE = Stage(
    name="tiny/run_1", document="kind: TrainJob\nversion: 1\n", train_nodes=2, data_nodes=1
)
ENDPOINT = Endpoint(
    name="gwp",
    port=8123,
    drain_s=7.5,
    nodes=2,
    config={"proxy_location": "Disabled", "applications": []},
)


def cluster(**changes: Any) -> Cluster:
    """A document that says as little as possible, with `changes` on top."""
    fields: dict[str, Any] = {
        "kind": "Cluster",
        "version": 1,
        "image": "registry.example.com/gwp:1",
        "pools": {"head": POOL, "data": POOL, "train": POOL, "serve": POOL},
    }
    return Cluster.model_validate(fields | changes)


def any_cluster(seed: int) -> Cluster:
    """A document drawn at random, always the same for a seed."""
    draw = random.Random(seed)

    def some(value: Any, otherwise: Any = None) -> Any:
        return value if draw.random() < 0.5 else otherwise

    def pool(standing: bool) -> dict[str, Any]:
        gpus = draw.choice((0, 0, 1, 3, 8))
        least = draw.randrange(4)
        return {
            "cpus": draw.randrange(1, 200),
            "memory_gb": draw.choice((1.5, 16, 100.25, 2000)),
            "gpus": gpus,
            "gpu_type": some("NVIDIA-H100") if gpus else None,
            "min_nodes": least,
            "max_nodes": max(1, least + draw.randrange(5)),
            "spill_gb": draw.choice((0.5, 50, 3000)),
            "labels": some({"rack": "r1"}, {}),
            "node_selector": some({"zone": "a"}, {}),
            "tolerations": some([{"key": "robots", "effect": "NoExecute"}], []),
            "priority": some("high"),
            "spot": not standing and draw.random() < 0.5,
        }

    head = pool(True) | {"min_nodes": 1, "max_nodes": 1}
    queue = some("robots")
    upgrade = draw.choice(("new-cluster", "incremental", "in-place"))
    return cluster(
        pools={"head": head, "data": some(pool(False)), "train": pool(False), "serve": pool(True)},
        spot={"node_selector": {"spot": "true"}, "tolerations": [{"key": "spot", "value": "true"}]},
        storage={"endpoint": some("https://minio.example.com"), "region": some("eu")},
        mlflow=some("http://mlflow:5000"),
        secrets=some(SECRETS, {}),
        env=some({"NCCL_DEBUG": "INFO"}, {}),
        token_auth=True,
        token_secret=some("ray-token"),
        kubernetes={
            "service_account": some("trainer"),
            "pull_secret": some("registry"),
            "volumes": some([{"claim": "data", "path": "/data"}], []),
            "monitoring_namespace": some("monitoring"),
            "jobs": {
                "submission": draw.choice(("K8sJobMode", "HTTPMode", "SidecarMode")),
                "deadline_h": some(10.5),
                "start_deadline_h": some(0.3),
                "keep_failed_h": draw.choice((0, 2)),
                "queue": queue,
            },
            "service": {
                "upgrade": upgrade,
                "gateway_class": "istio" if upgrade == "incremental" else None,
                "redis": some(
                    {"address": "redis:6379", "password": some(SECRETS["AWS_ACCESS_KEY_ID"])}
                ),
                "robots": some(["10.0.0.0/8"], []),
            },
        },
    )

"""What is rendered is what KubeRay and Kubernetes take, whatever the document says."""

from typing import Any

import pytest
import yaml

from clusters.document.cluster import Cluster
from clusters.kuberay.render import manifests, render
from tests.support.clusters import ENDPOINT, STAGE, any_cluster, cluster
from tests.support.crds import definition, refused_by_kuberay, wrong

SEEDS = range(12)
RAY = ("RayCluster", "RayJob", "RayService")
WORK: dict[str, dict[str, Any]] = {
    "RayCluster": {},
    "RayJob": {"stages": [STAGE]},
    "RayService": {"endpoint": ENDPOINT},
}


def rendered(document: Cluster, kind: str) -> list[dict[str, Any]]:
    """As `kubectl apply` reads them."""
    files = render(document, **WORK[kind])
    return [yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml")]


@pytest.mark.parametrize("kind", RAY)
def test_kuberay_takes_what_is_rendered(kind: str) -> None:
    schema = definition(kind)
    for seed in SEEDS:
        (body,) = [b for b in rendered(any_cluster(seed), kind) if b["kind"] in RAY]
        assert body["kind"] == kind
        assert not list(wrong(body, schema)), seed
        assert not list(refused_by_kuberay(body)), seed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(nonsense=1),
        lambda spec: spec["headGroupSpec"].pop("template"),
        lambda spec: spec["headGroupSpec"]["template"]["spec"].update(restartpolicy="Never"),
        lambda spec: spec["workerGroupSpecs"][0].update(replicas="2"),
        lambda spec: spec["workerGroupSpecs"][0]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["authOptions"].update(mode="Token"),
        lambda spec: spec["autoscalerOptions"].update(version="v3"),
    ],
)
def test_the_check_is_as_strict_as_an_api_server(spoil: Any) -> None:
    schema = definition("RayCluster")
    (body,) = [b for b in rendered(cluster(), "RayCluster") if b["kind"] == "RayCluster"]
    spoil(body["spec"])
    assert list(wrong(body, schema))


@pytest.mark.parametrize("kind", RAY)
@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_kubernetes_takes_the_rest(kind: str, version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    checked = set()
    for seed in SEEDS:
        for body in rendered(any_cluster(seed), kind):
            if body["kind"] not in (*RAY, "PodMonitor", "ServiceMonitor"):
                kubernetes.validate(body, version, strict=True)
                checked.add(body["kind"])
    assert checked >= {"Namespace", "NetworkPolicy", "PodDisruptionBudget"}


def test_that_check_refuses_what_is_unknown() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for body in rendered(cluster(), "RayCluster"):
        if body["kind"] == "NetworkPolicy":
            body["spec"]["ingres"] = []
            with pytest.raises(kubernetes.ValidationError):
                kubernetes.validate(body, "1.37", strict=True)


def test_the_same_document_gives_the_same_files() -> None:
    for seed in SEEDS:
        again = Cluster.model_validate(any_cluster(seed).model_dump(mode="json"))
        assert render(again, [STAGE], ENDPOINT) == render(any_cluster(seed), [STAGE], ENDPOINT)


def test_each_object_is_one_file_and_has_a_name_of_its_own() -> None:
    for seed in SEEDS:
        bodies = [m.body for m in manifests(any_cluster(seed), [STAGE], ENDPOINT)]
        names = [(b["kind"], b["metadata"]["name"]) for b in bodies]
        assert len(set(names)) == len(names)
        assert len(render(any_cluster(seed), [STAGE], ENDPOINT)) == len(bodies) + 1
        assert all("\n---" not in text for text in render(any_cluster(seed)).values())


def test_serve_takes_its_part() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve.app import render as serve_config
    from serve.config import ServeApp

    app = ServeApp(policy="s3://b/p", host="0.0.0.0", allow_anonymous=True)
    endpoint = ENDPOINT.__class__("gwp", 8000, 5, 1, serve_config(app))
    (body,) = [m.body for m in manifests(cluster(), [], endpoint) if m.body["kind"] == "RayService"]
    config = yaml.safe_load(body["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    assert ServeApp.model_validate(application["args"]) == app

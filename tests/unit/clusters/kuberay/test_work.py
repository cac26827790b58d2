"""What runs, who reaches it, and what of it a document decides."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from clusters.document.mounts import CACHE
from clusters.document.pools import POOL as POOL_LABEL
from clusters.kuberay.objects import OF
from clusters.kuberay.render import NOTES, manifests, render, secrets_of
from clusters.kuberay.work import object_name
from gwp import __version__
from gwp.cache_folder import VARIABLE
from gwp.errors import GwpError
from tests.support.clusters import ENDPOINT, POOL, SECRETS, STAGE, any_cluster, cluster

CLOSED = (6379, 8265, 10001)


def kinds(document: Any, kind: str, *work: Any) -> list[dict[str, Any]]:
    return [m.body for m in manifests(document, *work) if m.body["kind"] == kind]


def pods(document: Any) -> list[dict[str, Any]]:
    """Every template of a pod, with its labels."""
    found = []
    for body in (m.body for m in manifests(document, [STAGE], ENDPOINT)):
        spec = body.get("spec", {})
        ray = spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
        if ray:
            groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
            found += [group["template"] for group in groups]
        found += [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    return found


def reached_by(document: Any, labels: dict[str, str], port: int, source: dict[str, str]) -> bool:
    """Whether policies let pods with the labels `source`, of this namespace, in at a port."""
    chosen = [
        policy["spec"]
        for policy in kinds(document, "NetworkPolicy", [STAGE], ENDPOINT)
        if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]
    assert chosen, "a pod that no policy chooses is open to all"
    for entry in (entry for spec in chosen for entry in spec["ingress"]):
        ports = [p["port"] for p in entry.get("ports", [])] or [port]
        if port not in ports:
            continue
        if "from" not in entry:
            return True
        for peer in entry["from"]:
            pod = peer.get("podSelector", {}).get("matchLabels", {})
            if (
                "namespaceSelector" not in peer
                and "ipBlock" not in peer
                and pod.items() <= source.items()
            ):
                return True
    return False


@pytest.mark.parametrize("seed", range(8))
def test_ports_of_ray_are_closed_to_all_but_the_pods_of_the_cluster(seed: int) -> None:
    document = any_cluster(seed)
    for pod in pods(document):
        labels = pod["metadata"]["labels"]
        for port in CLOSED:
            assert not reached_by(document, labels, port, {"app": "stranger"})
            assert reached_by(document, labels, port, {OF: document.name})


def test_robots_reach_the_gateways_alone() -> None:
    stranger = {"app": "robot"}
    labels = {OF: "gwp", POOL_LABEL: "serve"}
    assert reached_by(cluster(), labels, ENDPOINT.port, stranger)
    assert not reached_by(cluster(), {**labels, POOL_LABEL: "train"}, ENDPOINT.port, stranger)
    some = cluster(kubernetes={"service": {"robots": ["10.20.0.0/16"]}})
    assert not reached_by(some, labels, ENDPOINT.port, stranger)


@pytest.mark.parametrize("seed", range(8))
def test_no_pod_is_more_than_a_process(seed: int) -> None:
    for pod in pods(any_cluster(seed)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["image"] == "registry.example.com/gwp:1"


def test_secrets_are_references_and_go_where_they_are_needed() -> None:
    fleet = {"name": "fleet", "key": "keys", "pools": ["serve"]}
    document = cluster(secrets={**SECRETS, "FLEET_KEYS": fleet})
    for pod in pods(document):
        pool = pod["metadata"]["labels"].get(POOL_LABEL)
        env = {e["name"]: e for e in pod["spec"]["containers"][0].get("env", [])}
        assert ("FLEET_KEYS" in env) == (pool == "serve")
        for name in set(SECRETS) & set(env):
            assert set(env[name]) == {"name", "valueFrom"}
    assert not kinds(document, "Secret", [STAGE], ENDPOINT)
    assert secrets_of(document) == {"fleet": ["keys"], "s3": ["id", "secret"]}
    notes = render(document)[NOTES]
    assert "create secret generic s3 --from-file=id=FILE --from-file=secret=FILE" in notes


@pytest.mark.parametrize("seed", range(8))
def test_a_variable_of_a_pod_has_one_value(seed: int) -> None:
    document = any_cluster(seed).model_copy(update={"env": {"GWP_CACHE": "/fast"}})
    for pod in pods(document):
        found = pod["spec"]["containers"][0].get("env", [])
        names = [e["name"] for e in found]
        assert len(names) == len(set(names))
        assert {e["value"] for e in found if e["name"] == VARIABLE} <= {"/fast"}


def test_policies_lie_in_the_volume_for_caches() -> None:
    found = [e for pod in pods(cluster()) for e in pod["spec"]["containers"][0].get("env", [])]
    assert {e["value"] for e in found if e["name"] == VARIABLE} == {f"{CACHE}/policies"}


@pytest.mark.parametrize(("account", "queue"), [(None, None), ("trainer", None), (None, "q")])
def test_only_who_asks_the_api_server_has_a_token_for_it(
    account: str | None, queue: str | None
) -> None:
    kubernetes = {"service_account": account, "jobs": {"queue": queue}}
    (body,) = kinds(cluster(kubernetes=kubernetes), "RayJob", [STAGE])
    ray = body["spec"]["rayClusterSpec"]
    head = ray["headGroupSpec"]["template"]["spec"]
    workers = [group["template"]["spec"] for group in ray["workerGroupSpecs"]]
    # The autoscaler stands beside the head; a named account is for storage, on every pod.
    assert head["automountServiceAccountToken"] == (queue is None or account is not None)
    assert {w["automountServiceAccountToken"] for w in workers} == {account is not None}
    assert {pod.get("serviceAccountName") for pod in (head, *workers)} == {account}


@pytest.mark.parametrize(
    ("gwp", "said"),
    [
        (f"echo gwp {__version__}", None),
        ("echo gwp 0.0.0", f"the image has gwp 0.0.0, these manifests are of gwp {__version__}"),
        ("exit 3", "the image has no gwp"),
        (None, "the image has no gwp"),
    ],
)
def test_an_image_without_gwp_ends_the_start_with_a_line(
    gwp: str | None, said: str | None, tmp_path: Path
) -> None:
    if gwp:
        (tmp_path / "gwp").write_text(f"#!/bin/sh\n{gwp}\n")
        (tmp_path / "gwp").chmod(0o755)
    (check,) = pods(cluster())[0]["spec"]["initContainers"]
    # Nothing but what a shell has itself.
    env = {"PATH": str(tmp_path)}
    done = subprocess.run(check["command"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (said is not None)
    assert (said or "") in done.stderr
    assert done.stderr.count("\n") == (said is not None)


def test_metrics_are_found_and_let_out_where_the_document_says() -> None:
    assert not kinds(cluster(), "PodMonitor")
    document = cluster(kubernetes={"monitoring_namespace": "monitoring"})
    (pods_,), (head,) = (kinds(document, kind) for kind in ("PodMonitor", "ServiceMonitor"))
    (endpoint,) = pods_["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert pods_["spec"]["selector"]["matchLabels"] == {OF: "gwp"}
    # Ports of that name are what KubeRay gives the head's Service.
    assert [e["port"] for e in head["spec"]["endpoints"]] == ["as-metrics", "dash-metrics"]
    assert head["spec"]["selector"]["matchLabels"] == {"ray.io/node-type": "head"}
    (policy,) = [p for p in kinds(document, "NetworkPolicy") if "metrics" in p["metadata"]["name"]]
    (entry,) = policy["spec"]["ingress"]
    assert [port["port"] for port in entry["ports"]] == [8080, 44217, 44227]
    (source,) = entry["from"]
    assert source["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": "monitoring"
    }


def test_ray_asks_for_a_token() -> None:
    (body,) = kinds(cluster(), "RayCluster")
    assert body["spec"]["authOptions"] == {"mode": "token"}
    (body,) = kinds(cluster(token_secret="t"), "RayCluster")
    assert body["spec"]["authOptions"] == {"mode": "token", "secretName": "t"}


def test_a_pod_ends_after_its_gateway_has_drained_and_gets_robots_while_it_answers() -> None:
    (body,) = kinds(cluster(), "RayService", [], ENDPOINT)
    groups = body["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (template,) = [group["template"]["spec"] for group in groups]
    (container,) = template["containers"]
    # Serve gives a process ten seconds beyond its drain; Ray lets the pod go within them, after
    # the five in which its Service forgets it.
    (let_go,) = [
        float(entry["value"])
        for entry in container["env"]
        if entry["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    ]
    assert let_go > ENDPOINT.drain_s + 10
    assert template["terminationGracePeriodSeconds"] > let_go + 5
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1] == "sleep 5"
    probe = container["readinessProbe"]["httpGet"]
    assert probe == {"path": "/readyz", "port": "serve"}
    assert {"name": "serve", "containerPort": ENDPOINT.port} in container["ports"]
    # KubeRay's Service takes its ports from the head, which itself gets no robot.
    head = body["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "serve", "containerPort": ENDPOINT.port} in head["ports"]
    assert body["spec"]["excludeHeadPodFromServeSvc"] is True
    # A pod is not ended because its gateway is exchanged: KubeRay asks the raylet, Serve the gateway.
    assert "livenessProbe" not in container


def test_an_upgrade_needs_no_second_set_of_gpus_unless_it_is_asked_for() -> None:
    (body,) = kinds(cluster(), "RayService", [], ENDPOINT)
    assert body["spec"]["upgradeStrategy"] == {"type": "None"}
    steps = {"upgrade": "incremental", "gateway_class": "istio"}
    (body,) = kinds(cluster(kubernetes={"service": steps}), "RayService", [], ENDPOINT)
    assert body["spec"]["upgradeStrategy"] == {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {
            "gatewayClassName": "istio",
            "stepSizePercent": 10,
            "intervalSeconds": 30,
            "maxSurgePercent": 20,
        },
    }


def test_control_state_is_kept_where_the_document_says() -> None:
    redis = {"address": "redis:6379", "password": {"name": "r", "key": "p"}}
    document = cluster(kubernetes={"service": {"redis": redis}})
    (body,) = kinds(document, "RayService", [], ENDPOINT)
    assert body["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "r", "key": "p"}}},
    }
    # A stage begins again from its checkpoint instead.
    (body,) = kinds(document, "RayJob", [STAGE])
    assert "gcsFaultToleranceOptions" not in body["spec"]["rayClusterSpec"]


def test_a_stage_leaves_when_it_is_done_and_stays_a_while_when_it_failed() -> None:
    (body,) = kinds(cluster(), "RayJob", [STAGE])
    assert body["spec"]["deletionStrategy"]["deletionRules"] == [
        {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 0}},
        {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 3600}},
    ]
    assert body["spec"]["suspend"] is False
    config = next(m.body for m in manifests(cluster(), [STAGE]) if m.body["kind"] == "ConfigMap")
    assert config["data"] == {"stage.yaml": STAGE.document}
    head = body["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = [v for v in head["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    assert body["spec"]["entrypoint"] == f"gwp train {mount['mountPath']}/stage.yaml"


@pytest.mark.parametrize("after", [None, "world"])
@pytest.mark.parametrize("queue", [None, "robots"])
def test_a_stage_waits_for_its_queue_and_for_the_stage_before(
    after: str | None, queue: str | None
) -> None:
    stage = STAGE.__class__("policy", STAGE.document, 1, 0, after)
    document = cluster(kubernetes={"jobs": {"queue": queue}})
    (manifest,) = [m for m in manifests(document, [stage]) if m.body["kind"] == "RayJob"]
    spec = manifest.body["spec"]
    assert spec["suspend"] == bool(after or queue)
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] == (queue is None)
    labels = manifest.body["metadata"]["labels"]
    assert labels.get("kueue.x-k8s.io/queue-name") == queue
    assert any("suspend" in note for note in manifest.notes) == (
        after is not None and queue is None
    )


@pytest.mark.parametrize(
    ("run", "name"),
    [("policy", "policy"), ("Team/Run_1", "team-run-1"), ("1st", "run-1st")],
)
def test_names_of_runs_become_names_of_objects(run: str, name: str) -> None:
    assert object_name(run) == name


@pytest.mark.parametrize("run", ["_", "x" * 41])
def test_a_run_whose_name_cannot_is_refused(run: str) -> None:
    with pytest.raises(GwpError, match=r"set run\.name"):
        object_name(run)


def test_what_kubernetes_cannot_run_is_refused() -> None:
    with pytest.raises(GwpError, match="Kubernetes runs images"):
        render(cluster(image=None))
    with pytest.raises(GwpError, match=r"pools\.serve: missing"):
        render(cluster(pools={"head": POOL, "train": POOL}), [], ENDPOINT)
    with pytest.raises(GwpError, match="two stages would be the RayJob tiny-run-1"):
        render(cluster(), [STAGE, STAGE])

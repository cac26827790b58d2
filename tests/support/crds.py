"""Kubernetes' own strictness, for objects that no API server is here to take."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from tests.support.paths import SHARED

DEFINITIONS = SHARED / "data" / "kuberay"
_FREE = "x-kubernetes-preserve-unknown-fields"
_EITHER = "x-kubernetes-int-or-string"


def strict(schema: Any) -> Any:
    """An openAPI schema of Kubernetes as a JSON Schema that refuses unknown fields, as the API
    server does under strict validation.
    """
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {k: strict(v) for k, v in schema.items() if not k.startswith("x-kubernetes-")}
    if schema.get(_EITHER):
        plain.pop("anyOf", None)
        plain["type"] = ["integer", "string"]
        # Numbers match no pattern, which JSON Schema leaves alone too.
    if schema.get("nullable"):
        plain["type"] = [plain.get("type", "object"), "null"]
    closed = "properties" in schema and "additionalProperties" not in schema
    if closed and not schema.get(_FREE):
        plain["additionalProperties"] = False
    return plain


@cache
def definition(kind: str) -> dict[str, Any]:
    """The strict schema of `RayCluster`, `RayJob` or `RayService`, version v1. Skips the test
    where KubeRay's definitions are not at hand.
    """
    file = DEFINITIONS / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's definitions are not at {DEFINITIONS}")
    crd = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema: dict[str, Any] = strict(version["schema"]["openAPIV3Schema"])
    # The API server knows metadata itself.
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    return schema


def wrong(body: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """A line for each thing that the schema refuses."""
    import jsonschema

    for error in jsonschema.Draft202012Validator(schema).iter_errors(body):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def refused_by_kuberay(body: dict[str, Any]) -> Iterator[str]:
    """A line for each rule of KubeRay's own that no schema holds (its operator checks them when
    the object is there already), and for each field that is alpha and off by default in 1.7.
    """
    kind, spec = body["kind"], body["spec"]
    inner = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec")}
    ray = inner.get(kind) or spec["rayClusterConfig"]
    for alpha in ("networkPolicy", "tlsOptions", "historyServerOptions", "managedBy"):
        if alpha in ray:
            yield f"{alpha} is alpha"
    if ray.get("gcsFaultToleranceOptions", {}).get("backend", "redis") != "redis":
        yield "embedded GCS storage is alpha"
    if kind != "RayCluster" and "upgradeStrategy" in ray:
        yield "upgradeStrategy is of a RayCluster that somebody makes himself"
    if ray["authOptions"]["mode"] == "token" and not ray.get("rayVersion"):
        yield "a token needs rayVersion"
    scaled = ray["enableInTreeAutoscaling"]
    groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    for group in groups:
        params = group["rayStartParams"]
        if "labels" in params or not all(isinstance(v, str) for v in params.values()):
            yield f"rayStartParams {params}"
        if scaled and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "autoscaler v2 wants restartPolicy Never"
    for group in ray["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"replicas of {group['groupName']}"
    if kind == "RayJob":
        yield from _refused_job(spec, scaled)
    if kind == "RayService":
        yield from _refused_upgrade(spec["upgradeStrategy"], scaled)


def _refused_job(spec: dict[str, Any], scaled: bool) -> Iterator[str]:
    shut = spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    if spec["suspend"] and not shut:
        yield "what is suspended must be shut down"
    if spec.get("ttlSecondsAfterFinished") and not shut:
        yield "a time to live needs a shutdown"
    if bool(rules) == shut:
        yield "either deletionRules or a shutdown"
    for rule in rules or ():
        if set(rule["condition"]) - {"ttlSeconds"} not in ({"jobStatus"}, {"jobDeploymentStatus"}):
            yield f"condition {rule['condition']}"
        if scaled and rule["policy"] == "DeleteWorkers":
            yield "DeleteWorkers does not go with autoscaling"
    if spec["submissionMode"] == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & {
        *spec
    }:
        yield "a sidecar is no pod of its own"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if field in spec and spec[field] <= 0:
            yield f"{field} {spec[field]}"


def _refused_upgrade(strategy: dict[str, Any], scaled: bool) -> Iterator[str]:
    if strategy["type"] not in ("None", "NewCluster", "NewClusterWithIncrementalUpgrade"):
        yield f"upgrade {strategy['type']}"
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        if not scaled:
            yield "an incremental upgrade needs the autoscaler"
        if options["stepSizePercent"] > options["maxSurgePercent"]:
            yield "a step above the surge"

"""All manifests of a cluster document, one file an object, in the order in which they are applied."""

import shlex
from collections.abc import Sequence

from clusters.document.cluster import Cluster
from clusters.document.work import Endpoint, Stage
from clusters.kuberay.guards import budgets, monitors, namespace, policies
from clusters.kuberay.objects import Manifest
from clusters.kuberay.work import development, object_name, serving, stage_file, training
from gwp.errors import GwpError

NOTES = "README.md"


def manifests(
    cluster: Cluster, stages: Sequence[Stage] = (), endpoint: Endpoint | None = None
) -> list[Manifest]:
    """What is applied: a cluster to develop on, or the stages and the endpoint that are given.
    GwpError when the document lacks what Kubernetes needs.
    """
    _require(cluster, stages, endpoint)
    found = [namespace(cluster), *policies(cluster, endpoint), *budgets(cluster, endpoint)]
    found += monitors(cluster)
    for stage in stages:
        found += [stage_file(cluster, stage), training(cluster, stage)]
    if endpoint:
        found.append(serving(cluster, endpoint))
    if not stages and not endpoint:
        found.append(development(cluster))
    return found


def render(
    cluster: Cluster, stages: Sequence[Stage] = (), endpoint: Endpoint | None = None
) -> dict[str, str]:
    """File name -> text. The same document gives the same files."""
    found = manifests(cluster, stages, endpoint)
    files = {f"{i:02}-{m.name}.yaml": m.text() for i, m in enumerate(found)}
    return files | {NOTES: _notes(cluster, stages, list(files))}


def secrets_of(cluster: Cluster) -> dict[str, list[str]]:
    """Name of each Secret that must be there -> keys that it must have."""
    wanted: dict[str, set[str]] = {}
    for secret in cluster.secrets.values():
        wanted.setdefault(secret.name, set()).add(secret.key)
    redis = cluster.kubernetes.service.redis
    if redis and redis.password:
        wanted.setdefault(redis.password.name, set()).add(redis.password.key)
    if cluster.token_secret:
        wanted.setdefault(cluster.token_secret, set()).add("auth_token")
    return {name: sorted(keys) for name, keys in sorted(wanted.items())}


def _require(cluster: Cluster, stages: Sequence[Stage], endpoint: Endpoint | None) -> None:
    if cluster.image is None:
        raise GwpError(
            "image: Kubernetes runs images; build one from clusters/image/Dockerfile and name it"
        )
    if stages and cluster.pools.train is None:
        raise GwpError("pools.train: missing, and a stage needs nodes to train on")
    if endpoint and cluster.pools.serve is None:
        raise GwpError("pools.serve: missing, and an endpoint needs nodes to run on")
    names = [object_name(stage.name) for stage in stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise GwpError(f"two stages would be the RayJob {twice}; set run.name")


def _notes(cluster: Cluster, stages: Sequence[Stage], files: list[str]) -> str:
    place = cluster.kubernetes.namespace
    text = [
        f"# {cluster.name} on Kubernetes",
        "",
        "Written by `gwp cluster render`. For KubeRay 1.7. Lines that begin with `# DECIDE:` are yours.",
        "",
        f"1. `kubectl apply -f {files[0]}`",
    ]
    step = 2
    for name, keys in secrets_of(cluster).items():
        values = " ".join(f"--from-file={key}=FILE" for key in keys)
        text.append(f"{step}. `kubectl -n {place} create secret generic {name} {values}`")
        step += 1
    first = shlex.quote(files[1].partition("-")[0])
    text += [
        f"{step}. `kubectl apply -f .` (the rest, from {first} on; KubeRay's definitions must be there)",
        f"{step + 1}. `kubectl -n {place} get pods -w`",
    ]
    later = [stage.name for stage in stages if stage.after]
    if later:
        text += ["", f"Suspended until the stage before has ended: {', '.join(later)}."]
    return "\n".join(text) + "\n"

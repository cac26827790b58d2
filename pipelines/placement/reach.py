"""Whether the nodes of a cluster can reach what a document names."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel

from clusters.document.cluster import Cluster
from gwp import storage
from gwp.paths import local_paths

Target = Literal["kuberay", "slurm", "local"]
_WRITTEN = ("run.storage",)


def unreached(
    config: BaseModel, cluster: Cluster, target: Target, pools: Sequence[str]
) -> Iterator[str]:
    """A line for everything that `config` names and nodes of the target cannot get at.

    pools: those that work for it
    """
    # One machine, or disks that all nodes of a site mount: what is found here is found there.
    if target == "kuberay":
        volumes = [PurePosixPath(v.path) for v in cluster.kubernetes.volumes]
        for name, path in local_paths(config).items():
            place = PurePosixPath(path.removeprefix("file://"))
            if not any(place.is_relative_to(volume) for volume in volumes):
                yield (
                    f"{name}: {path} is a path of this machine, which pods do not see; give "
                    "s3://BUCKET/..., or a path below a volume of kubernetes.volumes"
                )
            elif name in _WRITTEN and (disk := _read_only(place, cluster)):
                yield (
                    f"{name}: {path} is on the disk {disk}, which pods may only read; give that "
                    "volume read_only: false"
                )
    texts = dict(_texts(config.model_dump(mode="json")))
    remote = [name for name, text in texts.items() if storage.is_remote(text)]
    without = cluster.keyless(pool for pool in pools if pool in cluster.pools.all())
    if remote and target == "kuberay" and without:
        yield (
            f"{remote[0]}: {texts[remote[0]]} needs access, and the pods of {', '.join(without)} have "
            "none: give secrets.AWS_ACCESS_KEY_ID and secrets.AWS_SECRET_ACCESS_KEY to these pools, "
            "or kubernetes.service_account"
        )
    named = [name for name, text in texts.items() if text.startswith("models:/")]
    if named and cluster.mlflow is None and target != "local":
        yield (
            f"{named[0]}: {texts[named[0]]} is known to an MLflow server alone; give `mlflow` in "
            "the cluster document"
        )


def _read_only(place: PurePosixPath, cluster: Cluster) -> str | None:
    """Where the disk of a path is mounted, if pods may only read it."""
    disks = [v for v in cluster.kubernetes.volumes if place.is_relative_to(v.path)]
    # Of disks inside of disks it is the inner one.
    disk = max(disks, key=lambda volume: len(volume.path))
    return disk.path if disk.read_only else None


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of every text."""
    if isinstance(value, str):
        yield name, value
    below_it = dict(enumerate(value)) if isinstance(value, list) else value
    for key, below in below_it.items() if isinstance(below_it, dict) else ():
        yield from _texts(below, f"{name}.{key}".lstrip("."))

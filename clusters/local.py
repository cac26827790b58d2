"""A cluster document on this machine: what `gwp mini start` runs."""

import shlex
from collections.abc import Sequence

from clusters.document.cluster import Cluster
from clusters.document.work import Stage
from clusters.gpus import dealt, here
from gwp.errors import GwpError

DOCUMENT = "cluster.yaml"
START, RUN = "start.sh", "run.sh"
_HEAD = '#!/bin/bash\n# Written by `gwp cluster render`.\nset -euo pipefail\ncd "$(dirname "$0")"\n'


def cpus_of(cluster: Cluster) -> dict[str, int]:
    """Pool -> logical CPUs of its node on this machine; GwpError for what it cannot have."""
    for name, pool in cluster.pools.workers().items():
        if pool.min_nodes > 1:
            raise GwpError(
                f"pools.{name}.min_nodes: {pool.min_nodes}, and here each pool is one node"
            )
    return {name: pool.cpus for name, pool in cluster.pools.workers().items()}


def gpus_of(cluster: Cluster, there: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """Pool -> names of the GPUs of its node; GwpError when this machine has too few.

    there: names of those of this machine; None: they are looked for, if any pool asks for one
    """
    wanted = {name: pool.gpus for name, pool in cluster.pools.workers().items()}
    if not any(wanted.values()):
        return {}
    return dealt(wanted, here() if there is None else there)


def render(cluster: Cluster, document: str, stages: Sequence[Stage]) -> dict[str, str]:
    """File name -> text. document: the resolved cluster document"""
    # They raise what a mini-cluster cannot be.
    cpus_of(cluster)
    gpus_of(cluster)
    name = shlex.quote(f"runs/{cluster.name}")
    start = f"exec gwp mini start --cluster {DOCUMENT} --folder {name}\n"
    files = {DOCUMENT: document, START: _HEAD + start}
    if not stages:
        return files
    lines = ["# shellcheck source=/dev/null", f". {name}/env.sh"]
    for i, stage in enumerate(stages):
        file = f"{i:02}-{stage.file_name}.yaml"
        files[file] = stage.document
        lines.append(f"gwp train {shlex.quote(file)}")
    note = f"# In another terminal than {START}. Each stage begins when the one before has ended.\n"
    return files | {RUN: _HEAD + note + "\n".join(lines) + "\n"}

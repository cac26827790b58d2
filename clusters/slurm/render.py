"""Batch scripts for the stages of training, and one that queues them in a row."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from clusters.document.cluster import Cluster
from clusters.document.pools import DATA, POOL, TRAIN, Pool
from clusters.document.work import Stage
from gwp.errors import GwpError
from gwp.storage.names import shown

BODY = Path(__file__).with_name("body.sh")
QUEUE = "queue.sh"
_GIB = 1 << 30
_SPREAD = ["--ntasks-per-node=1", "--exclusive"]


def render(cluster: Cluster, stages: Sequence[Stage], folder: Path) -> dict[str, str]:
    """File name -> text: stage files, a batch script for each, and `queue.sh`.

    folder: where they will lie, on a disk that all nodes see. GwpError when the document lacks
    what Slurm needs.
    """
    pool = cluster.pools.train
    if not stages:
        raise GwpError("Slurm runs stages; say which: --job STAGE.yaml")
    if pool is None:
        raise GwpError("pools.train: missing, and a stage needs nodes to train on")
    files: dict[str, str] = {}
    scripts: list[str] = []
    for i, stage in enumerate(stages):
        name = f"{i:02}-{stage.file_name}"
        files[f"{name}.yaml"] = stage.document
        files[f"{name}.sbatch"] = _script(cluster, pool, stage, folder / f"{name}.yaml")
        scripts.append(f"{name}.sbatch")
    return files | {QUEUE: _queue(scripts)}


def _script(cluster: Cluster, pool: Pool, stage: Stage, file: Path) -> str:
    nodes = max(stage.train_nodes, pool.min_nodes)
    asked = _options(cluster, pool, stage, nodes)
    data = cluster.pools.data if stage.data_nodes else None
    data_nodes = max(stage.data_nodes, data.min_nodes) if data else 0
    if data:
        asked += ["hetjob", *_of_nodes(cluster, data, data_nodes, cluster.slurm.data_partition)]
    # Values are quoted once, here; the rest of the script is the same for everybody.
    values = {
        "nodes": str(nodes),
        "cpus": str(pool.cpus),
        "data_nodes": str(data_nodes),
        "data_cpus": str(data.cpus if data else 0),
        "port": str(cluster.slurm.port),
        "stage": str(file),
        "venv": cluster.slurm.venv or "",
        "env_file": cluster.slurm.env_file or "",
        "token_auth": str(int(cluster.token_auth)),
    }
    exported = {
        "AWS_ENDPOINT_URL": cluster.storage.endpoint,
        "AWS_REGION": cluster.storage.region,
        "MLFLOW_TRACKING_URI": cluster.mlflow,
        **cluster.env,
    }
    own = (
        set(values)
        | set(re.findall(r"(?m)^\s*([a-z_]+)=", BODY.read_text()))
        | {"ray_options", "data_options", "PATH"}
    )
    if taken := sorted(own & set(cluster.env)):
        raise GwpError(f"env.{taken[0]}: the batch script has it for itself; take another name")
    ray = _ray_options(TRAIN, pool)
    decoding = _ray_options(DATA, data) if data else []
    lines = [
        "#!/bin/bash",
        f"# Run {shown(stage.name)}. Written by `gwp cluster render`; hand it to sbatch.",
        *(f"#SBATCH {option}" for option in asked),
        "set -euo pipefail",
        *(f"{name}={shlex.quote(value)}" for name, value in values.items()),
        f"ray_options=({' '.join(map(_quoted, ray))})",
        f"data_options=({' '.join(map(_quoted, decoding))})",
        *(f"export {name}={shlex.quote(v)}" for name, v in exported.items() if v is not None),
        "",
    ]
    return "\n".join(lines) + BODY.read_text()


def _options(cluster: Cluster, pool: Pool, stage: Stage, nodes: int) -> list[str]:
    """What sbatch is asked for: the job, and its nodes that train."""
    return [
        f"--job-name={stage.file_name}",
        "--output=%x-%j.out",
        # A run that was queued again goes on in the same log.
        "--open-mode=append",
        *_of_nodes(cluster, pool, nodes),
        # To this script alone (B): it knows whom to tell.
        f"--signal=B:USR1@{cluster.slurm.save_s}",
    ]


def _of_nodes(cluster: Cluster, pool: Pool, nodes: int, partition: str | None = None) -> list[str]:
    """What sbatch is asked for, of nodes of one kind."""
    slurm = cluster.slurm
    options = [
        f"--nodes={nodes}",
        *_SPREAD,
        f"--cpus-per-task={pool.cpus}",
        f"--mem={int(pool.memory_gb * 1024)}M",
    ]
    if pool.gpus:
        kind = f"{pool.gpu_type}:" if pool.gpu_type else ""
        options.append(f"--gres=gpu:{kind}{pool.gpus}")
    for name, value in (
        ("partition", partition or slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
    ):
        if value:
            options.append(f"--{name}={value}")
    return [*options, f"--time={slurm.time_min}", "--requeue"]


def _ray_options(name: str, pool: Pool) -> list[str]:
    """For `ray start` on every node of a pool; the first one that trains is the head, too."""
    labels = ",".join(f"{k}={v}" for k, v in ({POOL: name} | pool.labels).items())
    options = [f"--num-cpus={pool.cpus}", f"--labels={labels}"]
    if pool.gpus:
        options.append(f"--num-gpus={pool.gpus}")
    return [*options, f"--object-store-memory={int(pool.object_store_gb * _GIB)}"]


def _quoted(word: str) -> str:
    """In quotes, also where a shell needs none: commas in a list look like a mistake."""
    quoted = shlex.quote(word)
    return quoted if quoted != word else f"'{word}'"


def _queue(scripts: Sequence[str]) -> str:
    """Each stage starts when the one before has ended well."""
    lines = [
        "#!/bin/bash",
        "# Queues the stages in a row; one that fails leaves those behind it waiting for ever, until",
        "# they are cancelled (scancel) or queued anew.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
        "before=",
    ]
    for script in scripts:
        after = '${before:+--dependency=afterok:"$before"}'
        lines.append(f'before="$(sbatch --parsable {after} {shlex.quote(script)})"')
        lines.append(f'echo "{script}: job $before"')
    return "\n".join(lines) + "\n"

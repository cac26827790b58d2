"""`gwp cluster`: a cluster document as what Kubernetes, Slurm or this machine runs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusters.document.cluster import Cluster
    from clusters.document.work import Endpoint, Stage
    from pipelines.placement.reach import Target

_TARGETS = ("kuberay", "slurm", "local")


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cluster", help="a cluster document as manifests, batch scripts, or a mini-cluster"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    render = actions.add_parser(
        "render",
        help="write the files that a target takes",
        description=(
            "Checks the document, and whether stages and endpoint fit it, then writes one file for "
            "each object. The same input gives the same files."
        ),
    )
    render.add_argument("file", metavar="FILE", help="a Cluster file")
    render.add_argument("--target", required=True, choices=_TARGETS, help="what runs it")
    render.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for the files: new, empty, or that of an earlier render, which is replaced",
    )
    render.add_argument(
        "--job",
        nargs="+",
        default=[],
        action="extend",
        dest="jobs",
        metavar="STAGE",
        help="stage files, in the order in which they run",
    )
    render.add_argument(
        "--job-set",
        action="append",
        default=[],
        dest="job_sets",
        metavar="A.B=VALUE",
        help="override a value of every stage, e.g. codec.path=/weights/vae",
    )
    render.add_argument("--serve", metavar="SERVE", help="a ServeApp file (kuberay)")
    render.add_argument(
        "--nodes",
        type=Path,
        metavar="FILE",
        help="what `kubectl get nodes -o json` printed: pools are held against these nodes",
    )
    render.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value of the Cluster file",
    )
    render.add_argument(
        "--force",
        action="store_true",
        help="also into a folder with other files, which stay, and over what was changed by hand",
    )
    render.set_defaults(run=run_render)


def run_render(args: argparse.Namespace) -> None:
    from clusters.document.cluster import Cluster
    from clusters.folder import require_free, write
    from gwp.errors import GwpError
    from pipelines.config.load import load_config
    from pipelines.console import event

    cluster = load_config(args.file, Cluster, args.sets)
    if args.serve and args.target != "kuberay":
        raise GwpError(
            f"--serve: {args.target} runs no RayService; on a running cluster `gwp serve` deploys"
        )
    out: Path = args.out.absolute()
    require_free(out, force=args.force)
    if args.nodes:
        _hold_against(args.nodes, cluster)
    stages = _stages(args.jobs, args.job_sets, cluster, args.target)
    endpoint = _endpoint(args.serve, cluster, args.target) if args.serve else None
    files = _files(args.target, cluster, stages, endpoint, out)
    written, gone = write(out, files)
    for path in written:
        print(path)
    if gone and args.target == "kuberay":
        # `kubectl apply` deletes nothing.
        event("removed", files=gone, text="objects of these that were applied stay until deleted")


def _hold_against(file: Path, cluster: "Cluster") -> None:
    """ConfigError when no node holds a pool."""
    from clusters.kuberay.nodes import read_nodes, unplaced
    from gwp.errors import GwpError
    from pipelines.config.load import ConfigError

    if not file.is_file():
        raise GwpError(f"--nodes {file}: not found; `kubectl get nodes -o json > {file}` makes it")
    problems = unplaced(cluster, read_nodes(file.read_text(errors="replace"), str(file)))
    if problems:
        raise ConfigError(problems)


def _files(
    target: "Target",
    cluster: "Cluster",
    stages: "list[Stage]",
    endpoint: "Endpoint | None",
    out: Path,
) -> dict[str, str]:
    from clusters import local
    from clusters.kuberay.render import render as kuberay
    from clusters.slurm.render import render as slurm
    from pipelines.config.load import dump_resolved

    if target == "kuberay":
        return kuberay(cluster, stages, endpoint)
    if target == "slurm":
        return slurm(cluster, stages, out)
    return local.render(cluster, dump_resolved(cluster), stages)


def _stages(
    files: list[str], sets: list[str], cluster: "Cluster", target: "Target"
) -> "list[Stage]":
    """Checked, resolved and measured against the cluster; ConfigError with all that is wrong."""
    from clusters.document.work import Stage
    from gwp.errors import GwpError
    from gwp.paths import absolute_paths
    from pipelines.config.load import ConfigError, dump_resolved, load_config
    from pipelines.console import event
    from pipelines.jobs.sequence import parent_of, require_sequence
    from pipelines.jobs.train_job import TrainJob
    from pipelines.placement.stage import decodes_apart, misfits, needs

    if twice := next((f for f in files if files.count(f) > 1), None):
        raise GwpError(f"--job {twice}: given twice; give each stage once")
    jobs = {file: load_config(file, TrainJob, sets) for file in files}
    require_sequence(list(jobs.values()))
    problems = [f"{f}: {line}" for f, job in jobs.items() for line in misfits(job, cluster, target)]
    if problems:
        raise ConfigError(problems)
    places = [absolute_paths(job).run.uri for job in jobs.values()]
    stages: list[Stage] = []
    for file, job in jobs.items():
        placed = job
        if job.cluster.data_pool == "data" and not decodes_apart(job, cluster):
            event("decoding on the nodes of train", stage=file, why="there is no pool data")
            changed = job.cluster.model_copy(update={"data_pool": job.cluster.train_pool})
            placed = job.model_copy(update={"cluster": changed})
        wanted = needs(placed, cluster)
        parent = parent_of(job, places)
        stages.append(
            Stage(
                name=job.run.name,
                document=dump_resolved(placed),
                train_nodes=wanted.train,
                data_nodes=wanted.data,
                after=None if parent is None else stages[parent].name,
            )
        )
    return stages


def _endpoint(file: str, cluster: "Cluster", target: "Target") -> "Endpoint":
    from clusters.document.work import Endpoint
    from pipelines.config.load import ConfigError, load_config
    from pipelines.placement.endpoint import gateways_of_a_node, misfits, nodes
    from serve.app import render
    from serve.config import ServeApp

    app = load_config(file, ServeApp)
    problems = [f"{file}: {line}" for line in misfits(app, cluster, target)]
    if problems:
        raise ConfigError(problems)
    pool = cluster.pools.serve
    assert pool is not None
    config = render(app)
    if app.separate:
        # Each node that can has a gateway, so that its pod gets robots.
        bound = gateways_of_a_node(app, pool)
        config["applications"][0]["deployments"] = [
            {"name": "Gateway", "max_replicas_per_node": bound}
        ]
    return Endpoint(app.name, app.port, app.limits.drain_s, nodes(app, pool), config)

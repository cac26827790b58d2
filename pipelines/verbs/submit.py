"""`gwp submit`: hand a stage file to a running Ray cluster."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "submit", help="run a stage as a job of a Ray cluster and follow it"
    )
    parser.add_argument("file", metavar="FILE", help="stage file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value",
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        help="dashboard of the cluster (default: RAY_API_SERVER_ADDRESS)",
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    parser.set_defaults(run=run_submit)


def run_submit(args: argparse.Namespace) -> int:
    from clusters.submit import Cluster, require_reachable
    from gwp.paths import absolute_paths, relative_paths
    from pipelines.config.load import dump_resolved, load_config
    from pipelines.console import event
    from pipelines.jobs.train_job import TrainJob

    # As written: whether a path was relative decides if the cluster can find it.
    job = load_config(args.file, TrainJob, args.sets, as_written=True)
    cluster = Cluster(args.address)
    require_reachable(relative_paths(job), cluster.address, cluster.here)
    metadata = {"gwp_run": job.run.name, "gwp_stage": job.stage}
    job_id = cluster.submit(dump_resolved(absolute_paths(job)), metadata)
    print(job_id)
    if args.no_wait:
        return 0
    status = cluster.follow(job_id)
    event("job ended", job=job_id, status=status)
    if status == "SUCCEEDED":
        return 0
    print(cluster.log_end(job_id))
    return 1

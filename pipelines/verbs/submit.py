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
    from clusters.submit import submit

    return submit(args.file, args.sets, args.address, wait=not args.no_wait)

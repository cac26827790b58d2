"""`gwp demo`: the whole line on this machine."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo", help="run the whole line on this machine and write a report"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few minutes: everything runs, nothing is learnt well",
    )
    parser.add_argument(
        "--out",
        default="runs/demo",
        metavar="FOLDER",
        help="where report.html and summary.json go (default: runs/demo)",
    )
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> None:
    from pathlib import Path

    from pipelines.demo.line import run_demo as run

    run(Path(args.out), quick=args.quick)

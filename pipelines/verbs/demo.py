"""`gwp demo`: the whole line on this machine."""

import argparse
from collections.abc import Mapping
from typing import Any

from pipelines.demo.size import PROMISED_S

SHORTFALL = 3


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="run the whole line on this machine and write a report",
        epilog="exit code: 0 everything that the demo shows happened (the losses fell, a killed stage "
        f"resumed, replicas came and went, no request failed); {SHORTFALL} it ran to its end and "
        "something did not happen, which the report says first; 2 it could not run to its end",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few minutes: everything runs, nothing is learnt well",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=PROMISED_S / 60,
        metavar="N",
        help="how long it may take; on a machine too slow for that it trains less and says what it left out "
        f"(default: {PROMISED_S / 60:g}; not with --quick)",
    )
    parser.add_argument(
        "--out",
        default="runs/demo",
        metavar="FOLDER",
        help="where report.html and summary.json go (default: runs/demo)",
    )
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pipelines.demo.line import run_demo as run

    return exit_code(run(Path(args.out), quick=args.quick, promised_s=60 * args.minutes))


def exit_code(summary: Mapping[str, Any]) -> int:
    """0 when everything happened that the demo set out to show."""
    return SHORTFALL if summary["shortfalls"] else 0

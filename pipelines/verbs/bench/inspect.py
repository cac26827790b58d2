"""`gwp bench inspect`: `gwp data inspect` of a set far away."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    inspect = subparsers.add_parser(
        "inspect", help="gwp data inspect of a set behind storage that answers late"
    )
    inspect.add_argument(
        "--set",
        metavar="FOLDER",
        help="a set on this machine, which the store serves (default: it makes one)",
    )
    inspect.add_argument(
        "--episodes", type=int, default=2000, help="of the set that it makes (default: 2000)"
    )
    inspect.add_argument(
        "--answers-after",
        type=float,
        default=30.0,
        metavar="MS",
        help="milliseconds that each answer takes (default: 30)",
    )
    inspect.add_argument("--json", metavar="FILE", help="write the figures there too")
    inspect.set_defaults(run=run_inspect)


def run_inspect(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from gwp.errors import GwpError
    from pipelines.bench.far.bench import bench_inspect

    if args.episodes < 1 or args.answers_after < 0:
        raise GwpError("--episodes: give 1 or more; --answers-after: 0 or more")
    if args.set and not Path(args.set).is_dir():
        raise GwpError(f"--set {args.set}: no folder; give one that holds a set")
    result = bench_inspect(args.set, args.episodes, args.answers_after)
    for name, value in result.items():
        print(f"{name:>12}  {value}")
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")

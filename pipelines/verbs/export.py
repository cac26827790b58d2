"""`gwp export`: a policy bundle from a finished run."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("export", help="make a policy bundle of a training run")
    parser.add_argument(
        "run_folder", metavar="RUN", help="run folder: storage and run name, e.g. runs/train/policy"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="URI",
        help="folder or s3:// place of the bundle; it must not exist",
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        default="ema",
        help="averaged or last weights (default: ema)",
    )
    parser.add_argument(
        "--steps", type=int, default=10, help="Euler steps when acting (default: 10)"
    )
    parser.add_argument("--shift", type=float, default=5.0, help="shift of the solver (default: 5)")
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> None:
    from pipelines.training.export import export

    policy_id = export(
        args.run_folder, args.out, weights=args.weights, steps=args.steps, shift=args.shift
    )
    print(f"{policy_id}  {args.out}")

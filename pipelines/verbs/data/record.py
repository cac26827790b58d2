"""`gwp data record`: simulated demonstrations as a LeRobot set."""

import argparse
from typing import Any

from pipelines.verbs.arguments import add_benchmark


def add(subparsers: Any) -> None:
    record = subparsers.add_parser(
        "record", help="record the scripted experts of a simulator as a LeRobot v3.0 set"
    )
    record.add_argument(
        "--out",
        required=True,
        metavar="URI",
        help="folder or s3:// place of the set; it must not exist",
    )
    add_benchmark(record)
    record.add_argument(
        "--tasks", required=True, help="comma-separated, e.g. reach-v3,door-open-v3"
    )
    record.add_argument(
        "--episodes", type=int, default=20, help="successful episodes per task (default: 20)"
    )
    record.add_argument(
        "--seed",
        type=int,
        default=0,
        help="first seed; four are set aside for each episode (default: 0)",
    )
    record.add_argument(
        "--noise",
        type=float,
        help="std of the noise on executed actions (default: as the benchmark has it; 0.2 in "
        "Meta-World)",
    )
    record.add_argument(
        "--size", type=int, default=64, help="side of the pictures, pixels (default: 64)"
    )
    record.add_argument(
        "--no-actions", action="store_true", help="video only: neither state nor action columns"
    )
    record.add_argument(
        "--workers", type=int, default=2, help="simulators side by side (default: 2)"
    )
    record.set_defaults(run=run_record)


def run_record(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from gwp.sim.benchmarks import find
    from gwp.sim.record import record
    from pipelines.console import progress

    tasks = [t.strip() for t in args.tasks.split(",") if t.strip()]
    with progress(f"record {args.out}", args.episodes * len(tasks)) as bar:
        summary = record(
            args.out,
            find(args.benchmark),
            tasks,
            args.episodes,
            args.seed,
            noise=args.noise,
            size=args.size,
            with_actions=not args.no_actions,
            workers=args.workers,
            progress=bar.update,
        )
    print(json.dumps(asdict(summary)))

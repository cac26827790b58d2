"""`gwp bench train`: what training costs beside a bare loop."""

import argparse
from typing import Any


def add(verbs: Any) -> None:
    train = verbs.add_parser(
        "train",
        help="the whole stack, and each ZeRO stage, against a bare PyTorch loop",
        description=(
            "Trains a model of random weights: a loop of plain PyTorch on tensors in memory, our "
            "engine under each ZeRO stage, attention by segments against one under a mask (by a "
            "fast kernel, and with its scores in memory), compiled blocks if wanted, the bare "
            "products of a step, and `gwp train` with its data, checkpoints and tracking."
        ),
    )
    train.add_argument(
        "--size",
        choices=("tiny", "small", "mid", "released"),
        default="small",
        help="as of bench act; released: 5-6 B, for a GPU (default: small)",
    )
    train.add_argument("--family", choices=("gwp0", "gwp05"), default="gwp05")
    train.add_argument("--batch", type=int, default=8, help="samples of a step (default: 8)")
    train.add_argument(
        "--rounds", type=int, default=7, help="turns of each side; medians count (default: 7)"
    )
    train.add_argument("--steps", type=int, default=3, help="steps of a turn (default: 3)")
    train.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    train.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    train.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="(default: fp32)"
    )
    train.add_argument(
        "--zero",
        type=int,
        choices=(0, 1, 2, 3),
        default=1,
        help="stage of the whole stack (default: 1)",
    )
    train.add_argument(
        "--whole-steps",
        type=int,
        default=200,
        help="measured steps of the whole stack; 0 leaves it out (default: 200)",
    )
    train.add_argument(
        "--compiled",
        action="store_true",
        help="compiled blocks, too; takes a minute and a C++ compiler, or on a GPU Triton",
    )
    train.add_argument("--json", metavar="FILE", help="write the figures there too")
    train.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from gwp.errors import GwpError
    from pipelines.bench.train.bench import bench_train
    from pipelines.bench.train.problem import Problem
    from pipelines.bench.train.show import table

    for name in ("batch", "rounds", "steps", "threads"):
        if getattr(args, name) < 1:
            raise GwpError(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.whole_steps < 0:
        raise GwpError(f"--whole-steps {args.whole_steps}: give 0 or more")
    problem = Problem(args.size, args.family, args.batch, args.device, args.precision, args.threads)
    found = bench_train(
        problem, args.rounds, args.steps, args.zero, args.whole_steps, args.compiled
    )
    print(table(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")

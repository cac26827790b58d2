"""`gwp bench compilers`: the compiled layers of acting beside compilers, on this CPU."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    compilers = subparsers.add_parser(
        "compilers",
        help="the compiled layers of acting against torch.compile, AOTInductor and OpenVINO",
    )
    compilers.add_argument("--size", choices=("tiny", "small", "mid"), default="small")
    compilers.add_argument("--family", choices=("gwp0", "gwp05"), default="gwp0")
    compilers.add_argument(
        "--engines",
        metavar="NAME,NAME",
        help="ours, eager, openvino, ...; the first is what others are compared with (default: all)",
    )
    compilers.add_argument(
        "--rounds", type=int, default=20, help="in each every engine runs (default: 20)"
    )
    compilers.add_argument("--threads", type=int, default=2, help="of each engine (default: 2)")
    compilers.add_argument(
        "--cache",
        default="runs/compilers",
        metavar="FOLDER",
        help="what TorchInductor has compiled, for the next time (default: runs/compilers)",
    )
    compilers.add_argument("--json", metavar="FILE", help="write the figures there too")
    compilers.set_defaults(run=run_compilers)


def run_compilers(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from gwp.errors import GwpError
    from pipelines.bench.compilers.bench import bench_compilers, markdown
    from pipelines.bench.compilers.engines import ENGINES

    engines = args.engines.split(",") if args.engines else list(ENGINES)
    if not set(engines) <= set(ENGINES) or len(set(engines)) < len(engines):
        raise GwpError(
            f"--engines {args.engines}: give some of {', '.join(ENGINES)}, each once at most"
        )
    if args.rounds < 1 or args.threads < 1:
        raise GwpError("--rounds and --threads: give 1 or more")
    cache = Path(args.cache).absolute()
    result = bench_compilers(args.size, args.family, engines, args.rounds, args.threads, cache)
    print(markdown(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")

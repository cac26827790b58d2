"""`gwp plan`: what a stage or an endpoint needs, before anything starts."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="what a stage needs of GPUs, cores, time and storage; what an endpoint needs for a fleet",
        description="Arithmetic on the file alone: nothing is started, no data are read.",
    )
    parser.add_argument("file", metavar="FILE", help="a stage (TrainJob) or an endpoint (ServeApp)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value",
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    stage = parser.add_argument_group("a stage")
    stage.add_argument("--gpu", default="h100", metavar="NAME", help="default: h100")
    stage.add_argument("--workers", type=int, metavar="N", help="default: the least of the job")
    stage.add_argument(
        "--utilisation",
        type=_two,
        metavar="LEAST,MOST",
        help="share of the GPU's peak that steps reach (default: 0.25,0.45)",
    )
    stage.add_argument(
        "--decode-rate",
        type=float,
        metavar="N",
        help="pictures a second that a core decodes; `gwp bench ingest` measures it (default: 525)",
    )
    stage.add_argument(
        "--upload-mb", type=float, metavar="N", help="MB/s of a worker to storage (default: 200)"
    )
    stage.add_argument(
        "--prices",
        metavar="FILE",
        help="YAML of hourly prices: the GPU's name, and `core` for a CPU core",
    )
    fleet = parser.add_argument_group("an endpoint")
    fleet.add_argument("--profile", metavar="FILE", help="of `gwp bench act --p99 ... --json`")
    fleet.add_argument("--robots", type=int, metavar="N", help="that ask it")
    fleet.add_argument("--rate", type=float, metavar="HZ", help="requests a second of each robot")
    fleet.add_argument("--p99", type=float, metavar="MS", help="bound of 99 %% of the answers")
    parser.set_defaults(run=run_plan)


def _two(text: str) -> tuple[float, float]:
    try:
        least, most = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: give two shares, such as 0.25,0.45") from error
    return least, most


def run_plan(args: argparse.Namespace) -> int:
    import json

    from gwp.errors import GwpError
    from pipelines.config.load import load_any
    from pipelines.jobs.train_job import TrainJob
    from pipelines.plan.endpoint import plan_endpoint
    from pipelines.plan.show import show_endpoint, show_stage
    from pipelines.plan.stage import plan_stage
    from serve.config import ServeApp

    document = load_any(args.file, args.sets)
    if isinstance(document, TrainJob):
        assumed = _assumed(args)
        plan = plan_stage(document, assumed)
        print(json.dumps(plan.to_json(), indent=1) if args.json else show_stage(plan, assumed))
        return 1 if plan.refused else 0
    if not isinstance(document, ServeApp):
        raise GwpError(f"{args.file}: a {type(document).__name__}; give a TrainJob or a ServeApp")
    needed = {
        "--profile": args.profile,
        "--robots": args.robots,
        "--rate": args.rate,
        "--p99": args.p99,
    }
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise GwpError(f"{args.file}: an endpoint is planned with {', '.join(missing)}, too")
    fleet = plan_endpoint(document, args.profile, args.robots, args.rate, args.p99)
    print(json.dumps(fleet.to_json(), indent=1) if args.json else show_endpoint(fleet))
    return 0 if fleet.enough else 1


def _assumed(args: argparse.Namespace) -> Any:
    """What is told of the machines, with the plan's own numbers for the rest."""
    from gwp.errors import GwpError
    from pipelines.plan.stage import Assumed

    given = {
        "workers": args.workers,
        "utilisation": args.utilisation,
        "decode_rate": args.decode_rate,
        "upload_mb": args.upload_mb,
        "prices": _prices(args.prices) if args.prices else None,
    }
    for name in ("workers", "decode_rate", "upload_mb"):
        if given[name] is not None and not 1e-6 < given[name] < 1e9:
            option = name.replace("_", "-")
            raise GwpError(f"--{option}: must be above 0 and below 1e9")
    told = {name: value for name, value in given.items() if value is not None}
    return Assumed(gpu=args.gpu, **told)


def _prices(file: str) -> dict[str, float]:
    import yaml

    from gwp import storage
    from gwp.errors import GwpError

    try:
        found = yaml.safe_load(storage.read_bytes(file))
        prices = {str(name): float(price) for name, price in found.items()}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise GwpError(f"--prices {file}: write lines such as `h100: 2.5`") from error
    for name, price in prices.items():
        if not 0 <= price < 1e9:
            raise GwpError(f"--prices {file}: {name}: {price:g} is no price; give 0 or more")
    return prices

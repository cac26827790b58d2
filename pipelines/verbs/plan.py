"""`gwp plan`: what a stage or an endpoint needs, before anything starts."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipelines.plan.machines import GPUS

MACHINE_OPTIONS = (
    "gpu",
    "workers",
    "utilisation",
    "gpus_per_node",
    "network_gb",
    "decode_rate",
    "upload_mb",
    "prices",
)
"""What `add_machine_options` adds; None where they are not given."""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="what a stage needs of GPUs, cores, time and storage; what an endpoint needs for a fleet",
        description="Arithmetic on the file alone: nothing is started, no data are read. The exit code is 1 "
        "when a stage does not fit its GPUs. `gwp train --plan` is the same for stages in a row.",
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
    add_machine_options(parser.add_argument_group("a stage"))
    fleet = parser.add_argument_group("an endpoint")
    fleet.add_argument("--profile", metavar="FILE", help="of `gwp bench act --p99 ... --json`")
    fleet.add_argument("--robots", type=int, metavar="N", help="that ask it")
    fleet.add_argument("--rate", type=float, metavar="HZ", help="requests a second of each robot")
    fleet.add_argument("--p99", type=float, metavar="MS", help="bound of 99 %% of the answers")
    parser.set_defaults(run=run_plan)


def add_machine_options(stage: Any) -> None:
    """MACHINE_OPTIONS, what a plan of a stage is told of the machines. stage: a group of options"""
    stage.add_argument("--gpu", metavar="NAME", help=f"{', '.join(GPUS)} (default: h100)")
    stage.add_argument("--workers", type=int, metavar="N", help="default: the least of the job")
    stage.add_argument(
        "--utilisation",
        type=_two,
        metavar="LEAST,MOST",
        help="share of the GPU's peak that steps reach (default: 0.14,0.33, of published trainings)",
    )
    stage.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="GPUs of a machine (default: 8)"
    )
    stage.add_argument(
        "--network-gb",
        type=float,
        metavar="N",
        help="GB/s of a machine to the others (default: 50, a port of 400 Gbit/s)",
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
    from pipelines.plan.show import show_endpoint
    from serve.config import ServeApp

    document = load_any(args.file, args.sets)
    if isinstance(document, TrainJob):
        return print_plans([document], args)
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


def print_plans(jobs: Sequence[Any], args: argparse.Namespace) -> int:
    """Of stages, one after another; of several a list as JSON. The exit code: 1 when one of them
    does not fit.
    """
    import json

    from pipelines.plan.show import show_stage
    from pipelines.plan.stage import plan_stage

    assumed = _assumed(args)
    plans = [plan_stage(job, assumed) for job in jobs]
    if args.json:
        found = [plan.to_json() for plan in plans]
        print(json.dumps(found if len(found) > 1 else found[0], indent=1))
    else:
        print("\n\n".join(show_stage(plan, assumed) for plan in plans))
    return 1 if any(plan.refused for plan in plans) else 0


def _assumed(args: argparse.Namespace) -> Any:
    """What is told of the machines, with the plan's own numbers for the rest."""
    from gwp.errors import GwpError
    from pipelines.plan.machines import Assumed

    given = {
        "gpu": args.gpu,
        "workers": args.workers,
        "utilisation": args.utilisation,
        "decode_rate": args.decode_rate,
        "upload_mb": args.upload_mb,
        "network_gb": args.network_gb,
        "gpus_per_node": args.gpus_per_node,
        "prices": _prices(args.prices) if args.prices else None,
    }
    for name in ("workers", "decode_rate", "upload_mb", "network_gb", "gpus_per_node"):
        if given[name] is not None and not 1e-6 < given[name] < 1e9:
            option = name.replace("_", "-")
            raise GwpError(f"--{option}: must be above 0 and below 1e9")
    told = {name: value for name, value in given.items() if value is not None}
    return Assumed(**told)


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

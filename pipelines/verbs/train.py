"""`gwp train`: run one stage, or several one after another."""

import argparse
from typing import Any

from pipelines.verbs.plan import MACHINE_OPTIONS, add_machine_options, print_plans


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="run one training stage, or resume it",
        description="Run a stage, or several: each starts when the one before is finished, and what "
        "is finished already is not trained again.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="stage file, e.g. pipelines/stages/policy.yaml; several are trained in this order",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value, in every file",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD",
        help="let a run go on although this field is another than when it began, e.g. optimizer.lr",
    )
    parser.add_argument(
        "--from",
        type=int,
        dest="from_step",
        metavar="STEP",
        help="go on from the checkpoint at this step instead of the newest; newer ones are set "
        "aside",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="show parameters and the DeepSpeed configuration, start nothing",
    )
    instead.add_argument(
        "--plan",
        action="store_true",
        help="show what it needs of GPUs, cores, time and storage, and the cheapest settings that fit; "
        "start nothing, read no data. The same as `gwp plan`",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="lines of progress on a terminal, too, in place of the picture",
    )
    planned = parser.add_argument_group("with --plan")
    planned.add_argument("--json", action="store_true", help="print it as JSON")
    add_machine_options(planned)
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> int:
    from gwp.errors import GwpError
    from pipelines.config.load import load_any
    from pipelines.jobs.sequence import require_sequence
    from pipelines.jobs.train_job import TrainJob

    jobs: list[TrainJob] = []
    for file in args.files:
        job = load_any(file, args.sets)
        if not isinstance(job, TrainJob):
            raise GwpError(f"{file}: a {type(job).__name__}; give a TrainJob")
        jobs.append(job)
    if args.from_step is not None and len(jobs) > 1:
        raise GwpError("--from is for one file: give that stage alone first")
    require_sequence(jobs)
    if args.plan:
        return print_plans(jobs, args)
    _require_no_plan_options(args)
    if args.dry_run:
        _print([_dry(job) for job in jobs])
        return 0
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from pipelines.training.sequence import train_sequence

    _warn_of_shared_memory()
    # Ray prints there what befalls its processes; it is for the result.
    with redirect_stdout(sys.stderr):
        results = train_sequence(jobs, tuple(args.allow_change), args.from_step, args.plain)
    _print([asdict(result) for result in results])
    return 0


def _require_no_plan_options(args: argparse.Namespace) -> None:
    """GwpError of an option that would be heeded by a plan alone."""
    from gwp.errors import GwpError

    told = [name for name in MACHINE_OPTIONS if getattr(args, name) is not None]
    if args.json:
        told.append("json")
    if told:
        option = told[0].replace("_", "-")
        raise GwpError(f"--{option} is for --plan; give both, or neither")


def _print(results: list[dict[str, Any]]) -> None:
    """One as it is, several as a list."""
    import json

    print(json.dumps(results if len(results) > 1 else results[0], indent=1))


def _warn_of_shared_memory() -> None:
    """Say that it is small where Ray is started on this machine: Ray then takes files in its
    place, and NCCL may find none.
    """
    import os

    from pipelines.console import warn
    from pipelines.doctor import shared_memory

    memory = shared_memory()
    if memory.status != "ok" and not os.environ.get("RAY_ADDRESS"):
        warn(f"{memory.name}: {memory.detail}; {memory.fix}")


def _dry(job: Any) -> dict[str, Any]:
    import torch

    from gwp.model.transformer import WorldActionTransformer
    from pipelines.training.engine.deepspeed_engine import deepspeed_config

    # On the meta device, so that a model is counted that this machine could not hold.
    with torch.device("meta"):
        parameters = dict(WorldActionTransformer(job.model_config_).named_parameters())
    return {
        "stage": job.stage,
        "parameters": sum(p.numel() for p in parameters.values()),
        "tensors": len(parameters),
        "trained": job.trained,
        "global_batch": job.engine.global_batch,
        "deepspeed": deepspeed_config(job, job.cluster.max_workers),
    }

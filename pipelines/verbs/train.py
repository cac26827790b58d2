"""`gwp train`: run one stage, or several one after another."""

import argparse
from typing import Any


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
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show parameters and the DeepSpeed configuration, start nothing",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="lines of progress on a terminal, too, in place of the picture",
    )
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    from gwp.errors import GwpError
    from pipelines.config.load import load_config
    from pipelines.jobs.sequence import require_sequence
    from pipelines.jobs.train_job import TrainJob

    jobs = [load_config(file, TrainJob, args.sets) for file in args.files]
    if args.from_step is not None and len(jobs) > 1:
        raise GwpError("--from is for one file: give that stage alone first")
    require_sequence(jobs)
    if args.dry_run:
        _print([_dry(job) for job in jobs])
        return
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from pipelines.training.sequence import train_sequence

    _warn_of_shared_memory()
    # Ray prints there what befalls its processes; it is for the result.
    with redirect_stdout(sys.stderr):
        results = train_sequence(jobs, tuple(args.allow_change), args.from_step, args.plain)
    _print([asdict(result) for result in results])


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

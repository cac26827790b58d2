"""`gwp data plan`: what a stage would read, and in which order, without starting it."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    plan = subparsers.add_parser(
        "plan", help="samples, skips and the hashed plan of a stage file; starts nothing"
    )
    plan.add_argument("file", metavar="FILE", help="stage file")
    plan.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value",
    )
    plan.add_argument("--epoch", type=int, default=0, help="epoch to plan (default: 0)")
    plan.add_argument(
        "--out", metavar="FILE", help="write the manifest there (Parquet, path or s3://)"
    )
    plan.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> None:
    import json

    import numpy as np

    from gwp.data.formats.files.reader import FileReader
    from gwp.data.plan.plan import make_plan, mixing
    from pipelines.config.load import load_config
    from pipelines.console import event, warn
    from pipelines.jobs.resolve import manifest_of
    from pipelines.jobs.robots import notes, resolve_embodiments
    from pipelines.jobs.train_job import TrainJob

    job = load_config(args.file, TrainJob, args.sets)
    reader = FileReader()
    embodiments = resolve_embodiments(job, reader)
    for text in notes(job, embodiments):
        event("note", text=text)
    manifest = manifest_of(job, embodiments, reader, warn)
    plan = make_plan(manifest, job.run.seed, args.epoch, job.plan_rules)
    mixed = mixing(manifest, plan, job.cluster.max_workers)
    if args.out:
        manifest.save(args.out)
    labelled = manifest.column("has_action")[plan.order]
    kinds = [set(b) for b in np.split(labelled.tolist(), np.cumsum(plan.batches)[:-1])]
    # The canvas is a bucket too, the first one.
    buckets = ["canvas", *map(str, job.data.buckets)]
    figures = {
        "samples": len(manifest),
        "with_actions": int(manifest.column("has_action").sum()),
        "fingerprint": manifest.fingerprint,
        "global_batch": job.engine.global_batch,
        "batches_per_epoch": len(plan.batches),
        # How the steps of an epoch are shared: by batches of one kind, or of both.
        "batches_with_actions": sum(True in kind for kind in kinds),
        "batches_of_both_kinds": sum(len(kind) == 2 for kind in kinds),
        "epoch": args.epoch,
        "batch_of_bucket": dict(zip(buckets, job.plan_rules.batch, strict=True)),
        "episodes_per_batch": round(mixed.episodes_per_batch, 2),
        "episodes_per_batch_if_independent": round(mixed.episodes_if_independent, 2),
        "file_opens_per_1000_samples": round(mixed.opens_per_thousand, 1),
        "plan_hash": plan.hash,
        "epochs_of_the_run": round(job.run.steps / len(plan.batches), 2),
        "skipped": list(manifest.skipped),
    }
    print(json.dumps(figures, indent=1))

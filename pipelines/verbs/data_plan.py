"""`gwp data plan`: what a stage would read, and in which order, without starting it."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    plan = subparsers.add_parser("plan", help="samples, skips and the hashed plan of a stage file; starts nothing")
    plan.add_argument("file", metavar="FILE", help="stage file")
    plan.add_argument("--set", action="append", default=[], dest="sets", metavar="A.B=VALUE", help="override a value")
    plan.add_argument("--epoch", type=int, default=0, help="epoch to plan (default: 0)")
    plan.add_argument("--out", metavar="FILE", help="write the manifest there (Parquet, path or s3://)")
    plan.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> None:
    import json

    from gwp.data.manifest import build_manifest
    from gwp.data.plan import make_plan
    from pipelines.config import load_config
    from pipelines.prepare import resolve_embodiments
    from pipelines.stage import TrainJob

    job = load_config(args.file, TrainJob, args.sets)
    embodiments = resolve_embodiments(job)
    manifest = build_manifest(job.data.sources, embodiments=embodiments, window=job.data.window, clip=job.data.clip)
    plan = make_plan(manifest, job.run.seed, args.epoch, job.engine.global_batch)
    if args.out:
        manifest.save(args.out)
    labelled = sum(manifest.table["has_action"].to_pylist())
    print(json.dumps({
        "samples": manifest.table.num_rows, "with_actions": labelled, "fingerprint": manifest.fingerprint,
        "global_batch": job.engine.global_batch, "batches_per_epoch": len(plan.order) // job.engine.global_batch, "epoch": args.epoch,
        "plan_hash": plan.hash, "epochs_of_the_run": round(job.run.steps * job.engine.global_batch / len(plan.order), 2),
        "skipped": list(manifest.skipped),
    }, indent=1))

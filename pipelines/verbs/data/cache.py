"""`gwp data cache`: encode the samples of a stage once, so that training reads latents instead
of video.
"""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    cache = subparsers.add_parser(
        "cache", help="encode a stage's samples and texts once; training reads them with data.cache"
    )
    cache.add_argument("file", metavar="FILE", help="stage file")
    cache.add_argument(
        "--out",
        required=True,
        metavar="URI",
        help="folder or s3:// place; running it again goes on where it stopped",
    )
    cache.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value",
    )
    cache.add_argument(
        "--number-format",
        choices=("bfloat16", "float16"),
        default="bfloat16",
        help="of stored numbers (default: bfloat16)",
    )
    cache.add_argument(
        "--shard-mb",
        type=float,
        default=128.0,
        metavar="MB",
        help="decoded frames of the samples of one shard, MiB (default: 128)",
    )
    cache.add_argument(
        "--t5-embedding",
        action="store_true",
        help=(
            "take texts from the sets' t5_embedding/episode_*.pt where there are, after "
            "comparing one with the encoder"
        ),
    )
    cache.set_defaults(run=run_cache)


def run_cache(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict
    from typing import Literal

    from pipelines.config.load import load_config
    from pipelines.console import event, progress
    from pipelines.datasets.cache.cache import build_cache
    from pipelines.jobs.train_job import TrainJob

    job = load_config(args.file, TrainJob, args.sets)
    with progress(f"cache {args.out}") as bar:
        texts_from: Literal["encoder", "t5_embedding"]
        texts_from = "t5_embedding" if args.t5_embedding else "encoder"
        result = build_cache(
            job, args.out, args.number_format, args.shard_mb, bar.update, texts_from
        )
    if result.left_out:
        event(
            "warning",
            text=f"{result.left_out} samples cannot be decoded; their reasons are in latents.parquet",
        )
    print(json.dumps(asdict(result), indent=1))

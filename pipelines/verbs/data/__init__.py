"""`gwp data`: look at data sets, compute their statistics, cache what a stage reads, record
simulated ones.
"""

import argparse
from typing import Any

from pipelines.config.source import add_source_options
from pipelines.verbs.data import cache, plan, record


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "data", help="look at data sets, compute statistics, record demonstrations"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_inspect(verbs)
    _add_stats(verbs)
    cache.add(verbs)
    plan.add(verbs)
    record.add(verbs)


def _add_inspect(verbs: Any) -> None:
    inspect = verbs.add_parser(
        "inspect",
        help="what a robot set or a folder of videos holds, and what is wrong with it",
        epilog=(
            "exit code: 0 nothing is lost (what is wrong is ignored or repaired), 1 "
            "something is left out, 2 nothing can be used"
        ),
    )
    inspect.add_argument("uri", metavar="URI", help="folder, video file or s3://bucket/prefix")
    add_source_options(inspect)
    inspect.add_argument("--json", action="store_true", help="machine-readable")
    inspect.add_argument(
        "--html",
        metavar="FILE",
        help="write a page: a picture of each camera, curves, the canvas that the model sees",
    )
    inspect.add_argument(
        "--layout",
        choices=["t", "horizontal", "single"],
        help="canvas of that page (default: by the number of cameras)",
    )
    inspect.set_defaults(run=run_inspect)


def _add_stats(verbs: Any) -> None:
    stats = verbs.add_parser(
        "stats", help="normalisation statistics of one robot over one or more sets"
    )
    stats.add_argument("uris", nargs="*", metavar="URI", help="robot sets of the same robot")
    stats.add_argument(
        "--import",
        dest="given",
        metavar="FILE",
        help="instead of sets: statistics in the published form or openpi's "
        "norm_stats.json, written as ours after a check against --embodiment",
    )
    stats.add_argument(
        "--embodiment",
        metavar="FILE",
        help="YAML or JSON description of the robot; without it, read from the first set",
    )
    stats.add_argument(
        "--name", default="robot", help="name of the robot when there is no --embodiment"
    )
    add_source_options(stats)
    stats.add_argument(
        "--delta",
        metavar="DIMS",
        help="actions relative to the state, e.g. 0:6,7:13 (end excluded); default: none",
    )
    stats.add_argument("--episodes", help="only these of every set, e.g. 0:100 or 0,3,5")
    stats.add_argument(
        "--chunk",
        type=int,
        metavar="P",
        help="actions per chunk, control steps; default: the embodiment's",
    )
    stats.add_argument(
        "--form",
        choices=("gwp", "openpi"),
        default="gwp",
        help="what is written (default: gwp, the published form)",
    )
    stats.add_argument(
        "--width",
        type=int,
        metavar="N",
        help="pad to the width of a model, as published files are (32); gwp reads both",
    )
    stats.add_argument(
        "--out", required=True, metavar="FILE", help="where to write the statistics (path or s3://)"
    )
    stats.set_defaults(run=run_stats)


def run_inspect(args: argparse.Namespace) -> int:
    import json

    from gwp.data.formats.files.reader import FileReader
    from pipelines.config.source import source_of
    from pipelines.datasets.inspect import as_text, describe, exit_code

    source = source_of(args, args.uri)
    reader = FileReader()
    facts = describe(source, reader)
    if args.html:
        from pipelines.datasets.page import write_page

        write_page(args.html, source, facts, args.layout, reader)
    print(json.dumps(facts, indent=2) if args.json else as_text(facts))
    return exit_code(facts)


def run_stats(args: argparse.Namespace) -> None:
    from pipelines.datasets.stats import write_stats

    write_stats(args)

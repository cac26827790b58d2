"""`gwp config`: check, show and describe configuration files."""

import argparse
import os
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("config", help="check, show and describe configuration files")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    check = verbs.add_parser("check", help="report every problem of the given files")
    check.add_argument("files", nargs="+", metavar="FILE")
    check.set_defaults(run=run_check)

    show = verbs.add_parser(
        "show", help="print a file with everything resolved: what it extends, --set, defaults"
    )
    show.add_argument("file", metavar="FILE")
    show.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value",
    )
    show.add_argument("--json", action="store_true", help="JSON instead of YAML")
    show.set_defaults(run=run_show)

    schema = verbs.add_parser(
        "schema", help="print the JSON Schema of a kind, for completion in editors"
    )
    schema.add_argument("kind", metavar="KIND", help="TrainJob, ServeApp or Cluster")
    schema.set_defaults(run=run_schema)

    reference = verbs.add_parser(
        "reference",
        help="print every field of every kind as a page of Markdown (docs/configuration.md)",
    )
    reference.set_defaults(run=run_reference)


def run_check(args: argparse.Namespace) -> None:
    from pipelines.config.load import ConfigError, base_of, load_any

    problems: list[str] = []
    # A file that others extend need not be complete; it is checked as part of them.
    bases = set()
    for file in args.files:
        base = base_of(file)
        while base and base not in bases:
            bases.add(base)
            base = base_of(base)
    for file in args.files:
        if os.path.normpath(file) in bases and base_of(file) is None:
            continue
        try:
            config = load_any(file)
        except ConfigError as error:
            problems += error.lines
        else:
            print(f"{file}: ok ({type(config).__name__})")
    if problems:
        raise ConfigError(problems)


def run_show(args: argparse.Namespace) -> None:
    import json

    from pipelines.config.load import dump_resolved, load_any, resolved

    config = load_any(args.file, args.sets)
    if args.json:
        print(json.dumps(resolved(config), indent=2))
    else:
        # YAML text ends with its own line break.
        print(dump_resolved(config), end="")


def run_schema(args: argparse.Namespace) -> None:
    import json

    from pipelines.config.load import schema

    print(json.dumps(schema(args.kind), indent=2))


def run_reference(args: argparse.Namespace) -> None:  # noqa: ARG001
    from pipelines.config.reference import reference

    print(reference(), end="")

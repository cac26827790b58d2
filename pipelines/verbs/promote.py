"""`gwp promote`: put a policy bundle into the registry and point an alias at it."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "promote", help="register a policy bundle and point an alias at it"
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE_URI",
        help="bundle made by `gwp export`: a folder or s3://bucket/prefix",
    )
    parser.add_argument(
        "--name", default="gwp", help="name of the policy in the registry (default: %(default)s)"
    )
    parser.add_argument(
        "--alias", default="champion", help="alias to move to this version (default: %(default)s)"
    )
    parser.set_defaults(run=run_promote)


def run_promote(args: argparse.Namespace) -> None:
    import json

    from gwp.policy.bundle import read_bundle
    from pipelines.tracking.registry import (
        GATE_TAG,
        gates_of,
        made_of,
        note_version,
        promote,
        register,
    )

    # Reading verifies every hash: what cannot be served is never promoted.
    bundle = read_bundle(args.bundle)
    stages = bundle.lineage.get("stages") or [{}]
    run_id = stages[0].get("mlflow_run_id")
    tags = {"family": bundle.settings.family, "embodiments": ",".join(sorted(bundle.embodiments))}
    tags |= made_of(bundle.lineage)
    gates = gates_of(bundle)
    tags |= {f"{GATE_TAG}{name}": told for name, told in gates.items()}
    version = register(args.bundle, bundle.id, args.name, run_id, tags)
    promote(args.name, version, args.alias)
    if run_id:
        passed = "; ".join(f"{name}: {told}" for name, told in gates.items())
        note_version(run_id, args.name, version, args.alias, bundle.id, passed)
    promoted = {
        "uri": f"models:/{args.name}@{args.alias}",
        "version": version,
        "policy_id": bundle.id,
        "bundle": args.bundle,
    }
    print(json.dumps(promoted, indent=1))

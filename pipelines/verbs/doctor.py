"""`gwp doctor`: what this machine has, what is missing, and how to get it."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor", help="look at this machine: what is there, what is missing, and the fix"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from pipelines.doctor import examine

    checks = examine()
    healthy = all(check.status != "missing" for check in checks)
    if args.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
        return 0 if healthy else 1
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.status != "ok":
            print(f"{'':<7}  {'':<{width}}  -> {check.fix}")
    print("ready" if healthy else "something required is missing: see the lines above")
    return 0 if healthy else 1

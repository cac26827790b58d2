"""`gwp study`: compare arms, each trained on several seeds and judged, with intervals."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    study = subparsers.add_parser(
        "study",
        help="train and judge arms x seeds x demonstrations, and compare them with intervals",
        description="Every cell is trained, exported, judged and tracked, as many at once as the "
        "cluster holds. Exit code 1: a cell broke; the table and the page name it.",
    )
    study.add_argument(
        "file", metavar="FILE", help="a `kind: Study`, e.g. pipelines/studies/stages.yaml"
    )
    study.add_argument(
        "--resume",
        action="store_true",
        help="go on with a study that is there: what is done stays, what another document made is "
        "made anew",
    )
    study.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="this share of steps, recordings and episodes, to see that it runs: 0.05 takes minutes",
    )
    study.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CELLS",
        help="cells that are done now, e.g. joint-d25-s1,scratch-* (default: all; may be repeated)",
    )
    study.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value of the file",
    )
    study.add_argument(
        "--dry-run", action="store_true", help="check it and list its cells; start nothing"
    )
    study.set_defaults(run=run_study)


def run_study(args: argparse.Namespace) -> int:
    import json
    import sys
    from contextlib import redirect_stdout

    from gwp.errors import GwpError
    from pipelines.config.load import load_any
    from pipelines.studies.document.study import Study

    if not 0 < args.scale <= 1:
        raise GwpError(f"--scale {args.scale:g}: give a share above 0, and 1 at most")
    only = [one.strip() for given in args.only for one in given.split(",") if one.strip()]
    study = load_any(args.file, args.sets)
    if not isinstance(study, Study):
        raise GwpError(f"{args.file}: a {type(study).__name__}; give a Study")
    if args.dry_run:
        from pipelines.studies.cells.checks import (
            require_judgeable,
            require_tasks,
            require_there,
        )
        from pipelines.studies.cells.plan import make_plan

        require_tasks(study)
        whole = make_plan(study, args.scale)
        require_judgeable(whole)
        require_there(whole)
        plan = whole.chosen(only)
        listed = {"place": plan.root, "stages": list(plan.shared), "cells": list(plan.cells)}
        print(json.dumps(listed, indent=1))
        return 0
    # Ray prints there what befalls its processes; it is for the result.
    with redirect_stdout(sys.stderr):
        from pipelines.studies import run

        result = run.run_study(study, resume=args.resume, factor=args.scale, only=only)
    print(result.text, end="")
    print(f"page: {result.page}")
    return int(bool(result.broken))

"""`gwp submit`: hand stage files to a running Ray cluster, as one job."""

import argparse
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusters.jobs.jobs import Job, Jobs
    from clusters.jobs.submit import Answer, Work
    from pipelines.jobs.train_job import TrainJob

_DESCRIPTION = """
Run stages as one job of a Ray cluster and follow it. Each stage starts when the one before is
finished; the order is kept in the cluster, so the terminal may go. Asking again with the same files
follows the job that runs, tells the result of one that is finished, and starts one that failed or
was stopped again, which goes on where it stood. Ctrl-C leaves the job running.
"""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "submit",
        help="run stages as a job of a Ray cluster and follow it",
        description=_DESCRIPTION,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="stage file, in order")
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
        help="as in `gwp train`: let a run go on although this field changed",
    )
    add_cluster(parser)
    parser.add_argument("--detach", action="store_true", help="return once the job is accepted")
    parser.add_argument(
        "--again", action="store_true", help="also when the job is finished already"
    )
    parser.add_argument(
        "--code",
        choices=("image", "project"),
        default="image",
        help="image (default): the gwp that is installed on the nodes; project: the packages that "
        "run here go along",
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        type=_name,
        metavar="NAME",
        help="environment variable that every node must set, beside `cluster.secrets`; looked for "
        "before anything starts. Never a value",
    )
    parser.set_defaults(run=run_submit)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """What every command to a cluster takes."""
    parser.add_argument(
        "--address",
        metavar="URL",
        help="dashboard of the cluster, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS)",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="also to a cluster elsewhere that asks for no token",
    )
    parser.add_argument(
        "--any-version",
        action="store_true",
        help="also to a cluster of another Ray, Python or gwp",
    )


def connected(args: argparse.Namespace) -> "Jobs":
    """The jobs of the cluster that the command line means."""
    from clusters.jobs.access import connect
    from clusters.jobs.jobs import Jobs

    return Jobs(connect(args.address, insecure=args.insecure, any_version=args.any_version))


def run_submit(args: argparse.Namespace) -> int:
    from clusters.jobs.access import is_here
    from clusters.jobs.requirements import require_no_values, require_reachable
    from clusters.jobs.submit import known, start
    from gwp.paths import relative_paths
    from pipelines.config.load import load_config
    from pipelines.jobs.sequence import require_sequence
    from pipelines.jobs.train_job import TrainJob
    from pipelines.verbs.submit.following import leaving

    # As written: whether a path was relative decides if the cluster can find it.
    stages = [load_config(file, TrainJob, args.sets, as_written=True) for file in args.files]
    require_sequence(stages)
    work = _work(stages, args)
    require_no_values(work, _set_here(work.secrets))
    jobs = connected(args)
    here = is_here(jobs.address)
    for stage in stages:
        require_reachable(relative_paths(stage), jobs.address, here)
    answer = known(jobs, work, args.again)
    if answer is None:
        _look(jobs, work, args.any_version)
        answer = start(jobs, work)
    with leaving(answer.job) if answer.came != "finished" else nullcontext():
        _tell(answer)
        if args.detach:
            print(answer.job.id)
            return 0
        if answer.came == "finished":
            return _finished(jobs, answer.job)
        return _followed(jobs, answer)


def _work(stages: "list[TrainJob]", args: argparse.Namespace) -> "Work":
    from clusters.jobs.submit import Work
    from gwp.paths import absolute_paths
    from pipelines.config.load import dump_resolved

    absolute = [absolute_paths(stage) for stage in stages]
    secrets = [name for stage in stages for name in stage.cluster.secrets]
    return Work(
        names=tuple(stage.run.name for stage in absolute),
        runs=tuple(stage.run.uri for stage in absolute),
        stages=tuple(stage.stage for stage in absolute),
        documents=tuple(map(dump_resolved, absolute)),
        options=tuple(w for field in args.allow_change for w in ("--allow-change", field)),
        code=args.code,
        secrets=tuple(dict.fromkeys([*secrets, *args.secret])),
    )


def _set_here(names: tuple[str, ...]) -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _look(jobs: "Jobs", work: "Work", any_version: bool) -> None:
    """GwpError when the nodes cannot do the work."""
    import platform

    from clusters.jobs.probe import probe
    from clusters.jobs.requirements import require_nodes

    found = probe(jobs.client, work.secrets)
    python = ".".join(platform.python_version_tuple()[:2])
    require_nodes(found, work, jobs.address, python, any_version)


def _tell(answer: "Answer") -> None:
    from pipelines.console import event

    job, before = answer.job, answer.before
    text = {
        "started": "submitted",
        "attached": f"runs already, since {_ago(job.started)}; this is the same job",
        "finished": "is finished already; --again runs it once more",
        "again": "",
    }[answer.came]
    if before is not None:
        why = (
            "is finished" if before.status == "SUCCEEDED" else f"{before.status}: {before.message}"
        )
        text = f"attempt {job.attempt}: goes on where attempt {before.attempt} stood ({why[:200]})"
    event("job", job=job.id, runs=", ".join(job.names), text=text)


def _ago(started: float) -> str:
    import time

    minutes = max(0, round((time.time() - started) / 60))
    return f"{minutes} min" if minutes < 180 else f"{minutes // 60} h"


def _followed(jobs: "Jobs", answer: "Answer") -> int:
    from pipelines.verbs.submit.following import follow

    job, results = follow(jobs, answer.job, joined=answer.came == "attached")
    return _ended(job, results)


def _finished(jobs: "Jobs", job: "Job") -> int:
    from gwp.errors import GwpError
    from pipelines.console import warn
    from pipelines.verbs.submit.following import results_of

    try:
        results = results_of(jobs.log(job))
    except GwpError as error:
        warn(str(error))
        results = []
    return _ended(job, results)


def _ended(job: "Job", results: list[dict[str, Any]]) -> int:
    """Tell how a job ended, and print its results; the exit code."""
    import json

    from pipelines.console import event

    good = job.status == "SUCCEEDED"
    more = {} if good else {"text": job.message}
    event("job ended", job=job.id, status=job.status, **more)
    if results:
        print(json.dumps(results, indent=1))
    return 0 if good else 1


def _name(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", text):
        # Not shown: it may be the secret itself.
        raise argparse.ArgumentTypeError("give the name of a variable, never its value")
    return text

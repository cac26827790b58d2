"""`gwp jobs`: what was submitted to a Ray cluster."""

import argparse
from typing import TYPE_CHECKING, Any

from pipelines.verbs.submit import add_cluster, connected

if TYPE_CHECKING:
    from clusters.jobs.jobs import Job

_JOB = "id of the job, or name of a run: the newest attempt"


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("jobs", help="see, follow and stop what was submitted")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="every job that was submitted, the newest first")
    listed.set_defaults(run=run_list)
    status = actions.add_parser("status", help="one job: its state, and how far it is")
    status.add_argument("job", metavar="JOB", help=_JOB)
    status.set_defaults(run=run_status)
    for action in (listed, status):
        action.add_argument("--json", action="store_true", help="print JSON")
    logs = actions.add_parser("logs", help="what a job has printed")
    logs.add_argument("job", metavar="JOB", help=_JOB)
    logs.add_argument("--follow", action="store_true", help="and prints, until it is over")
    logs.set_defaults(run=run_logs)
    stop = actions.add_parser(
        "stop",
        help="end a job with a checkpoint",
        description="End a job with a checkpoint, and wait until it has ended. Submitting the same "
        "files again goes on from there.",
    )
    stop.add_argument("job", metavar="JOB", help=_JOB)
    stop.set_defaults(run=run_stop)
    for action in (listed, status, logs, stop):
        add_cluster(action)


def run_list(args: argparse.Namespace) -> None:
    import json

    from pipelines.console import table

    rows = [_row(job) for job in connected(args).all()]
    print(json.dumps(rows, indent=1) if args.json else table(rows) or "no jobs")


def run_status(args: argparse.Namespace) -> None:
    import json

    from gwp.errors import GwpError
    from pipelines.console import table, warn
    from pipelines.verbs.submit.following import last_progress

    jobs = connected(args)
    job = jobs.find(args.job)
    try:
        far = last_progress(jobs.log(job)) or {}
    except GwpError as error:
        warn(str(error))
        far = {}
    told = _row(job) | {"runs": ", ".join(job.runs), "message": job.message}
    told |= {k: v for k, v in far.items() if k != "event"}
    if args.json:
        print(json.dumps(told, indent=1))
    else:
        print(table([{"field": name, "value": value} for name, value in told.items()]))


def run_logs(args: argparse.Namespace) -> int:
    from pipelines.console import event
    from pipelines.verbs.submit.following import follow

    jobs = connected(args)
    job = jobs.find(args.job)
    if not args.follow:
        print(jobs.log(job), end="")
        return 0
    job, _ = follow(jobs, job, joined=True)
    event("job ended", job=job.id, status=job.status)
    return 0 if job.status == "SUCCEEDED" else 1


def run_stop(args: argparse.Namespace) -> None:
    from pipelines.console import event

    jobs = connected(args)
    job = jobs.find(args.job)
    if not job.over:
        jobs.stop(job)
        event("stopping", job=job.id, text="it takes a checkpoint and ends; Ctrl-C waits no more")
        job = jobs.wait(job)
    event("job ended", job=job.id, status=job.status)


def _row(job: "Job") -> dict[str, Any]:
    return {
        "job": job.id,
        "status": job.status,
        "run": ", ".join(job.names),
        "stage": ", ".join(job.stages),
        "attempt": job.attempt,
        "started": _time(job.started),
        "ended": _time(job.ended) if job.ended else "",
    }


def _time(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")

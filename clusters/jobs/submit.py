"""Runs as one job of a Ray cluster, started once however often it is asked for.

The id of the job follows from the runs and from nothing else, and Ray takes an id once: whoever
asks again, from whichever terminal, finds the same job. The checked, resolved files travel with it,
so what runs is what was checked.
"""

import hashlib
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from requests import RequestException

from clusters.jobs.access import patiently
from clusters.jobs.code import Code, fill
from clusters.jobs.jobs import ATTEMPT, BETWEEN, DIGEST, KEY, NAMES, RUNS, STAGES, Job, Jobs
from clusters.jobs.probe import Found
from gwp import __version__
from gwp.errors import GwpError

STOP_S = 600
"""Seconds that a job which is stopped has for its last checkpoint, before Ray kills it."""
_SECRETS, _VERSION = "gwp_secrets", "gwp_version"


@dataclass(frozen=True)
class Work:
    """What a submission asks for."""

    names: tuple[str, ...]
    """Of the runs, in the order in which they are done."""
    runs: tuple[str, ...]
    """Their folders, absolute."""
    stages: tuple[str, ...]
    documents: tuple[str, ...]
    """Resolved stage files."""
    options: tuple[str, ...] = ()
    """More of the command line of `gwp train`."""
    code: Code = "image"
    secrets: tuple[str, ...] = ()
    """Names of variables that every node has to set; never their values."""

    @property
    def key(self) -> str:
        """The same for the same runs in the same places."""
        word = re.sub(r"[^a-z0-9]+", "-", self.names[-1].lower()).strip("-")[:40]
        return f"gwp-{word}-{_hash(*self.runs)}"

    @property
    def digest(self) -> str:
        """Another one when a file changed."""
        return _hash(*self.documents, *self.options)


Came = Literal["started", "again", "attached", "finished"]


@dataclass(frozen=True)
class Answer:
    """What became of asking."""

    job: Job
    came: Came
    """`started`, `again` after an attempt that failed or a file that changed, `attached` to one that
    runs, `finished` already.
    """
    before: Job | None = None
    """The attempt before, where it was started again."""


def known(jobs: Jobs, work: Work, again: bool = False) -> Answer | None:
    """The job that does this work already, or has done it; None when one has to be started.

    again: a finished one is done once more. GwpError when the runs are those of another job, or
    when it runs with other files.
    """
    _require_free(jobs, work)
    last = next(iter(jobs.of_key(work.key)), None)
    if last is None:
        return None
    same = last.digest == work.digest
    if not last.over:
        if not same:
            raise GwpError(
                f"{last.id} does these runs with another configuration than the files have now; "
                f"`gwp jobs stop {last.id}` and submit again, or follow it: `gwp jobs logs {last.id} "
                "--follow`"
            )
        return Answer(last, "attached")
    if last.status == "SUCCEEDED" and same and not again:
        return Answer(last, "finished")
    return None


def start(jobs: Jobs, work: Work) -> Answer:
    """Start the next attempt at the work; the one that another terminal started at the same moment
    is taken as well. GwpError when no node takes it.
    """
    before = next(iter(jobs.of_key(work.key)), None)
    attempt = before.attempt + 1 if before else 1
    job_id = f"{work.key}-{attempt}"
    names = [f"{number}-{stage}.yaml" for number, stage in enumerate(work.stages, 1)]
    words = ["python", "-m", "pipelines.cli"] if work.code == "project" else ["gwp"]
    command = shlex.join([*words, "train", *names, *work.options])

    def accepted() -> None:
        try:
            jobs.client.submit_job(
                # What it prints as its result is told as an event before.
                entrypoint=f"{command} > result.json",
                submission_id=job_id,
                runtime_env={
                    "working_dir": folder,
                    # Ray's own 3 seconds are too short for a checkpoint.
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
                },
                metadata=_noted(work, attempt),
            )
        except (ConnectionError, RequestException, RuntimeError):
            # Its acceptance got lost, or another one asked at the same moment.
            if not _is_there(jobs, job_id):
                raise

    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), dict(zip(names, work.documents, strict=True)), work.code)
        patiently(accepted, jobs.address, "the cluster does not take the job")
    job = jobs.get(job_id)
    if job.digest != work.digest:
        raise GwpError(
            f"{job_id} was started at the same moment, with another configuration; `gwp jobs stop "
            f"{job_id}` and submit again"
        )
    return Answer(job, "again" if before else "started", before)


def require_nodes(
    found: Sequence[Found], work: Work, address: str, python: str, any_version: bool = False
) -> None:
    """GwpError when nodes lack what the work needs: our package or what that needs, a secret; or are
    of another version.

    python: ours, major and minor. any_version: other versions are taken
    """
    where = {node: f"pool {node.pool}" if node.pool else "its nodes" for node in found}
    for node in found:
        if work.code == "image" and not node.gwp:
            raise GwpError(
                f"{address}: there is no gwp on {where[node]}; put it into the image, or submit "
                "with --code project"
            )
        if node.lacks:
            raise GwpError(
                f"{address}: {where[node]} lacks {', '.join(node.lacks)}; make the image with the "
                "`cluster` extra of gwp"
            )
        if any_version:
            continue
        if work.code == "image" and node.gwp != __version__:
            raise GwpError(
                f"{address}: gwp is {node.gwp} on {where[node]} and {__version__} here: submit from "
                "the same one, or with --code project, or with --any-version"
            )
        if node.python != python:
            raise GwpError(
                f"{address}: Python is {node.python} on {where[node]} and {python} here: submit "
                f"from a Python {node.python}, or with --any-version"
            )
    unset = {name: [where[node] for node in found if name in node.unset] for name in work.secrets}
    missing = [f"{name} on {', '.join(pools)}" for name, pools in unset.items() if pools]
    if missing:
        raise GwpError(
            f"{address}: not set: {'; '.join(missing)}. Set them in the environment of the nodes "
            "(from a Secret where that is Kubernetes); a job carries names only"
        )


def require_no_values(work: Work, values: Mapping[str, str]) -> None:
    """GwpError when a document holds the value of one of the secrets. values: name -> value, of
    those that are set here
    """
    # As they are and as they are read: YAML quotes, escapes and folds.
    texts = [*work.documents, *work.options]
    texts += [text for document in work.documents for text in _texts(yaml.safe_load(document))]
    for name, value in values.items():
        # Short ones (`1`, `key`) are words, and stand in any file.
        if len(value) >= 8 and any(value in text for text in texts):
            raise GwpError(
                f"the files hold the value of {name}, which everyone who sees the cluster would "
                "read; take it out"
            )


def require_reachable(relative: Mapping[str, str], address: str, here: bool) -> None:
    """GwpError for relative paths (dotted name -> path) in a document for a cluster elsewhere.

    Its machines have no folder that such paths could start from. Absolute ones may lie on a
    file system that all machines share.
    `here`: the cluster is this machine.
    """
    if relative and not here:
        shown = ", ".join(f"{name} ({path})" for name, path in relative.items())
        raise GwpError(
            f"the cluster at {address} runs on other machines and cannot find {shown}; "
            "give s3:// URIs, or absolute paths that exist there"
        )


def _require_free(jobs: Jobs, work: Work) -> None:
    """GwpError when one of the runs is that of another job which is not over."""
    for job in jobs.all():
        shared = set(job.runs) & set(work.runs)
        if shared and job.key != work.key and not job.over:
            raise GwpError(
                f"{', '.join(sorted(shared))} is being trained by job {job.id} ({', '.join(job.names)}); "
                f"follow it with `gwp jobs logs {job.id} --follow`, or stop it first"
            )


def _noted(work: Work, attempt: int) -> dict[str, str]:
    """What the dashboard shows beside the job, and `Job` is read from."""
    return {
        KEY: work.key,
        ATTEMPT: str(attempt),
        NAMES: BETWEEN.join(work.names),
        RUNS: BETWEEN.join(work.runs),
        STAGES: BETWEEN.join(work.stages),
        DIGEST: work.digest,
        _VERSION: __version__,
        **({_SECRETS: ", ".join(work.secrets)} if work.secrets else {}),
    }


def _texts(value: object) -> Iterator[str]:
    """Every text in a document, names of fields too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif value is not None:
        yield str(value)


def _is_there(jobs: Jobs, job_id: str) -> bool:
    try:
        jobs.client.get_job_info(job_id)
    except (ConnectionError, RequestException, RuntimeError):
        return False
    return True


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]

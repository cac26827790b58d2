"""Runs as one job of a Ray cluster, started once however often it is asked for.

The id of the job follows from the runs and from nothing else, and Ray takes an id once: whoever
asks again, from whichever terminal, finds the same job. The checked, resolved files travel with it,
so what runs is what was checked.
"""

import hashlib
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from requests import RequestException

from clusters.jobs.access import patiently
from clusters.jobs.code import Code, fill
from clusters.jobs.jobs import ATTEMPT, BETWEEN, DIGEST, KEY, NAMES, RUNS, STAGES, Job, Jobs
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

    try:
        with _temporary() as folder:
            fill(Path(folder), dict(zip(names, work.documents, strict=True)), work.code)
            patiently(accepted, jobs.address, "the cluster does not take the job")
        job = jobs.get(job_id)
        if job.digest != work.digest:
            raise GwpError(
                f"{job_id} was started at the same moment, with another configuration; `gwp jobs "
                f"stop {job_id}` and submit again"
            )
        _give_way(jobs, job)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"{job_id} may have been started: `gwp jobs status {job_id}`, and to stop it: `gwp jobs "
            f"stop {job_id}`"
        ) from stop
    return Answer(job, "again" if before else "started", before)


@contextmanager
def _temporary() -> Iterator[str]:
    """A folder for what travels; GwpError when there is no place for it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except (ConnectionError, RequestException):
        # Errors of the network are of the same kind.
        raise
    except OSError as error:
        raise GwpError(
            f"what travels with a job cannot be written ({error.strerror or error}); set TMPDIR to a "
            "folder with room"
        ) from error


def _give_way(jobs: Jobs, job: Job) -> None:
    """Stop a job that was just started when another one that does one of its runs was started at
    the same moment: each had looked before the other was there. GwpError then.
    """
    for other in _sharing(jobs, job.key, job.runs):
        # Both sides look, and the first one stays.
        if (other.started, other.id) < (job.started, job.id):
            jobs.stop(job)
            # Until then it is in the way of whoever means the run by its name.
            jobs.wait(job)
            raise GwpError(
                f"{_shared(other, job.runs)} was submitted at the same moment as job {other.id}, which "
                f"goes on; {job.id} is stopped. Follow it: `gwp jobs logs {other.id} --follow`"
            )


def _require_free(jobs: Jobs, work: Work) -> None:
    """GwpError when one of the runs is that of another job which is not over."""
    for job in _sharing(jobs, work.key, work.runs):
        raise GwpError(
            f"{_shared(job, work.runs)} is being trained by job {job.id} ({', '.join(job.names)}); "
            f"follow it with `gwp jobs logs {job.id} --follow`, or stop it first"
        )


def _sharing(jobs: Jobs, key: str, runs: Sequence[str]) -> list[Job]:
    """Jobs of other keys that do one of these runs and are not over."""
    return [
        job for job in jobs.all() if job.key != key and not job.over and set(job.runs) & set(runs)
    ]


def _shared(job: Job, runs: Sequence[str]) -> str:
    return ", ".join(sorted(set(job.runs) & set(runs)))


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


def _is_there(jobs: Jobs, job_id: str) -> bool:
    try:
        jobs.client.get_job_info(job_id)
    except (ConnectionError, RequestException, RuntimeError):
        return False
    return True


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:10]

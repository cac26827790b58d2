"""Our jobs on a Ray cluster, as it knows them: listed, found, stopped, followed.

Ray forgets its jobs with the cluster. What a run has done stands in its run folder, so nothing is
lost with them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from requests import RequestException

from clusters.jobs.access import READY_S, patiently
from gwp.errors import GwpError

T = TypeVar("T")

logger = logging.getLogger(__name__)

KEY, ATTEMPT, RUNS, NAMES = "gwp_key", "gwp_attempt", "gwp_runs", "gwp_run"
STAGES, DIGEST = "gwp_stage", "gwp_digest"
"""Names in what the dashboard shows of a job."""
BETWEEN = "\n"
"""Between several of them: names of runs and folders may hold commas."""
_AGAIN_S = 1.0
_POLL_S = 0.5
_SAID = 300


@dataclass(frozen=True)
class Job:
    """One attempt to do the work of a submission."""

    id: str
    """Ray's name for it: the key and the attempt."""
    key: str
    """The same for every attempt: made of the names and places of the runs."""
    attempt: int
    """From 1."""
    names: tuple[str, ...]
    """Of the runs, in their order."""
    runs: tuple[str, ...]
    """Their folders."""
    stages: tuple[str, ...]
    digest: str
    """Of the documents and how they are run."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    """How it ended, in one line: the exit code, or what Ray says where it did not come to one."""
    started: float
    """Seconds since 1970, by the cluster's clock."""
    ended: float | None
    """None while it is not over."""

    @property
    def over(self) -> bool:
        return JobStatus(self.status).is_terminal()


class UnknownJobError(GwpError):
    """A job that the cluster does not know any more."""


def still_there(job_id: str) -> str:
    """How to see and to stop a job that nobody follows any more."""
    return (
        f"{job_id} goes on; to see it again: `gwp jobs logs {job_id} --follow`, to stop it: "
        f"`gwp jobs stop {job_id}`"
    )


class Jobs:
    """Those of one cluster."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self.client = client
        self.address: str = client.get_address()

    def all(self) -> list[Job]:
        """Every job that was submitted by us, the newest first."""
        every = self._asked(self.client.list_jobs)
        found = [job for details in every if (job := _job(details))]
        return sorted(found, key=lambda job: job.started, reverse=True)

    def of_key(self, key: str) -> list[Job]:
        """The attempts at a submission, the last one first."""
        found = [job for job in self.all() if job.key == key]
        return sorted(found, key=lambda job: job.attempt, reverse=True)

    def get(self, job_id: str) -> Job:
        """A job as it is now, by Ray's name for it; UnknownJobError when there is none."""
        # Asked for one alone, Ray says in words only that there is none.
        found = next((job for job in self.all() if job.id == job_id), None)
        if found is None:
            raise UnknownJobError(
                f"{self.address} knows no job {job_id} any more: it was deleted, or the head is a new "
                "one. Submit again, and what its runs have done is gone on with"
            )
        return found

    def find(self, word: str) -> Job:
        """The newest job with this id or key, or of a run with this name: the one that is not over,
        where several have it. GwpError when there is none, or more than one that could be meant.
        """
        every = self.all()
        named = [j for j in every if word in (j.id, j.key)] or [j for j in every if word in j.names]
        if not named:
            raise GwpError(f"{self.address} knows no job or run {word}; see `gwp jobs list`")
        running = [job for job in named if not job.over]
        meant = {job.key: job for job in reversed(running or named)}
        if len(meant) > 1:
            shown = [f"{job.id} ({job.status}, {', '.join(job.runs)})" for job in meant.values()]
            raise GwpError(f"{word} is a run of several jobs; give one of {'; '.join(shown)}")
        (found,) = meant.values()
        return found

    def stop(self, job: Job) -> None:
        """Have a job end as Ctrl-C ends it: with a checkpoint. `wait` tells when it has."""
        self._asked(lambda: self.client.stop_job(job.id))

    def wait(self, job: Job) -> Job:
        """The job when it is over."""
        while not (found := self.get(job.id)).over:
            time.sleep(_POLL_S)
        return found

    def log(self, job: Job) -> str:
        """All that a job has printed; GwpError when it is gone, as with the machine of its driver."""
        try:
            return str(self.client.get_job_logs(job.id))
        except (ConnectionError, RequestException, RuntimeError) as error:
            raise GwpError(
                f"{self.address} has no log of {job.id} any more ({str(error)[:_SAID]}); what its runs "
                f"did stands in {', '.join(job.runs)}"
            ) from error

    def follow(self, job: Job, known: int = 0) -> Iterator[str]:
        """What a job prints, in pieces, until it is over. known: characters that were read already.

        A connection that is lost is made again. GwpError when the cluster does not answer any more;
        the job may go on all the same. UnknownJobError when it knows the job no more.
        """
        lost: float | None = None
        while True:
            try:
                for piece in self._stream(job.id, known):
                    known += len(piece)
                    lost = None
                    yield piece
                over = self.get(job.id).over
                # A stream ends without an error at a line of megabytes, which its messages do not
                # hold: what it left out is fetched.
                left = str(self.client.get_job_logs(job.id))[known:]
                known += len(left)
                if left:
                    yield left
                if over:
                    return
            except UnknownJobError:
                raise
            except Exception as error:  # noqa: BLE001  whatever a connection may raise
                lost = lost or time.monotonic()
                if time.monotonic() - lost > READY_S:
                    self._wait_without_log(job, " ".join(str(error).split())[:_SAID])
                    return
            time.sleep(_AGAIN_S)

    def _wait_without_log(self, job: Job, reason: str) -> None:
        """Until a job is over whose log does not come. GwpError when the cluster does not answer."""
        try:
            if not self.get(job.id).over:
                # A log that is no text, or whose machine is gone.
                logger.warning("%s does not give the log of %s (%s)", self.address, job.id, reason)
                self.wait(job)
        except UnknownJobError:
            raise
        except GwpError as error:
            raise GwpError(
                f"{self.address} does not answer any more ({reason}); the job may go on: `gwp jobs "
                f"logs {job.id} --follow` when it is back"
            ) from error

    def _asked(self, call: Callable[[], T]) -> T:
        return patiently(call, self.address, "the cluster does not answer any more")

    def _stream(self, job_id: str, known: int) -> Iterator[str]:
        """What comes behind the first `known` characters: Ray begins anew with each connection."""
        stream: Any = self.client.tail_job_logs(job_id)
        loop = asyncio.new_event_loop()
        coming = loop.create_task(_next(stream))
        try:
            while (piece := loop.run_until_complete(coming)) is not None:
                if fresh := piece[known:]:
                    yield fresh
                known = max(0, known - len(piece))
                coming = loop.create_task(_next(stream))
        finally:
            # Ctrl-C comes while one is waited for, and a stream that is asked cannot be closed.
            coming.cancel()
            loop.run_until_complete(asyncio.wait([coming]))
            loop.run_until_complete(stream.aclose())
            loop.close()


async def _next(stream: Any) -> str | None:
    """The next piece; None at the end."""
    return await anext(stream, None)


def _job(details: JobDetails) -> Job | None:
    """None for what others submitted."""
    noted = details.metadata or {}
    if KEY not in noted or not details.submission_id:
        return None
    return Job(
        id=details.submission_id,
        key=noted[KEY],
        attempt=int(noted[ATTEMPT]),
        names=tuple(noted[NAMES].split(BETWEEN)),
        runs=tuple(noted[RUNS].split(BETWEEN)),
        stages=tuple(noted[STAGES].split(BETWEEN)),
        digest=noted[DIGEST],
        status=JobStatus(details.status).value,
        message=_message(details),
        started=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
    )


def _message(details: JobDetails) -> str:
    # Ray's own message ends with the log, which is shown already.
    if details.driver_exit_code:
        return f"exit code {details.driver_exit_code}"
    return " ".join((details.message or "").split())[:_SAID]

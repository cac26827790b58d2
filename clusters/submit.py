"""A document as a Ray job: the checked, resolved file travels with the job, so what runs is
what was checked.
"""

import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from gwp.errors import GwpError

T = TypeVar("T")

_READY_S = 60.0
_POLL_S = 2.0
_LOG_CHARACTERS = 4000
_FILE = "stage.yaml"


class Cluster:
    """A running Ray cluster, reached through its dashboard."""

    def __init__(self, address: str | None) -> None:
        """`address`: `http://HOST:8265`; None: RAY_API_SERVER_ADDRESS. GwpError when nothing
        answers there.
        """
        self.address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ""
        if not self.address:
            raise GwpError(
                "no cluster: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS"
            )
        self._client = _client(self.address)

    @property
    def here(self) -> bool:
        """Whether every node is this machine. The address does not tell: a forwarded port is
        one of ours too.
        """
        ours = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
        nodes = list_nodes(address=self.address, filters=[("state", "=", "ALIVE")])
        return all(node.node_ip in ours for node in nodes)

    def submit(self, document: str, metadata: Mapping[str, str]) -> str:
        """Start `gwp train` of a resolved stage file; the id of the job. `metadata`: what the
        dashboard shows beside it. GwpError when no node takes it.
        """
        # Ours, so that a job whose acceptance got lost is not started twice.
        job_id = f"gwp-{secrets.token_hex(8)}"

        def accepted() -> None:
            try:
                self._client.submit_job(
                    entrypoint=shlex.join(["gwp", "train", _FILE]),
                    submission_id=job_id,
                    runtime_env={"working_dir": folder},
                    metadata=dict(metadata),
                )
            except (ConnectionError, RuntimeError):
                if not self._knows(job_id):
                    raise

        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _FILE).write_text(document)
            _patiently(accepted, self.address, "the cluster does not take the job")
        return job_id

    def _knows(self, job_id: str) -> bool:
        try:
            self._client.get_job_info(job_id)
        except (ConnectionError, RuntimeError):
            return False
        return True

    def follow(self, job_id: str) -> str:
        """Wait for the end of a job: its status, `SUCCEEDED` when all went well."""
        while not (status := self._client.get_job_status(job_id)).is_terminal():
            time.sleep(_POLL_S)
        return str(JobStatus(status).value)

    def log_end(self, job_id: str) -> str:
        """The last lines that a job printed."""
        return str(self._client.get_job_logs(job_id))[-_LOG_CHARACTERS:]


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


def _client(address: str) -> JobSubmissionClient:
    def answering() -> JobSubmissionClient:
        client = JobSubmissionClient(address)
        client.list_jobs()
        return client

    return _patiently(answering, address, "the cluster does not answer")


def _patiently(call: Callable[[], T], address: str, what: str) -> T:
    """The result of `call`, tried again for a while: a cluster that has just started, or is
    busy, answers and takes jobs only after some seconds.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            return call()
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                reason = str(error)[:200]
                raise GwpError(
                    f"{address}: {what} ({reason}); check --address and its token"
                ) from error
            time.sleep(_POLL_S)

"""A stage as a Ray job: the checked, resolved file travels with the job, so what runs is what was checked."""

import os
import shlex
import tempfile
import time
from pathlib import Path

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from gwp.errors import GwpError
from gwp.paths import absolute_paths, local_paths, relative
from pipelines.config.load import dump_resolved, load_config
from pipelines.console import event
from pipelines.jobs.train_job import TrainJob

_READY_S = 60.0
_POLL_S = 2.0


def submit(file: str, sets: list[str], address: str | None, wait: bool) -> int:
    """Submit and, with `wait`, follow the job to its end: 0 when it succeeded, 1 otherwise."""
    job = load_config(file, TrainJob, sets, as_written=True)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise GwpError("no cluster: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS")
    client = _client(address)
    require_reachable(job, address, here=_on_this_machine(address))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stage.yaml").write_text(dump_resolved(absolute_paths(job)))
        job_id = client.submit_job(
            entrypoint=shlex.join(["gwp", "train", "stage.yaml"]), runtime_env={"working_dir": folder},
            metadata={"gwp_run": job.run.name, "gwp_stage": job.stage},
        )
    print(job_id)
    if not wait:
        return 0
    while not (status := client.get_job_status(job_id)).is_terminal():
        time.sleep(_POLL_S)
    event("job ended", job=job_id, status=status.value)
    if status != JobStatus.SUCCEEDED:
        print(client.get_job_logs(job_id)[-4000:])
    return 0 if status == JobStatus.SUCCEEDED else 1


def require_reachable(job: TrainJob, address: str, here: bool) -> None:
    """GwpError naming the relative paths of a job for a cluster elsewhere: its machines have no such folder to start from.

    Absolute paths pass: they may lie on a file system that all machines share. `here`: the cluster is this machine.
    """
    lost = {name: path for name, path in local_paths(job).items() if relative(path)}
    if lost and not here:
        shown = ", ".join(f"{name} ({path})" for name, path in lost.items())
        raise GwpError(f"the cluster at {address} runs on other machines and cannot find {shown}; "
                       "give s3:// URIs, or absolute paths that exist there")


def _on_this_machine(address: str) -> bool:
    """Whether every node of the cluster is this machine. Its address does not tell: a forwarded port is one of ours too."""
    ours = {a.address for addresses in psutil.net_if_addrs().values() for a in addresses}
    nodes = list_nodes(address=address, filters=[("state", "=", "ALIVE")])
    return all(node.node_ip in ours for node in nodes)


def _client(address: str) -> JobSubmissionClient:
    """A client; a cluster that has just started answers only after some seconds."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            client = JobSubmissionClient(address)
            client.list_jobs()
            return client
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise GwpError(f"{address}: the cluster does not answer ({str(error)[:200]}); check --address and its token") from error
            time.sleep(_POLL_S)

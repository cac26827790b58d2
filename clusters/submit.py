"""A stage as a Ray job: the checked, resolved file travels with the job, so what runs is what
was checked.
"""

import os
import shlex
import tempfile
import time
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from gwp.errors import GwpError
from pipelines.config.load import dump_resolved, load_config
from pipelines.console import event
from pipelines.jobs.train_job import TrainJob

_READY_S = 60.0
_POLL_S = 2.0


def submit(file: str, sets: list[str], address: str | None, wait: bool) -> int:
    """Submit and, with `wait`, follow the job to its end: 0 when it succeeded, 1 otherwise."""
    job = load_config(file, TrainJob, sets)
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise GwpError("no cluster: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stage.yaml").write_text(dump_resolved(job))
        client = _client(address)
        job_id = client.submit_job(
            entrypoint=shlex.join(["gwp", "train", "stage.yaml"]),
            runtime_env={"working_dir": folder},
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
                raise GwpError(
                    f"{address}: the cluster does not answer ({str(error)[:200]}); check "
                    "--address and its token"
                ) from error
            time.sleep(_POLL_S)

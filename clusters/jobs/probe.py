"""What a job would find on the nodes of a cluster: Python, our package and what it needs, and
variables of the environment, by their names.

`probe` sends the text of this file as a job of its own, so it imports nothing of ours that a node
may lack; that job prints what `see` found on one node of each pool.
"""

import contextlib
import importlib.util
import inspect
import json
import os
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")

# What the packages of the project cannot do without, as far as a node has to have it installed.
NEEDED = ("deepspeed", "mlflow", "pyarrow", "pydantic", "torch", "yaml")
_PREFIX = "gwp-probe-"
_MARK = "gwp-probe "
# Of a node for its answer, and of the job from its submission to its end.
_NODE_S = 60.0
_JOB_S = 180.0
_POLL_S = 0.25
_KEPT_S = 60.0
_MAIN = "__main__"


@dataclass(frozen=True)
class Found:
    """What one node of a pool has."""

    pool: str
    """Label `gwp/pool` of the node; empty without one."""
    python: str
    """Major and minor version."""
    gwp: str
    """Version of the installed package; empty where there is none."""
    lacks: tuple[str, ...]
    """Packages among `NEEDED` that are not installed."""
    unset: tuple[str, ...]
    """Those of the names asked for that its environment does not set."""


def probe(client: "JobSubmissionClient", names: Sequence[str]) -> list[Found]:
    """What the nodes have, one of each pool; of a pool that has none now, nothing is known. GwpError
    when the job that looks does not come back.

    names: variables of the environment. Only whether they are set comes back.
    """
    from clusters.jobs.access import patiently
    from gwp.errors import GwpError

    address, job_id = client.get_address(), f"{_PREFIX}{secrets.token_hex(6)}"
    _forget_earlier(client)
    source = inspect.getsource(sys.modules[__name__])

    def accepted() -> None:
        client.submit_job(
            entrypoint=shlex.join(["python", "-c", source, *names]), submission_id=job_id
        )

    def asked(call: Callable[[], T]) -> T:
        return patiently(call, address, "the cluster takes no job")

    asked(accepted)
    end = time.monotonic() + _JOB_S
    while not asked(lambda: client.get_job_status(job_id)).is_terminal():
        if time.monotonic() > end:
            client.stop_job(job_id)
            raise GwpError(
                f"{address}: a job that looks at the nodes has not ended after {_JOB_S:g} s; is its "
                "head overloaded?"
            )
        time.sleep(_POLL_S)
    log = asked(lambda: client.get_job_logs(job_id))
    found = [line for line in log.splitlines() if line.startswith(_MARK)]
    if not found:
        last = " ".join(log.split())[-200:]
        raise GwpError(
            f"{address}: its head cannot run `python` with Ray, so no job either ({last}); make "
            "the image with the `cluster` extra of gwp, and its programs in PATH"
        )
    return [Found(**_tuples(node)) for node in json.loads(found[-1].removeprefix(_MARK))]


def _forget_earlier(client: "JobSubmissionClient") -> None:
    """Take earlier looks out of the list of jobs. Not the own one: Ray looks after a job for a
    moment when it is over, and would list one that has gone as failed.
    """
    for job in client.list_jobs():
        old = (job.end_time or 0) / 1000 < time.time() - _KEPT_S
        if old and job.status.is_terminal() and (job.submission_id or "").startswith(_PREFIX):
            with contextlib.suppress(RuntimeError):
                client.delete_job(str(job.submission_id))


def _tuples(node: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in node.items()}


def see(pool: str, names: Sequence[str]) -> dict[str, Any]:
    """The fields of `Found`, of the machine where it runs."""
    try:
        from gwp import __version__ as version
    except ImportError:
        version = ""
    return {
        "pool": pool,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "gwp": version,
        "lacks": [name for name in NEEDED if importlib.util.find_spec(name) is None],
        # Set to nothing is not set: no key is empty.
        "unset": [name for name in names if not os.environ.get(name)],
    }


def _see_everywhere(names: Sequence[str]) -> list[dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False)
    # Nodes of a pool are made alike.
    nodes = {n["Labels"].get("gwp/pool", ""): n["NodeID"] for n in ray.nodes() if n["Alive"]}
    looking = ray.remote(num_cpus=0, max_retries=0)(see)
    tasks = [
        looking.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(pool, names)
        for pool, node in nodes.items()
    ]
    done, _ = ray.wait(tasks, num_returns=len(tasks), timeout=_NODE_S)
    return [ray.get(task) for task in done]


if __name__ == _MAIN:
    print(_MARK + json.dumps(_see_everywhere(sys.argv[1:])), flush=True)

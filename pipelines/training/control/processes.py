"""The processes of a run, wherever they are: whether one is there still, and its end.

A stopped process answers nobody, so nothing is asked of it: its machine is.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

# Seconds for a killed process to be gone, and for its machine to answer.
_GONE_S = 10.0
_ANSWER_S = 40.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """A process on some machine, told apart from a later one with the same number."""

    host: str
    """Name of its machine."""
    node: str
    """Ray's id of its machine; empty where Ray does not know it."""
    pid: int
    """Its number there."""
    born: float
    """When it began, by the clock of its machine, in seconds since 1970."""

    @classmethod
    def own(cls, node: str = "") -> "Process":
        """This one."""
        return cls(socket.gethostname(), node, os.getpid(), psutil.Process().create_time())

    @classmethod
    def of(cls, report: dict[str, Any]) -> "Process | None":
        """That of a rank, by its report; None where the report does not say."""
        try:
            return cls(*(report[name] for name in ("host", "node", "pid", "born")))
        except KeyError:
            # Of an earlier version.
            return None

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}"


def end(process: Process, patience_s: float = 0.0) -> bool:
    """Have a process gone: by itself within `patience_s`, else killed. Whether it is; False also
    when its machine does not answer.
    """
    own = process.host == socket.gethostname()
    # Containers of one machine may have its name, and see their own processes only.
    if own and (not process.node or _here(process)):
        return end_here(process, patience_s)
    return bool(process.node) and _asked(process, end_here, patience_s)


def lives(process: Process) -> bool:
    """Whether a process is there, stopped or not. Of a machine that does not answer, True."""
    if process.host == socket.gethostname() and (not process.node or _here(process)):
        return _here(process) is not None
    return bool(process.node) and not _asked(process, _is_gone, 0.0)


def _is_gone(process: Process, _: float) -> bool:
    return _here(process) is None


def end_here(process: Process, patience_s: float) -> bool:
    """As `end`, of a process of this machine."""
    found = _here(process)
    if found is None:
        return True
    with contextlib.suppress(psutil.TimeoutExpired):
        if patience_s:
            found.wait(patience_s)
            return True
    # It ends those that are stopped, too.
    with contextlib.suppress(psutil.NoSuchProcess):
        found.kill()
    with contextlib.suppress(psutil.TimeoutExpired):
        found.wait(_GONE_S)
    return _here(process) is None


def _here(process: Process) -> psutil.Process | None:
    """It, where it runs on this machine."""
    try:
        found = psutil.Process(process.pid)
        # Of clocks that are set, the kernel gives another time of birth.
        same = abs(found.create_time() - process.born) < 2
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _asked(process: Process, ask: Callable[[Process, float], bool], patience_s: float) -> bool:
    """What `ask` says of a process on its machine; True when Ray has lost that, which ends what
    runs there, and False when it does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if process.node not in alive:
        return True
    where = NodeAffinitySchedulingStrategy(process.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(ask).options(scheduling_strategy=where)
    try:
        return bool(ray.get(task.remote(process, patience_s), timeout=patience_s + _ANSWER_S))
    except ray.exceptions.RayError as error:
        logger.warning("process %s: its machine does not answer: %s", process, error)
        return False

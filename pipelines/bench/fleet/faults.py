"""`gwp bench fleet --faults`: robots that ask without a pause while what answers them is killed,
replaced and scaled; how long the longest silence of any of them was.
"""

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from gwp.errors import GwpError
from pipelines.bench.fleet.bench import ROBOTS, STEPS, Plan, crowd_for
from pipelines.bench.fleet.bundle import random_bundle
from pipelines.bench.fleet.service import Served, served

_CALM_S = 8.0
"""After what a fault has set off is over, before the next one."""
_WAIT_S = 180.0
_REPLICA, _GATEWAY = "ServeReplica:gwp:Replica", "ServeReplica:gwp:Gateway"
_CONTROLLER = "ServeController"


@dataclass(frozen=True)
class Fault:
    """Something that happens to the endpoint.

    begin, end: seconds since the epoch: when it happened, and when all was as it should be again
    """

    name: str
    begin: float
    end: float


def bench_faults(plan: Plan) -> dict[str, Any]:
    """Each fault in turn under one crowd, the first of `plan.robots`; two replicas and two
    gateways.
    """
    with tempfile.TemporaryDirectory(prefix="gwp-faults-") as name:
        scratch = Path(name)
        bundle, newer = scratch / "bundle", scratch / "newer"
        for folder in (bundle, newer):
            folder.mkdir()
            random_bundle(folder, plan.size, STEPS, folder.name, plan.visibility)
        scale = {"min_replicas": 2, "max_replicas": 2}
        with served("separate", bundle, scale, plan.slots, plan.threads) as endpoint:
            crowd = crowd_for(bundle, plan, plan.robots[0], endpoint.url)
            over = scratch / "over"
            robots = _start(asdict(replace(crowd, until=str(over))))
            time.sleep(_CALM_S)
            faults = [
                _suffer("replica killed", lambda: _kill(_REPLICA), endpoint),
                _suffer("gateway killed", lambda: _kill(_GATEWAY), endpoint),
                _suffer("controller killed", lambda: _kill(_CONTROLLER), endpoint),
                _suffer("replica stopped (SIGSTOP)", lambda: _kill(_REPLICA, stop=True), endpoint),
                _suffer("rolling update", lambda: _deploy(endpoint, str(newer), 2), endpoint),
                _suffer("scaled down", lambda: _deploy(endpoint, str(newer), 1), endpoint, 1),
            ]
            over.touch()
            told, failure = robots.communicate(timeout=_WAIT_S)
    if robots.returncode:
        raise GwpError(f"the robots failed: {failure.strip()[-500:]}")
    found = json.loads(told)
    answered = found.pop("answered")
    return found | {"faults": [_silence(fault, answered) for fault in faults]}


def table(found: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [
        (
            f"{found['robots']} robots, {found['requests']} requests, failed after their own "
            f"retries: {found['failed']} {found['errors'] or ''}"
        ),
        f"  {'':28} {'longest silence':>16} {'whole again after':>18}",
    ]
    lines += [
        f"  {fault['name']:28} {fault['silence_s']:14.2f} s {fault['took_s']:16.1f} s"
        for fault in found["faults"]
    ]
    return "\n".join(lines)


def _start(crowd: dict[str, Any]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    robots = subprocess.Popen(
        [sys.executable, "-m", ROBOTS], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert robots.stdin
    robots.stdin.write(json.dumps(crowd))
    robots.stdin.close()
    # Or `communicate` would close it once more.
    robots.stdin = None
    return robots


def _suffer(name: str, happen: Callable[[], None], endpoint: Served, replicas: int = 2) -> Fault:
    begin = time.time()
    happen()
    _await_whole(endpoint, replicas, begin)
    end = time.time()
    time.sleep(_CALM_S)
    return Fault(name, begin, end)


def _kill(title: str, stop: bool = False) -> None:
    """One process of this cluster, by the title that Ray gives it."""
    victim = _processes(title)[0]
    victim.send_signal(signal.SIGSTOP if stop else signal.SIGKILL)


def _processes(title: str) -> list[psutil.Process]:
    """Of this cluster, which is our own child."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{title}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _deploy(endpoint: Served, policy: str, replicas: int) -> None:
    from serve.app import deploy
    from serve.config import AutoscalingConfig

    scale = AutoscalingConfig(min_replicas=replicas, max_replicas=replicas)
    deploy(endpoint.config.model_copy(update={"policy": policy, "autoscaling": scale}))


def _await_whole(endpoint: Served, replicas: int, since: float) -> None:
    """Return when so many replicas answer, and they, two gateways and nobody else are left, none of
    them stopped.
    """
    from serve.app import replica_counts

    wanted = {_REPLICA: replicas, _GATEWAY: 2, _CONTROLLER: 1}
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        alive = {
            title: [p for p in _processes(title) if p.status() != psutil.STATUS_STOPPED]
            for title in wanted
        }
        whole = all(len(alive[title]) == count for title, count in wanted.items())
        if whole and time.time() - since > 1 and replica_counts(endpoint.config.name) == replicas:
            return
        time.sleep(0.2)
    raise GwpError(f"not whole again after {_WAIT_S:g} s: {endpoint.url}")


def _silence(fault: Fault, answered: list[tuple[float, int]]) -> dict[str, Any]:
    """The longest time that any robot was without an answer while the fault lasted."""
    times: dict[int, list[float]] = {}
    for when, robot in answered:
        times.setdefault(robot, []).append(when)
    until = fault.end + _CALM_S / 2
    worst = 0.0
    for own in times.values():
        own.sort()
        gaps = itertools.pairwise(own)
        inside = [b - a for a, b in gaps if b >= fault.begin and a <= until]
        worst = max([worst, *inside])
    return {
        "name": fault.name,
        "silence_s": round(worst, 3),
        "took_s": round(fault.end - fault.begin, 1),
    }

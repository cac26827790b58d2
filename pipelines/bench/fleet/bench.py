"""`gwp bench fleet`: the endpoint under a fleet, against the bare engine and against a server that
computes one request at a time, side by side in one run.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusters.services import LOOPBACK, Service, free_ports
from gwp.errors import GwpError
from gwp.policy.contract import PolicyContract
from pipelines.bench.act.bench import hardware
from pipelines.bench.act.sizes import Arm
from pipelines.bench.fleet.bundle import random_bundle
from pipelines.bench.fleet.rival import HEALTH
from pipelines.bench.fleet.robots import Crowd

PICTURE = (240, 278)
"""Height and width of what a robot sends: 200 kB as raw pixels."""
ROBOTS = "pipelines.bench.fleet.robots"
RIVAL = "one_at_a_time"
STEPS = 10
_SPARE_S = 120.0


@dataclass(frozen=True)
class Plan:
    """What is measured.

    size, visibility: of the policy, of `gwp bench act`
    robots:  crowds
    gateways: ways to serve: `inline`, `separate`
    rate_hz, latency_s, seconds, deadline_s: as of `Crowd`; with a deadline clients do not try
        again after it
    replicas, most_replicas: of the policy; with more at most than at least they follow the load
    threads: of torch, on either side
    """

    size: str = "tiny"
    visibility: Arm = "action-centred"
    robots: tuple[int, ...] = (1, 4, 16, 32)
    gateways: tuple[str, ...] = ("inline", "separate")
    rate_hz: float = 0.0
    latency_s: float = 0.0
    seconds: float = 5.0
    deadline_s: float | None = None
    replicas: int = 1
    most_replicas: int = 1
    slots: int = 16
    threads: int = 1


def bench_fleet(plan: Plan) -> dict[str, Any]:
    """Everything that `gwp bench fleet` prints."""
    import torch

    with tempfile.TemporaryDirectory(prefix="gwp-fleet-") as scratch:
        bundle = Path(scratch) / "bundle"
        bundle.mkdir()
        random_bundle(bundle, plan.size, STEPS, arm=plan.visibility)
        bare_ms = _bare(bundle, plan)
        with _rival(bundle, plan, Path(scratch)) as url:
            rival = [_crowd(bundle, plan, count, url) for count in plan.robots]
        ways = {way: _served(way, bundle, plan) for way in plan.gateways}
    overheads = {way: round(found[0]["ms"]["p50"] - bare_ms, 2) for way, found in ways.items()}
    ratios = {way: _ratios(found, rival) for way, found in ways.items()}
    first = plan.gateways[0]
    return {
        **asdict(plan),
        "hardware": hardware(torch.device("cpu")),
        "torch": torch.__version__,
        "picture": [*PICTURE, 3],
        "bare_ms_p50": bare_ms,
        # Of the first way to serve: for one robot, and at the largest crowd.
        "overhead_ms_p50": overheads[first],
        "ratios": {"vs_one_at_a_time": ratios[first][str(plan.robots[-1])]},
        "failed": sum(one["failed"] for found in ways.values() for one in found),
        "by_robots": {
            str(count): {way: rows[i] for way, rows in ({RIVAL: rival} | ways).items()}
            for i, count in enumerate(plan.robots)
        },
        "by_gateway": {
            way: {"overhead_ms_p50": overheads[way], "vs_one_at_a_time": ratios[way]}
            for way in ways
        },
    }


def _ratios(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Chunks a second of ours over theirs, by robots."""
    pairs = zip(ours, theirs, strict=True)
    return {str(a["robots"]): round(a["per_s"] / max(b["per_s"], 1e-9), 2) for a, b in pairs}


def _bare(bundle: Path, plan: Plan) -> float:
    """Milliseconds of one request in the process of the engine, composing included, p50."""
    command = [sys.executable, "-m", "pipelines.bench.fleet.bare", str(bundle), str(plan.threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SPARE_S, check=False)
    if done.returncode:
        raise GwpError(f"the engine alone failed: {done.stderr.strip()[-500:]}")
    return statistics.median(json.loads(done.stdout)) * 1e3


@contextmanager
def _rival(bundle: Path, plan: Plan, scratch: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    program = [sys.executable, "-m", "pipelines.bench.fleet.rival"]
    command = [*program, str(bundle), str(port), str(plan.threads)]
    server = Service("the one-at-a-time server", command, port, HEALTH, scratch / "rival.log", {})
    server.start()
    try:
        server.wait(_SPARE_S)
        yield f"ws://{LOOPBACK}:{port}"
    finally:
        server.stop()


def _served(way: str, bundle: Path, plan: Plan) -> list[dict[str, Any]]:
    """Each crowd at the endpoint, on a Ray of its own."""
    from pipelines.bench.fleet.service import served, watched_replicas

    scale = {"min_replicas": plan.replicas, "max_replicas": plan.most_replicas}
    with served(way, bundle, scale, plan.slots, plan.threads) as endpoint:
        found = []
        for count in plan.robots:
            with watched_replicas(endpoint) as replicas:
                crowd = _crowd(bundle, plan, count, endpoint.url)
            found.append(crowd | {"batch": endpoint.stats()["batch"], "replicas": replicas})
        return found


def _crowd(bundle: Path, plan: Plan, count: int, url: str) -> dict[str, Any]:
    crowd = crowd_for(bundle, plan, count, url)
    done = subprocess.run(
        [sys.executable, "-m", ROBOTS],
        input=json.dumps(asdict(crowd)),
        capture_output=True,
        text=True,
        timeout=plan.seconds + _SPARE_S,
        check=False,
    )
    if done.returncode:
        raise GwpError(f"{count} robots failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    result.pop("answered")
    return result


def crowd_for(bundle: Path, plan: Plan, count: int, url: str) -> Crowd:
    """So many robots of the bundle's only kind."""
    (robot,) = PolicyContract.read(str(bundle)).embodiments.values()
    (camera,) = robot.cameras.values()
    return Crowd(
        url=url,
        camera=camera,
        height=PICTURE[0],
        width=PICTURE[1],
        dims=len(robot.state_names),
        robots=count,
        rate_hz=plan.rate_hz,
        latency_s=plan.latency_s,
        seconds=plan.seconds,
        deadline_s=plan.deadline_s,
    )

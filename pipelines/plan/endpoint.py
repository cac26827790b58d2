"""How many replicas a fleet needs, from a profile that was measured on the hardware in question."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gwp.errors import GwpError
from serve.config import ServeApp

SERVICE_MS = {"inline": 3.9, "gateways": 9.2}
"""What the service adds to the bare engine for one robot: docs/benchmarks.md, "The endpoint under
a fleet".
"""
_MOST = 1e9
HEADROOM = 0.8
"""Of what a replica was measured to answer: robots do not spread evenly over replicas."""
_HOW = "make it by `gwp bench act --p99 BOUND --json FILE` on the hardware that will serve"


@dataclass(frozen=True)
class Rate:
    """Requests a second that one engine was measured to answer, and what 99 % waited at most."""

    requests_s: float
    p99_ms: float


@dataclass(frozen=True)
class EndpointPlan:
    """What an endpoint needs for a fleet.

    requests_s: of all robots
    bound_ms:   of 99 % of the answers, as asked for; engine_ms: what of it is left to the engine
    one:        the most that one engine was measured to answer within that
    replicas:   at that rate, with headroom
    spare:      one more, so that a lost replica is not noticed
    most:       `autoscaling.max_replicas` of the document
    hardware:   that the profile was measured on
    """

    robots: int
    rate_hz: float
    requests_s: float
    bound_ms: float
    engine_ms: float
    one: Rate
    replicas: int
    spare: int
    most: int
    hardware: str

    @property
    def enough(self) -> bool:
        """Whether the document lets so many replicas run."""
        return self.most >= self.spare

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"enough": self.enough}


def plan_endpoint(
    app: ServeApp, profile: str | Path, robots: int, rate_hz: float, bound_ms: float
) -> EndpointPlan:
    """The plan for so many robots that ask `rate_hz` times a second each.

    profile: what `gwp bench act --json` wrote. GwpError when it cannot tell, or says that the
    bound cannot be kept.
    """
    told = {"--robots": robots, "--rate": rate_hz, "--p99": bound_ms}
    wrong = [name for name, value in told.items() if not 0 < value < _MOST]
    if wrong:
        raise GwpError(f"{wrong[0]}: must be above 0 and below {_MOST:g}")
    found = _read(Path(profile))
    service = SERVICE_MS["inline" if app.separate is None else "gateways"]
    engine_ms = bound_ms - service
    one = _within(found["crowds"], engine_ms, service)
    asked = robots * rate_hz
    replicas = math.ceil(asked / (HEADROOM * one.requests_s))
    return EndpointPlan(
        robots=robots,
        rate_hz=rate_hz,
        requests_s=asked,
        bound_ms=bound_ms,
        engine_ms=engine_ms,
        one=one,
        replicas=replicas,
        spare=replicas + 1,
        most=app.autoscaling.max_replicas,
        hardware=str(found.get("hardware", "not said")),
    )


def _read(profile: Path) -> Mapping[str, Any]:
    """The result of the family that was measured with crowds."""
    try:
        families = json.loads(profile.read_text())
        results = [r for r in families.values() if r.get("crowds")]
    except (OSError, ValueError, AttributeError) as error:
        raise GwpError(f"--profile {profile}: cannot be read ({error}); {_HOW}") from error
    if not results:
        raise GwpError(f"--profile {profile}: has no crowds of robots; {_HOW}")
    if len(results) > 1:
        names = ", ".join(families)
        raise GwpError(f"--profile {profile}: holds {names}; measure one with --family")
    found: Mapping[str, Any] = results[0]
    try:
        numbers = [found["crowds"]["period_s"]]
        for row in found["crowds"]["rows"]:
            numbers += [row["robots"], row["p99"]]
        sound = len(numbers) > 1 and all(0 < n < math.inf for n in numbers)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise GwpError(f"--profile {profile}: its crowds lack numbers or are no numbers; {_HOW}")
    return found


def _within(crowds: Mapping[str, Any], engine_ms: float, service_ms: float) -> Rate:
    """The largest crowd within the bound, with none smaller beyond it."""
    best: Rate | None = None
    for row in sorted(crowds["rows"], key=lambda row: row["robots"]):
        if row["p99"] > engine_ms:
            break
        best = Rate(row["robots"] / crowds["period_s"], row["p99"])
    if best is None:
        least = min(crowds["rows"], key=lambda row: row["robots"])
        raise GwpError(
            f"--p99: with {least['robots']} robots 99 % of the engine's answers took "
            f"{least['p99']:.0f} ms, the service takes {service_ms:g} more; allow more time, take fewer "
            "solver steps (replica.steps) or faster hardware"
        )
    return best

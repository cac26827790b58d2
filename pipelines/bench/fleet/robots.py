"""A fleet of robots with nothing but a client each. A program of its own, so that what robots do
takes nothing from whoever answers them:

    python -m pipelines.bench.fleet.robots < CROWD > RESULT

Both are JSON: the fields of `Crowd`, and what `drive` returns.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gwp.client import AsyncClient, ClientError, Observation

_RAMP_S = 1.0
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Crowd:
    """So many robots and what they do.

    url:       of the endpoint
    camera, height, width, dims: what they send: one picture, and a state
    robots:    how many
    rate_hz:   how often each asks; 0: as soon as it was answered
    latency_s: of the network, there and back together
    seconds:   how long
    until:     a file: they go on until it is there, instead
    deadline_s: after which an answer is worthless and its client gives up; None: never
    """

    url: str
    camera: str
    height: int
    width: int
    dims: int
    robots: int
    rate_hz: float = 0.0
    latency_s: float = 0.0
    seconds: float = 5.0
    until: str | None = None
    deadline_s: float | None = None


@dataclass
class Log:
    """What robots saw.

    latencies: seconds from asking to the chunk; ages: of observations when their chunks were
    ready, seconds; missed: answers later than the robot's next turn; silences: longest time of each
    robot without an answer
    """

    latencies: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    silences: list[float] = field(default_factory=list)
    # When each answer came, seconds since the epoch, and to which robot.
    answered: list[tuple[float, int]] = field(default_factory=list)
    # When robots began and ended to be measured, seconds since the epoch.
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Answers a second while all robots asked."""
        begin, end = max(self.begins), min(self.ends)
        return sum(begin <= when <= end for when, _ in self.answered) / max(end - begin, 1e-9)


async def drive(crowd: Crowd) -> dict[str, Any]:
    """Drive the crowd and say how it went."""
    log = Log()
    robots = [asyncio.create_task(_robot(crowd, number, log)) for number in range(crowd.robots)]
    await asyncio.gather(*robots)
    return {
        "robots": crowd.robots,
        "requests": len(log.latencies),
        "per_s": round(log.per_s, 1),
        "ms": _percentiles([s * 1e3 for s in log.latencies]),
        "age_ms": _percentiles([s * 1e3 for s in log.ages]),
        "failed": sum(log.errors.values()),
        "errors": dict(log.errors),
        "missed": log.missed,
        "policies": dict(log.policies),
        "silence_s": round(max(log.silences, default=0.0), 3),
        "answered": log.answered,
    }


async def _robot(crowd: Crowd, number: int, log: Log) -> None:
    rng = np.random.default_rng(number)
    picture = rng.integers(0, 256, (crowd.height, crowd.width, 3), np.uint8)
    state = rng.uniform(-0.2, 0.2, crowd.dims).astype(np.float32)
    pause = random.Random(number)

    def observe() -> Observation:
        return Observation(
            {crowd.camera: picture},
            state,
            "put it there",
            seed=number,
            robot=f"robot-{number}",
            observed_at=time.time(),
            rate=crowd.rate_hz or None,
            deadline_s=crowd.deadline_s,
        )

    # Not all at once: nobody's first request belongs to what is measured.
    await asyncio.sleep(pause.uniform(0, _RAMP_S / 2))
    wait = crowd.deadline_s
    client = AsyncClient(crowd.url, timeout_s=PATIENCE_S, reply_timeout_s=PATIENCE_S / 3)
    async with client:
        await _asked(client, observe, Log(), number, wait)
        await asyncio.sleep(_RAMP_S / 2)
        period = 1 / crowd.rate_hz if crowd.rate_hz else 0.0
        turn = time.monotonic() + pause.uniform(0, period)
        end, last, worst = time.monotonic() + crowd.seconds, time.monotonic(), 0.0
        log.begins.append(time.time())
        while time.monotonic() < end if crowd.until is None else not _is_there(crowd.until):
            await asyncio.sleep(max(0.0, turn - time.monotonic()) + crowd.latency_s)
            ok = await _asked(client, observe, log, number, wait, crowd.latency_s)
            now = time.monotonic()
            if ok:
                worst = max(worst, now - last)
                last = now
            turn += period
            if period and now > turn:
                log.missed += 1
                turn = now
        log.ends.append(time.time())
        log.silences.append(worst)


async def _asked(
    client: AsyncClient,
    observe: Any,
    log: Log,
    number: int,
    timeout_s: float | None,
    latency_s: float = 0.0,
) -> bool:
    begin = time.monotonic()
    try:
        chunk = await client.act(observe, timeout_s=timeout_s)
    except ClientError as error:
        log.errors[error.code] += 1
        return False
    log.latencies.append(time.monotonic() - begin + latency_s)
    log.answered.append((time.time(), number))
    log.policies[chunk.policy_id] += 1
    if chunk.observation_age_s is not None:
        log.ages.append(chunk.observation_age_s + latency_s / 2)
    return True


def _is_there(name: str) -> bool:
    from pathlib import Path

    return Path(name).exists()


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(values, (50, 95, 99, 100))
    return dict(zip(("p50", "p95", "p99", "max"), np.round(found, 1).tolist(), strict=True))


if __name__ == "__main__":
    json.dump(asyncio.run(drive(Crowd(**json.load(sys.stdin)))), sys.stdout)

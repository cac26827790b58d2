"""How many robots one engine can hold: every robot asks at its own moments, whether it was
answered or not, as a control loop does.
"""

import itertools
import queue
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from gwp.policy.batching.engine import Engine
from gwp.policy.batching.schedule import BUCKETS, BatchingConfig
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk
from pipelines.bench.act.sizes import Size, observation

_PROMPTS = 4
"""Different instructions of a crowd: robots of a fleet share tasks."""
_SUBMITTERS = 8
"""Threads that prepare requests."""
_ANSWER_S = 600.0
"""A request that has no answer then has none."""


@dataclass(frozen=True)
class Crowd:
    """So many robots and what they waited, from `_crowd`: milliseconds from the moment when a
    robot should have asked to its chunk.
    """

    robots: int
    requests: int
    p50: float
    p95: float
    p99: float


def robots_table(policy: Policy, size: Size, bound_ms: float, seconds: float) -> dict[str, object]:
    """Crowds of growing size, and the largest whose 99th percentile stays within the bound.

    Each robot asks once per replan interval of the embodiment, at a random phase. seconds: of
    each crowd
    """
    embodiment = next(iter(policy.bundle.embodiments.values()))
    period = embodiment.replan / embodiment.fps
    rows: list[Crowd] = []
    with Engine(policy, BatchingConfig(slots=BUCKETS[-1])) as engine:
        engine.warm_up([observation(size, 0)])

        def holds(robots: int) -> bool:
            rows.append(_crowd(engine, size, robots, period, seconds))
            return rows[-1].p99 <= bound_ms

        # The largest crowd that held, and the smallest that did not.
        most = 0
        above = 1
        while holds(above):
            most = above
            above *= 2
        # Halve what lies between them, until it is about an eighth.
        while above - most > max(1, most // 8):
            middle = (most + above) // 2
            if holds(middle):
                most = middle
            else:
                above = middle
    return {
        "bound_ms": bound_ms,
        "robots": most,
        "period_s": period,
        "seconds": seconds,
        "rows": [asdict(row) for row in sorted(rows, key=lambda row: row.robots)],
    }


def _crowd(engine: Engine, size: Size, robots: int, period: float, seconds: float) -> Crowd:
    seen = [observation(size, i, f"put it at place {i % _PROMPTS}") for i in range(min(robots, 64))]
    # Every instruction once, so that its text is encoded before the clock starts.
    for one in seen[:_PROMPTS]:
        engine.act(one)
    latencies: queue.SimpleQueue[float] = queue.SimpleQueue()

    def ask(robot: int, due: float) -> "Future[ActionChunk]":
        future = engine.submit(seen[robot % len(seen)])
        # A request that fails is no fast answer: `result` below raises its error.
        future.add_done_callback(lambda _: latencies.put((time.monotonic() - due) * 1e3))
        return future

    begin = time.monotonic() + 0.05
    with ThreadPoolExecutor(_SUBMITTERS) as pool:
        asked = []
        for offset, robot in _moments(robots, period, seconds):
            time.sleep(max(0.0, begin + offset - time.monotonic()))
            # Not from here: preparing a request would delay the robots after it.
            asked.append(pool.submit(ask, robot, begin + offset))
            if engine.load[0] > 2 * robots:
                # Each waits twice already: more of the same would only make the run longer.
                break
        for future in [f.result() for f in asked]:
            future.result(timeout=_ANSWER_S)
    # A future wakes its waiter before its callback has run.
    waits = [latencies.get(timeout=_ANSWER_S) for _ in asked]
    p50, p95, p99 = (float(x) for x in np.percentile(waits, (50, 95, 99)))
    return Crowd(robots, len(waits), p50, p95, p99)


def _moments(robots: int, period: float, seconds: float) -> Iterator[tuple[float, int]]:
    """(seconds from the start, robot), in order; the same for the same number of robots."""
    phases = np.sort(np.random.default_rng(robots).uniform(0, period, robots))
    for turn in itertools.count():
        if turn * period >= seconds:
            return
        for robot, phase in enumerate(phases):
            yield turn * period + float(phase), robot

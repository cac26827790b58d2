"""What an endpoint tells Prometheus: a gateway of its answers, a replica of its engine.

A request costs some entries in a dictionary; Ray is told once a second (`gwp.metrics.meter`). See
`gwp.metrics.names`.
"""

from collections.abc import Callable, Sequence

from gwp.metrics.meter import Meter
from gwp.metrics.names import (
    CLIENT_AGE,
    CLIENT_STEPS,
    CLIENT_TROUBLE,
    SERVE_AGE,
    SERVE_FLAGS,
    SERVE_LATENCY,
    SERVE_LOAD,
    SERVE_PHASE,
    SERVE_READY,
    SERVE_REPLICAS,
    SERVE_REQUESTS,
    SERVE_ROBOTS,
    SERVE_ROWS,
    SERVE_SLACK,
    SERVE_STEPS,
    SERVE_WAIT,
    Metric,
)
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.report import Report
from serve.identity import Identity

_REPORTED = {
    CLIENT_STEPS: ("executed", "blended", "held", "skipped"),
    CLIENT_TROUBLE: ("dry", "late", "failed"),
}
"""Metric -> what it counts of the reports of robots."""
_SHOWN = 12
"""Digits of a policy's id: enough to tell versions apart."""


def meter_of(app: str, identity: Identity) -> Meter:
    """For an actor of Ray's that is a part of the application of this name."""
    # Doors also run where there is no Ray.
    import ray
    import ray.util.metrics

    return Meter(
        ray.util.metrics,
        app=app,
        policy=identity.policy_id[:_SHOWN],
        version=identity.policy_version,
        process=(ray.get_runtime_context().get_actor_id() or "")[:8],
    )


def count(meter: Meter, outcome: str, flags: Sequence[str]) -> None:
    """An observation was answered. outcome: `ok` or a code"""
    meter.add(SERVE_REQUESTS, outcome=outcome)
    for flag in flags:
        # Without the name behind it: robots have many actions.
        meter.add(SERVE_FLAGS, kind=flag.partition(":")[0])


def answered(meter: Meter, observation: Observation, chunk: ActionChunk, took_s: float) -> None:
    """A chunk is ready. took_s: since its observation arrived"""
    meter.observe(SERVE_LATENCY, took_s)
    seconds = {name: ms / 1e3 for name, ms in chunk.timings.items()}
    seconds["outside"] = took_s - seconds.pop("total", took_s)
    meter.add_each(SERVE_PHASE, seconds)
    if observation.deadline_s is not None:
        meter.observe(SERVE_SLACK, observation.deadline_s - took_s)
    if chunk.observation_age_s is not None:
        meter.observe(SERVE_AGE, chunk.observation_age_s)
    if observation.report is not None:
        _reported(meter, observation.embodiment or "", observation.report)


def _reported(meter: Meter, embodiment: str, report: Report) -> None:
    for metric, kinds in _REPORTED.items():
        for kind in kinds:
            meter.add(metric, getattr(report, kind), embodiment=embodiment, kind=kind)
    if report.age_s is not None:
        meter.observe(CLIENT_AGE, report.age_s, embodiment=embodiment)


def watch_gateway(
    meter: Meter,
    ready: Callable[[], bool],
    robots: Callable[[], int],
    wait_s: Callable[[], float],
) -> None:
    """Have the state of a gateway told once a second."""

    def look() -> None:
        meter.set(SERVE_READY, float(ready()))
        meter.set(SERVE_ROBOTS, robots())
        meter.set(SERVE_WAIT, wait_s())

    meter.watch(look)


def watch_replica(
    meter: Meter, load: Callable[[], int], totals: Callable[[], tuple[int, int]]
) -> None:
    """Have the state of a replica told once a second. totals: as of `Engine.totals`"""
    before: dict[Metric, int] = {}

    def look() -> None:
        meter.set(SERVE_REPLICAS, 1)
        meter.set(SERVE_LOAD, load())
        for metric, total in zip((SERVE_STEPS, SERVE_ROWS), totals(), strict=True):
            meter.add(metric, total - before.get(metric, 0))
            before[metric] = total

    meter.watch(look)

"""What an endpoint counts of its answers, and that no label is a robot's."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from gwp.metrics.meter import Meter
from gwp.metrics.names import SERVE_ROWS, SERVE_STEPS
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.report import Report
from serve.metrics import answered, count, watch_gateway, watch_replica
from tests.unit.gwp.metrics.test_meter import Backend

OBSERVATION = Observation({}, np.zeros(2), "go", deadline_s=0.5, robot="arm-17")
CHUNK = ActionChunk(np.zeros((1, 2)), "p", timings={"total": 80.0, "vae": 20.0})


def told(backend: Backend, metric: str) -> dict[str, list[float]]:
    """Last label of a series -> what came."""
    found = {}
    for (name, tags), values in backend.told.items():
        if name == metric:
            rest = dict(tags)
            rest.pop("app")
            found[next(iter(rest.values()), "")] = values
    return found


def test_answers_are_counted_by_outcome_flag_and_phase() -> None:
    backend = Backend()
    meter = Meter(backend, app="a")
    count(meter, "ok", ["clipped:x", "clipped:grip", "slowed:x"])
    count(meter, "deadline", [])
    answered(meter, OBSERVATION, replace(CHUNK, observation_age_s=0.2), took_s=0.1)
    answered(meter, replace(OBSERVATION, deadline_s=None), CHUNK, took_s=0.3)
    meter.close()
    assert told(backend, "gwp_serve_requests") == {"ok": [1], "deadline": [1]}
    assert told(backend, "gwp_serve_flags") == {"clipped": [2], "slowed": [1]}
    assert told(backend, "gwp_serve_latency_seconds") == {"": [0.1, 0.3]}
    phases = told(backend, "gwp_serve_phase_seconds")
    # Those of the policy, and what of the answers' time is not in it.
    assert phases == {"vae": [pytest.approx(0.04)], "outside": [pytest.approx(0.02 + 0.22)]}
    assert told(backend, "gwp_serve_slack_seconds") == {"": [0.4]}
    assert told(backend, "gwp_serve_observation_age_seconds") == {"": [0.2]}
    assert "arm-17" not in str(backend.told)


def test_robots_report_of_themselves_by_their_make() -> None:
    backend = Backend()
    meter = Meter(backend, app="a")
    report = Report(executed=4, blended=2, dry=1, age_s=0.3)
    seen = replace(OBSERVATION, embodiment="arm", report=report)
    answered(meter, seen, CHUNK, took_s=0.1)
    answered(meter, replace(seen, report=Report(held=3, failed=1)), CHUNK, took_s=0.1)
    answered(meter, replace(seen, report=None), CHUNK, took_s=0.1)
    meter.close()
    by = {
        (name, dict(tags).get("kind", "")): values
        for (name, tags), values in backend.told.items()
        if name.startswith("gwp_client") and dict(tags)["embodiment"] == "arm"
    }
    assert by == {
        ("gwp_client_steps", "executed"): [4],
        ("gwp_client_steps", "blended"): [2],
        ("gwp_client_steps", "held"): [3],
        ("gwp_client_trouble", "dry"): [1],
        ("gwp_client_trouble", "failed"): [1],
        ("gwp_client_age_seconds", ""): [0.3],
    }
    assert "arm-17" not in str(backend.told)


def test_a_replica_counts_what_came_since_the_last_look() -> None:
    backend = Backend()
    meter = Meter(backend, app="a", policy="p", version="1", process="q")
    totals = iter([(10, 15), (10, 15), (14, 27)] + [(14, 27)] * 9)
    watch_replica(meter, lambda: 3, lambda: next(totals))
    for _ in range(3):
        meter.flush()
    meter.close()
    sums: Counter[str] = Counter()
    for (name, _), values in backend.told.items():
        sums[name] += sum(values)  # type: ignore[assignment]
    assert sums[SERVE_STEPS.name] == 14
    assert sums[SERVE_ROWS.name] == 27


def test_a_gateway_is_looked_at_at_each_hand_over() -> None:
    backend = Backend()
    meter = Meter(backend, app="a", policy="p", version="1", process="q")
    watch_gateway(meter, lambda: False, lambda: 7, lambda: 0.25)
    meter.close()
    names = {name: set(values) for (name, _), values in backend.told.items()}
    assert names == {
        "gwp_serve_ready": {0.0},
        "gwp_serve_robots": {7},
        "gwp_serve_wait_seconds": {0.25},
    }

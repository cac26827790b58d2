"""What is counted arrives once, under its labels, and nothing that is measured waits or fails."""

import re
import threading
from collections import defaultdict
from typing import Any

import pytest

from gwp.metrics.meter import Meter
from gwp.metrics.names import (
    SERVE_LATENCY,
    SERVE_REQUESTS,
    SERVE_ROBOTS,
    TRAIN_LOSS,
    all_metrics,
)
from gwp.metrics.page import page
from tests.support.paths import ROOT


class Backend:
    """Stands where `ray.util.metrics` does; keeps what it is told."""

    def __init__(self) -> None:
        self.told: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
        self.made: list[str] = []

    def _make(self, name: str, **said: Any) -> Any:
        self.made.append(name)
        told = self.told

        class Shown:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert set(tags) == set(said["tag_keys"])
                told[name, tuple(sorted(tags.items()))].append(value)

            set = observe = inc

        return Shown()

    Counter = Gauge = Histogram = _make


def test_what_is_counted_by_many_threads_arrives_once() -> None:
    backend = Backend()
    meter = Meter(backend, app="a")

    def work() -> None:
        for _ in range(500):
            meter.add(SERVE_REQUESTS, outcome="ok")
            meter.observe(SERVE_LATENCY, 0.01)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    meter.close()
    ok = backend.told["gwp_serve_requests", (("app", "a"), ("outcome", "ok"))]
    assert sum(ok) == 2000
    # Once a hand-over, however many requests there were.
    assert len(ok) < 100
    assert len(backend.told["gwp_serve_latency_seconds", (("app", "a"),)]) == 2000
    assert len(backend.made) == 2


def test_a_gauge_is_told_again_at_each_hand_over_and_watched_before_it() -> None:
    backend = Backend()
    meter = Meter(backend, app="a", process="p")
    robots = iter(range(1, 100))
    meter.watch(lambda: meter.set(SERVE_ROBOTS, next(robots)))
    meter.flush()
    meter.flush()
    meter.close()
    told = backend.told["gwp_serve_robots", (("app", "a"), ("process", "p"))]
    assert told == sorted(set(told))
    assert len(told) >= 3


def test_without_a_backend_nothing_is_kept_and_no_thread_runs() -> None:
    before = threading.active_count()
    meter = Meter()
    meter.add(SERVE_REQUESTS, outcome="ok")
    meter.observe(SERVE_LATENCY, 1.0)
    meter.set(TRAIN_LOSS, 1.0, part="loss")
    meter.flush()
    meter.close()
    assert threading.active_count() == before
    assert not meter.__dict__["_values"]


def test_a_backend_that_fails_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter(object(), app="a")
    for _ in range(3):
        meter.add(SERVE_REQUESTS, outcome="ok")
        meter.flush()
    meter.close()
    assert caplog.text.count("metrics are not shown any more") == 1


def test_a_label_that_is_missing_and_a_kind_that_is_not_its_own_are_mistakes() -> None:
    meter = Meter(Backend(), app="a")
    with pytest.raises(KeyError):
        meter.add(SERVE_REQUESTS)
    with pytest.raises(TypeError, match="is a counter, not a gauge"):
        meter.set(SERVE_REQUESTS, 1.0, outcome="ok")
    meter.close()


def test_values_that_nobody_takes_do_not_fill_memory() -> None:
    meter = Meter(Backend(), app="a")
    meter.close()
    for _ in range(30_000):
        meter.observe(SERVE_LATENCY, 0.1)
    assert len(meter.__dict__["_values"]) <= 20_000


def test_the_table_is_one_that_prometheus_takes() -> None:
    metrics = all_metrics()
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert re.fullmatch(r"gwp_(client|data|train|serve)_[a-z_]+", metric.name)
        # Ray adds it.
        assert not metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert len(metric.series) == (3 if metric.kind == "histogram" else 1)
        assert metric.help.endswith(".")
        assert not {"robot", "action", "key", "session"} & set(metric.labels)


def test_the_page_of_metrics_is_in_step() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == page(), "run: python -m gwp.metrics > docs/metrics.md"

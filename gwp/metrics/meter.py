"""Counts what happens in a process, and hands it to whoever shows it once a second.

On the path of a request or a step stands a dictionary under a lock, and nothing else. Who shows
the numbers (`ray.util.metrics` in a process of Ray) is handed in: this package knows no Ray.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from gwp.metrics.names import Kind, Metric

EVERY_S = 1.0
"""Seconds between two hand-overs. A gauge that is not set anew goes out: its process has ended."""
_AT_MOST = 20_000
"""Values of histograms that wait for the next hand-over; further ones are not shown."""

log = logging.getLogger(__name__)

_Series = tuple[Metric, tuple[str, ...]]


class Meter:
    """The metrics of one process. All methods may be called from any thread.

    Nothing of it may end what is measured: a backend that fails is logged once, and left alone.
    """

    def __init__(self, backend: Any = None, **labels: str) -> None:
        """backend: has `Counter`, `Gauge` and `Histogram` as `ray.util.metrics` has them; None:
        nothing is counted. labels: values that all metrics share which have such a label
        """
        self._backend = backend
        self._labels = labels
        self._lock = threading.Lock()
        self._counted: defaultdict[_Series, float] = defaultdict(float)
        self._gauges: dict[_Series, float] = {}
        self._values: list[tuple[_Series, float]] = []
        self._shown: dict[Metric, Any] = {}
        self._watched: list[Callable[[], None]] = []
        self._failed = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if backend is not None:
            self._thread = threading.Thread(target=self._work, name="gwp-meter", daemon=True)
            self._thread.start()

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Count `amount` more of a counter."""
        if self._backend is not None and amount > 0:
            series = self._series("counter", metric, labels)
            with self._lock:
                self._counted[series] += amount

    def add_each(self, metric: Metric, amounts: Mapping[str, float]) -> None:
        """Count more of a counter, by the last of its labels."""
        if self._backend is not None:
            rest = self._series("counter", metric, {metric.labels[-1]: ""})[1][:-1]
            with self._lock:
                for last, amount in amounts.items():
                    if amount > 0:
                        self._counted[metric, (*rest, last)] += amount

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """A gauge has this value, until it is set again or the meter is closed."""
        if self._backend is not None:
            series = self._series("gauge", metric, labels)
            with self._lock:
                self._gauges[series] = value

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """One more value of a histogram."""
        if self._backend is not None:
            series = self._series("histogram", metric, labels)
            with self._lock:
                if len(self._values) < _AT_MOST:
                    self._values.append((series, value))

    def watch(self, look: Callable[[], None]) -> None:
        """Have `look` called before each hand-over, by the thread that does it, to set what is
        only known by asking.
        """
        with self._lock:
            self._watched.append(look)

    def flush(self) -> None:
        """Hand over what has come since the last time."""
        if self._backend is None or self._failed:
            return
        try:
            with self._lock:
                watched = list(self._watched)
            for look in watched:
                look()
            with self._lock:
                counted, self._counted = self._counted, defaultdict(float)
                values, self._values = self._values, []
                gauges = dict(self._gauges)
            for series, amount in counted.items():
                self._show(series).inc(amount, self._tags(series))
            for series, value in gauges.items():
                self._show(series).set(value, self._tags(series))
            for series, value in values:
                self._show(series).observe(value, self._tags(series))
        except Exception:
            self._failed = True
            log.exception("metrics are not shown any more")

    def close(self) -> None:
        """Hand over the rest, and end."""
        self._closed.set()
        if self._thread:
            self._thread.join(2 * EVERY_S)

    def _series(self, kind: Kind, metric: Metric, labels: dict[str, str]) -> _Series:
        if metric.kind != kind:
            raise TypeError(f"{metric.name} is a {metric.kind}, not a {kind}")
        own = self._labels
        return metric, tuple(
            labels[name] if name in labels else own[name] for name in metric.labels
        )

    def _tags(self, series: _Series) -> dict[str, str]:
        metric, values = series
        return dict(zip(metric.labels, values, strict=True))

    def _show(self, series: _Series) -> Any:
        metric = series[0]
        shown = self._shown.get(metric)
        if shown is None:
            said: dict[str, Any] = {"description": metric.help, "tag_keys": metric.labels}
            if metric.kind == "histogram":
                said["boundaries"] = list(metric.buckets)
            make = getattr(self._backend, metric.kind.capitalize())
            shown = self._shown[metric] = make(metric.name, **said)
        return shown

    def _work(self) -> None:
        while not self._closed.wait(EVERY_S):
            self.flush()
        self.flush()

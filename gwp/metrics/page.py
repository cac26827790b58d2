"""The page of all metrics, made from their table: `python -m gwp.metrics > docs/metrics.md`."""

from gwp.metrics.names import TABLE, Metric

_HEAD = """\
# Metrics

Written by `python -m gwp.metrics > docs/metrics.md` from `gwp/metrics/names.py`.

Training, decoding and the endpoint tell Ray's agent of their node what they do, once a second. Prometheus
finds and scrapes these agents: one job for a whole cluster
([how](clusters.md#metrics-and-dashboards)). There is no port of ours to open, and where nobody scrapes
nothing is kept.

* Ray adds labels of its own: `SessionName`, `NodeAddress`, `Component` and others.
* A gauge goes out some seconds after its process has ended. A counter begins at 0 with its process;
  `rate` and `increase` know of that. The first seconds of a series are its zero: what happened once shows in
  the value, and not in its rate.
* The `_sum` of a histogram is an estimate: Ray's agent knows buckets only. Its quantiles and `_count` are not.
* Labels have few values: none is the name of a robot, a key or an action. `process` is one process of the
  endpoint, by the first digits of its id; `run` is `run.name`, `app` the `name` of a ServeApp.
"""
_ROW = "| metric | kind | unit | labels | what |\n|---|---|---|---|---|\n"


def page() -> str:
    """The text of docs/metrics.md."""
    parts = [_HEAD]
    for subject, metrics in TABLE.items():
        parts.append(f"\n## {subject}\n\n{_ROW}{''.join(map(_row, metrics))}")
    return "".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    unit = metric.unit or "-"
    return f"| `{metric.exported}` | {metric.kind} | {unit} | {labels} | {metric.help} |\n"

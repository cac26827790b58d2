"""The page of all metrics, made from their table: `python -m gwp.metrics > docs/metrics.md`."""

from gwp.metrics.names import TABLE, Metric

_HEAD = """\
# Metrics

Written by `python -m gwp.metrics > docs/metrics.md` from `gwp/metrics/names.py`.

Training, decoding and the endpoint tell Ray's agent of their node what they do, once a second. Prometheus
scrapes these agents, which Ray writes down for it: one job for a whole cluster, and no port of ours to open.
A request costs some entries in a dictionary; where nobody scrapes, nothing is kept.

```sh
gwp mini start
prometheus --config.file=clusters/prometheus/prometheus.yaml --storage.tsdb.path=runs/prometheus \\
    --web.listen-address=127.0.0.1:9090
```

* `clusters/grafana/` holds three dashboards for Grafana: *Dashboards, New, Import*, then choose the data
  source. They show what Ray's own do not; import those too, from `/tmp/ray/session_latest/metrics/grafana`.
* `clusters/prometheus/alerts.yaml` holds the alerts. [What to do on each](clusters.md#alerts).
* The agents ask for no token and listen on all addresses of their node. Let only Prometheus reach them.

![The dashboard of an endpoint, drawn from the answers of a real Prometheus](pictures/dashboard-serving.png)

![The dashboard of training](pictures/dashboard-training.png)

## Reading them

* Ray adds labels of its own: `SessionName`, `NodeAddress`, `Component` and others.
* A gauge goes out some seconds after its process has ended. A counter begins at 0 with its process;
  `rate` and `increase` know of that. What happened once before the first scrape shows in the value, and not
  in the rate.
* The `_sum` of a histogram is an estimate: Ray's agent knows buckets only. Quantiles are read off the
  buckets, as everywhere; `_count` is exact.
* Labels have few values: none is the name of a robot, a key or an action. `process` is one process of the
  endpoint, by the first digits of its id; `run` is `run.name`, `app` the `name` of a ServeApp.
* Ray hands numbers to its agents every ten seconds (`RAY_metrics_report_interval_ms`). What a process
  counted in the last seconds before it was killed is lost.
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

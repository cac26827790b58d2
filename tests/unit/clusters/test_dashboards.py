"""Dashboards and alerts speak of metrics that there are, and every alert says what to do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from clusters.grafana.dashboard import ALL, FOLDER, rendered
from gwp.metrics.names import all_metrics
from tests.support.paths import ROOT
from tests.unit.docs.test_pages import anchors

# Not ours; the test against a real Prometheus asks them too.
OTHERS = {"ray_object_store_memory", "up"}
WORDS = {
    "sum",
    "max",
    "count",
    "rate",
    "increase",
    "histogram_quantile",
    "time",
    "by",
    "on",
    "group_left",
}
"""Of Prometheus' language."""
PROMETHEUS = ROOT / "clusters" / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
NAMED = {series: metric for metric in all_metrics() for series in metric.series}


def unknown(expr: str) -> set[str]:
    """What an expression names that is neither a metric, nor a label of one it names."""
    bare = re.sub(r'"[^"]*"|\[\w+\]', "", expr)
    words = set(re.findall(r"\b[A-Za-z_]\w*", bare)) - WORDS - OTHERS
    metrics = words & NAMED.keys()
    labels = {label for name in metrics for label in NAMED[name].labels}
    of_others = {"NodeAddress", "Location", "le", "job"}
    return words - metrics - labels - of_others


def expressions() -> Iterator[tuple[str, str]]:
    for dashboard in ALL:
        for panel in dashboard.panels:
            for query in panel.queries:
                yield f"{dashboard.name}: {panel.title}", query.expr
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expr"), expressions())
def test_expressions_name_metrics_and_labels_of_the_table(where: str, expr: str) -> None:
    assert not unknown(expr)


def test_the_check_of_expressions_sees_what_is_none() -> None:
    assert unknown("sum by (run) (rate(ray_gwp_train_steps_total[5m]))") == {
        "ray_gwp_train_steps_total",
        "run",
    }
    assert unknown('ray_gwp_train_loss{robot="x"}') == {"robot"}


@pytest.mark.parametrize("name", rendered())
def test_the_files_of_dashboards_are_in_step(name: str) -> None:
    assert (FOLDER / name).read_text() == rendered()[name], "run: python -m clusters.grafana"


def legends(panel: dict[str, Any]) -> Iterator[tuple[str, set[str]]]:
    for target in panel["targets"]:
        yield target["expr"], set(re.findall(r"{{(\w+)}}", target["legendFormat"]))


@pytest.mark.parametrize("dashboard", ALL, ids=lambda found: found.name)
def test_a_dashboard_is_one_that_grafana_takes(dashboard: Any) -> None:
    found = json.loads(rendered()[f"{dashboard.name}.json"])
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in found["panels"]}
    assert len(places) == len(found["panels"])
    for panel in found["panels"]:
        assert panel["description"].endswith(".")
        for expr, labels in legends(panel):
            # Labels that an aggregation leaves out would be shown empty.
            kept = re.findall(r"by \(([^)]*)\)", expr)
            assert not kept or labels <= {x.strip() for part in kept for x in part.split(",")}
    (choice,) = [v for v in found["templating"]["list"] if v["name"] == dashboard.label]
    assert dashboard.chosen_from.exported in choice["query"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_lines_in_the_docs(rule: dict[str, Any]) -> None:
    assert rule["alert"].lower() in anchors(ROOT / "docs" / "clusters.md")
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]


def test_prometheus_scrapes_what_ray_writes_down() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    # Where Ray puts the addresses of its agents, whatever their ports.
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    for name in config["rule_files"]:
        assert (PROMETHEUS / name).is_file()

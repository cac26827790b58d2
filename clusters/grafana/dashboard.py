"""Dashboards as Grafana reads them: two panels a row, with the data source and a label to choose."""

import json
from pathlib import Path
from typing import Any

from clusters.grafana.data import DATA
from clusters.grafana.panels import Dashboard, Panel
from clusters.grafana.serving import SERVING
from clusters.grafana.training import TRAINING

ALL = (TRAINING, DATA, SERVING)
FOLDER = Path(__file__).parent
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT = 12, 8
# Of dashboards of Grafana 10 and later.
_SCHEMA = 39


def rendered() -> dict[str, str]:
    """File name -> text, of all dashboards."""
    return {f"{found.name}.json": json.dumps(_dashboard(found), indent=1) + "\n" for found in ALL}


def _dashboard(found: Dashboard) -> dict[str, Any]:
    return {
        "uid": f"gwp-{found.name}",
        "title": found.title,
        "tags": ["gwp"],
        "schemaVersion": _SCHEMA,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _choice(found)]},
        "panels": [_panel(i, panel) for i, panel in enumerate(found.panels)],
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(found: Dashboard) -> dict[str, Any]:
    values = f"label_values({found.chosen_from.exported}, {found.label})"
    return {
        "name": found.label,
        "type": "query",
        "datasource": _SOURCE,
        "query": values,
        "definition": values,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(i: int, panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + n),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
        }
        for n, query in enumerate(panel.queries)
    ]
    place = {"x": i % 2 * _WIDTH, "y": i // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
    return {
        "id": i + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.what,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0 if panel.from_zero else None},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        },
        "targets": targets,
    }

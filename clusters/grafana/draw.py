"""The dashboards as pictures, from the answers of a Prometheus: for those who have no Grafana at
hand, and for the docs.

    python -m clusters.grafana.draw --prometheus http://127.0.0.1:9090 --minutes 30 --out pictures
"""

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusters.grafana.dashboard import ALL
from clusters.grafana.panels import Dashboard, Panel
from gwp.errors import GwpError

Ask = Callable[[str, float, float], list[dict[str, Any]]]
"""(expression, begin, end) -> series as Prometheus answers: {"metric", "values"}."""

_COLUMNS = 3
_POINTS = 300
_SCALES = {"FLOPS": (1e9, "GFLOP/s"), "Bps": (1e6, "MB/s"), "bytes": (1e6, "MB")}
"""Unit of a panel -> what it is divided by, and its name then."""
_NAMES = {"s": "s", "percentunit": "share", "reqps": "1/s", "ops": "1/s", "short": ""}


def asking(url: str, step_s: float) -> Ask:
    """Asks the Prometheus at `url`, a point every `step_s` seconds. GwpError when it does not
    answer.
    """

    def ask(expr: str, begin: float, end: float) -> list[dict[str, Any]]:
        query = {"query": expr, "start": begin, "end": end, "step": step_s}
        address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        try:
            # An http address that the caller names.
            with urllib.request.urlopen(address, timeout=30) as reply:  # noqa: S310
                found: list[dict[str, Any]] = json.load(reply)["data"]["result"]
        except (OSError, ValueError, KeyError) as error:
            raise GwpError(
                f"no Prometheus answers at {url} ({error}); give --prometheus"
            ) from error
        return found

    return ask


def draw(dashboard: Dashboard, ask: Ask, begin: float, end: float, file: Path) -> None:
    """Write one dashboard to `file`, with all runs or applications."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(dashboard.panels) / _COLUMNS)
    figure = Figure(figsize=(16, 3.3 * rows), layout="constrained", dpi=80)
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axes in places:
        axes.set_axis_off()
    for axes, panel in zip(figure.axes, dashboard.panels, strict=False):
        axes.set_axis_on()
        _panel(axes, panel, dashboard.label, ask, begin, end)
    figure.suptitle(dashboard.title)
    figure.savefig(file)


def _panel(axes: Any, panel: Panel, label: str, ask: Ask, begin: float, end: float) -> None:
    divisor, unit = _SCALES.get(panel.unit, (1.0, _NAMES.get(panel.unit, "")))
    several = False
    for query in panel.queries:
        for series in ask(query.expr.replace(f"${label}", ".*"), begin, end):
            moments = [float(moment) - begin for moment, _ in series["values"]]
            values = [float(value) / divisor for _, value in series["values"]]
            axes.plot(moments, values, label=_legend(query.legend, series["metric"]), linewidth=1.4)
            several = True
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_ylabel(unit)
    axes.set_xlim(0, end - begin)
    axes.set_xlabel("seconds", fontsize=8)
    axes.grid(alpha=0.3)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if several:
        axes.legend(fontsize=7, loc="best", framealpha=0.6)


def _legend(text: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    # Labels that are empty are left out by Prometheus.
    return re.sub(r"{{\w+}}", "", text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="dashboards as pictures")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=30, help="until now (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("pictures"), metavar="FOLDER")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.time()
    ask = asking(args.prometheus, max(1.0, args.minutes * 60 / _POINTS))
    for dashboard in ALL:
        file = args.out / f"dashboard-{dashboard.name}.png"
        draw(dashboard, ask, end - args.minutes * 60, end, file)
        print(file)


if __name__ == "__main__":
    try:
        main()
    except GwpError as error:
        raise SystemExit(f"error: {error}") from error

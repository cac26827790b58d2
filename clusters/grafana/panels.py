"""What a dashboard is made of, and how its questions are put in Prometheus' language.

`$run` and `$app` are chosen in Grafana.
"""

from dataclasses import dataclass
from typing import Literal

from gwp.metrics import names as m

Unit = Literal["short", "s", "percentunit", "reqps", "Bps", "ops", "FLOPS", "bytes"]
"""Units as Grafana names them."""


@dataclass(frozen=True)
class Query:
    """One question, and how its series are called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. what: a sentence for whoever looks at it; from_zero: its values have no other
    lowest one
    """

    title: str
    unit: Unit
    what: str
    queries: tuple[Query, ...]
    from_zero: bool = True


@dataclass(frozen=True)
class Dashboard:
    """label: the one that is chosen at its top; chosen_from: the metric that has all its values"""

    name: str
    title: str
    label: str
    chosen_from: m.Metric
    panels: tuple[Panel, ...]


OF_RUN = '{run=~"$run"}'
OF_APP = '{app=~"$app"}'


def rate(metric: m.Metric, by: str, chosen: str, part: str = "") -> str:
    """Of a counter, per second, summed over all series that have the same labels `by`."""
    return f"sum by ({by}) (rate({metric.exported}{part}{chosen}[1m]))"


def quantile(share: float, metric: m.Metric, by: str, chosen: str) -> str:
    """Of a histogram, by these labels."""
    return f"histogram_quantile({share}, {rate(metric, f'{by}, le', chosen, '_bucket')})"

"""The page of one closed loop: one HTML file that needs nothing beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.evaluation.report import closed_loop_figure
from pipelines.pages.render import Table, render


def write_closed_loop(
    file: Path,
    policy_id: str,
    where: str,
    results: Mapping[str, Any],
    figures: Mapping[str, Any],
) -> None:
    """The page of one `gwp eval closed-loop`.

    where: the simulator, and how it differs from what was recorded
    results: as `ReportData.closed_loop`; figures: task -> what the command prints
    """
    failures = [line for row in figures.values() for line in row["failed_to_run"]]
    charged = {task: row["charged"] for task, row in figures.items() if "charged" in row}
    page = render(
        "closed_loop.html.j2",
        title="Closed loop",
        policy_id=policy_id,
        where=where,
        failures=failures,
        closed_loop=closed_loop_figure(results),
        charged=_charged_table(charged) if charged else None,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(page)


def _charged_table(charged: Mapping[str, Mapping[str, Any]]) -> Table:
    """task -> `charged` of what the command prints"""
    header = [
        "task",
        "charged, ms",
        "control steps",
        "promised rows",
        "requests",
        "steps",
        "before the first chunk",
        "dry",
        "late answers",
    ]
    rows = []
    for task, row in charged.items():
        counts = ("latency_steps", "delay", "requests", "steps", "steps_waited", "steps_dry")
        numbers = [str(row[name]) for name in (*counts, "late")]
        rows.append([task, f"{row['latency_ms']:.1f}", *numbers])
    return Table(header, rows)

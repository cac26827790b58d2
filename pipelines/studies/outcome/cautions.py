"""What a reader of a study's tables has to know beside the figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.studies.outcome.held_out import told_count

Row = Mapping[str, Any]


def cautions(rows: Sequence[Row], controls: Sequence[Row], compare: Sequence[Row]) -> Iterator[str]:
    """One line each; rows, controls, compare: as in `study.json`."""
    yield from _seeds(rows, compare)
    yield from _charged(rows)
    for row in rows:
        for name, figure in row["judged"].items():
            who = f"{row['arm']} with {told_count(row['demonstrations'])} demonstrations"
            yield from _lost(who, name, figure)
    for control in controls:
        yield from _lost(control["agent"], control["judgement"], control)
    if any(row.get("at_first_checkpoint") for row in compare):
        yield (
            "steps-to-error: some were there at their first checkpoint, and may have been long before: "
            "ask for a smaller error, or more checkpoints."
        )


def _seeds(rows: Sequence[Row], compare: Sequence[Row]) -> Iterator[str]:
    figures = [figure for row in rows for figure in row["judged"].values()]
    if any(figure["seeds"] == 1 for figure in (*figures, *compare)):
        yield (
            "The interval of a single training seed is of its episodes alone: another seed may lie "
            "outside of it."
        )


def _lost(who: str, judgement: str, figure: Row) -> Iterator[str]:
    """Episodes that could not be run."""
    if lost := figure.get("failed_to_run"):
        of = lost + figure["episodes"]
        yield f"{judgement}: {lost} of {of} episodes of {who} could not be run; no figure counts them."


def _charged(rows: Sequence[Row]) -> Iterator[str]:
    """What a chunk cost in simulated time; of `1x` that may differ from day to day."""
    paid: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, figure in row["judged"].items():
            if any(figure.get("charged_ms", ())):
                paid.setdefault(name, {}).setdefault(row["arm"], []).extend(figure["charged_ms"])
    for name, arms in paid.items():
        told = ", ".join(f"{arm} {_span(times)} ms" for arm, times in arms.items())
        yield f"{name} charges for a chunk: {told}."


def _span(times: Sequence[float]) -> str:
    low, high = f"{min(times):g}", f"{max(times):g}"
    return low if low == high else f"{low} to {high}"

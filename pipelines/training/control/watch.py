"""Progress of a running stage, read from its run folder, for people and for the demo."""

import json
import re
from typing import Any

from gwp import storage
from gwp.errors import MissingError
from pipelines.training.control.journal import BEAT_S, STEPPING

# A phase is shown when it lasts longer than steps of small models do.
_LONG_S = 5.0
# Without any report for so long, either storage takes none or all workers have gone.
_QUIET_S = 3 * BEAT_S
_NAME = re.compile(r"rank-\d+\.json")
_FIGURES = ("loss", "loss_action", "loss_video", "attempt")
_MEASURED = {
    "speed/samples_per_s": "samples_per_s",
    "speed/mfu": "mfu",
    "data_wait_share": "data_bound",
}
"""Figures of a report, and how lines call them."""


def worker_progress(run: str) -> list[dict[str, Any]]:
    """Newest report of each rank of the newest start of the workers, by rank: step, phase, pid,
    attempt, time, skipped, losses. Empty before the first one.
    """
    folder = storage.join(run, "progress")
    reports = [
        report
        for name in storage.list_files(folder)
        if _NAME.fullmatch(name) and (report := _read(storage.join(folder, name)))
    ]
    reports.sort(key=lambda report: report.get("rank", 0))
    if not reports:
        return []
    # Rank 0 is there at every start. What others wrote at an earlier one stands still.
    newest = reports[0].get("start")
    return [report for report in reports if report.get("start") == newest]


def forget_progress(run: str) -> None:
    """Remove what an earlier start reported: its processes are no more."""
    storage.remove_tree(storage.join(run, "progress"))


def resumptions(run: str) -> list[dict[str, Any]]:
    """Every restart from a checkpoint, oldest first: step, attempt, world_size, time."""
    return _events(run, "resumed")


def failures(run: str) -> list[dict[str, Any]]:
    """What made the workers start again, oldest first: kind, text, time."""
    return _events(run, "failed")


def _events(run: str, kind: str) -> list[dict[str, Any]]:
    folder = storage.join(run, "events")
    names = [name for name in storage.list_files(folder) if name.startswith(kind)]
    found = [_read(storage.join(folder, name)) for name in names]
    return sorted(filter(None, found), key=lambda e: e["time"])


def _read(uri: str) -> dict[str, Any] | None:
    """A note; None when it has gone since, or is half written."""
    try:
        note = json.loads(storage.read_bytes(uri))
    except (MissingError, ValueError):
        return None
    return note if isinstance(note, dict) else None


class View:
    """What a display shows of a run; `look` is given the newest reports each time.

    Clocks of machines need not agree: for how long nothing has come is measured here.
    """

    def __init__(self, earlier: list[dict[str, Any]]) -> None:
        """earlier: the reports that were there before the workers were started"""
        self._earlier = {report.get("start") for report in earlier}
        self._last: list[dict[str, Any]] = []
        self._changed = 0.0

    def look(self, reports: list[dict[str, Any]], now: float) -> tuple[int, dict[str, Any]] | None:
        """Step of the slowest rank, and the figures beside it; None before the first report.

        now: seconds on any steady clock
        """
        if not reports or reports[0].get("start") in self._earlier:
            return None
        if reports != self._last:
            self._last, self._changed = reports, now
        quiet = now - self._changed
        figures = {name: reports[0][name] for name in _FIGURES if name in reports[0]}
        measured = reports[0].get("figures", {})
        figures |= {word: measured[name] for name, word in _MEASURED.items() if name in measured}
        slowest = min(reports, key=lambda report: report["step"])
        lasts = slowest.get("phase_s", 0.0) + quiet
        phase = slowest.get("phase", STEPPING)
        if quiet > _QUIET_S:
            # Nobody knows what they do.
            figures["phase"] = f"no report for {quiet:.0f} s"
        elif lasts >= _LONG_S or phase != STEPPING:
            figures["phase"] = f"{phase} for {lasts:.0f} s"
        return slowest["step"], figures

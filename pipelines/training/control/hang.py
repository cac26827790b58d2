"""Which rank stands still, by the reports of all.

One rank that no longer steps holds up all of them: the others wait for it in a collective. Its
report stands still with it when its process does; else it says in which phase it is, and since
when. Reports of all that stand still mean the same of all, unless storage takes none: whoever asks
here has to know that.
"""

from dataclasses import dataclass
from typing import Any

from pipelines.training.control.journal import ENDED, SAVING, STEPPING, beat_s

# Ranks wait for each other in these.
_TOGETHER = (STEPPING, SAVING)
# Reports that may be missed by a rank that lives.
_MISSED = 3


@dataclass
class _Seen:
    report: dict[str, Any]
    at: float
    """When it came, on our clock."""


@dataclass(frozen=True)
class Standing:
    """Ranks that others may be waiting for."""

    reports: list[dict[str, Any]]
    text: str
    """How long each has been in its phase, in words."""


class Clock:
    """For how long each rank has been in its phase, by the reports that are given to it.

    Clocks of machines need not agree: what passes between two reports is measured here.
    """

    def __init__(self, hang_s: float) -> None:
        self._silence = _MISSED * beat_s(hang_s)
        self._seen: dict[int, _Seen] = {}

    def see(self, reports: list[dict[str, Any]], now: float) -> None:
        """Take the newest reports. now: seconds on any steady clock, here and below"""
        for report in reports:
            before = self._seen.get(report["rank"])
            if before is None or before.report != report:
                self._seen[report["rank"]] = _Seen(report, now)
        ranks = {report["rank"] for report in reports if report["phase"] != ENDED}
        # A start of the workers may have fewer of them.
        self._seen = {rank: seen for rank, seen in self._seen.items() if rank in ranks}

    def all_silent(self, now: float) -> bool:
        """Whether no rank gives a sign of life: all stand still, storage does not take their
        notes, or all have gone.
        """
        return bool(self._seen) and self._silent(now) == set(self._seen)

    def excuse(self, now: float) -> None:
        """Count no silence before `now`: nothing could be heard."""
        for seen in self._seen.values():
            seen.at = now

    def standing(self, now: float, limit: float) -> Standing | None:
        """The ranks that have been in one phase for `limit` seconds or more, without those that
        only wait for them; None when there is none.
        """
        silent = self._silent(now)
        late = {rank for rank in self._seen if self._lasts(rank, now) >= limit}
        apart = {r for r in late if self._seen[r].report["phase"] not in _TOGETHER}
        if not late:
            return None
        # Those that are silent too, if not for as long, would not end by themselves either. Who
        # lives and waits in a collective may be late a moment before the silent one it waits for.
        blamed = sorted((late & silent and silent) or apart or silent or late)
        found = [self._seen[rank].report for rank in blamed]
        text = "; ".join(_told(report, self._lasts(report["rank"], now)) for report in found)
        return Standing(found, text)

    def _silent(self, now: float) -> set[int]:
        return {rank for rank, seen in self._seen.items() if now - seen.at > self._silence}

    def _lasts(self, rank: int, now: float) -> float:
        seen = self._seen[rank]
        return float(seen.report["phase_s"]) + now - seen.at


def _told(report: dict[str, Any], seconds: float) -> str:
    return (
        f"rank {report['rank']} ({report['host']}, pid {report['pid']}) has been in "
        f"'{report['phase']}' since step {report['step']} for {seconds:.0f} s"
    )

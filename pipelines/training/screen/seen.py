"""What is known of a stage that is being trained, by the newest reports of its ranks."""

from collections import deque
from collections.abc import Mapping
from typing import Any

# Seconds whose steps tell how long the rest will take.
_PACE_S = 120.0
_LOSSES = 10_000
_WARNINGS = 3
_FIRST, _TOTAL = "start/", "start/total"


class Seen:
    """Of one stage; whoever follows it feeds it.

    step:       of the slowest rank
    losses:     (step, loss) as they came, oldest first
    figures:    the newest, by the names of `measure.account`
    phase:      what is waited for, in words; "" while steps come
    report:     the newest of rank 0
    validation: (step, loss) as they came
    warnings:   (moment, text), the newest last
    """

    def __init__(self, stage: str, run: str, total: int, every: int, now: float) -> None:
        """total: steps of the run; every: between checkpoints; now: seconds on the clock of all
        moments here
        """
        self.stage, self.run, self.total, self.every = stage, run, total, every
        self.began = now
        self.step = 0
        self.workers = 0
        self.phase = "starting"
        self.losses: deque[tuple[int, float]] = deque(maxlen=_LOSSES)
        self.validation: deque[tuple[int, float]] = deque(maxlen=_LOSSES)
        self.report: Mapping[str, Any] = {}
        self.warnings: deque[tuple[float, str]] = deque(maxlen=_WARNINGS)
        self._paces: deque[tuple[float, int]] = deque()
        # Of the newest checkpoint, its step and since when it is known here.
        self._checkpoint: tuple[int, float] | None = None

    @property
    def figures(self) -> Mapping[str, float]:
        found: Mapping[str, float] = self.report.get("figures", {})
        return found

    @property
    def started(self) -> dict[str, float]:
        """Seconds of the parts of this start, with their sum; empty before its first step."""
        told: Mapping[str, float] = self.report.get("started", {})
        return {name.removeprefix(_FIRST): seconds for name, seconds in told.items()}

    def look(self, reports: list[dict[str, Any]], step: int, phase: str, now: float) -> None:
        """The newest reports. step, phase: what `View.look` makes of them"""
        self.phase, self.workers = phase, len(reports)
        newest = reports[0]
        if newest.get("start") != self.report.get("start"):
            # Another start: its pace is its own, and it may be behind the one before.
            self._paces.clear()
        self.report = newest
        self.step = step
        _append(self.losses, newest.get("logged", 0), newest.get("loss"))
        judged = newest.get("validation") or {}
        _append(self.validation, judged.get("step", 0), judged.get("loss"))
        saved = newest.get("checkpoint")
        if saved and (self._checkpoint is None or self._checkpoint[0] != saved["step"]):
            # Clocks of machines need not agree.
            self._checkpoint = saved["step"], now
        if not self._paces or step != self._paces[-1][1]:
            self._paces.append((now, step))
        while len(self._paces) > 2 and now - self._paces[1][0] > _PACE_S:
            self._paces.popleft()

    def judged(self, step: int, loss: float) -> None:
        """A checkpoint was judged beside the steps, maybe one of an earlier command."""
        curve = dict(self.validation) | {step: loss}
        self.validation = deque(sorted(curve.items()), maxlen=_LOSSES)

    def warn(self, text: str, now: float) -> None:
        self.warnings.append((now, text))

    def checkpoint(self, now: float) -> tuple[int, float] | None:
        """Step of the newest whole checkpoint and its age in seconds; None before the first that
        came while it was looked.
        """
        return self._checkpoint and (self._checkpoint[0], now - self._checkpoint[1])

    def left(self) -> float | None:
        """Seconds until the last step, at the pace of the last two minutes; None: not known."""
        if len(self._paces) < 2:
            return None
        (begin, first), (end, last) = self._paces[0], self._paces[-1]
        if last <= first:
            return None
        return (self.total - self.step) * (end - begin) / (last - first)


def _append(curve: deque[tuple[int, float]], step: int, value: float | None) -> None:
    if value is None:
        return
    # Steps are taken again behind a restart.
    while curve and curve[-1][0] >= step:
        curve.pop()
    curve.append((step, value))


def span(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`."""
    whole = max(0, round(seconds))
    for unit, part, length, small in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if whole >= length:
            rest = whole % length // small
            return f"{whole // length} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"

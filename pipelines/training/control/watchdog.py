"""What a driver does about its workers while they train: it tells what made them start again, and
ends those that stand still, so that Ray Train starts them again.

It is the driver's, because it has the terminal and lives as long as the run.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any

from gwp import storage
from gwp.errors import GwpError
from pipelines.console import warn
from pipelines.training.checkpoint.retention import remove_torn
from pipelines.training.control.hang import Clock
from pipelines.training.control.processes import Process, end, lives
from pipelines.training.control.watch import failures, forget_progress, worker_progress

# A part of the limit after which a phase is told.
_WARNED = 0.1
_POLL_S = 5.0
# Storage that takes longer for a note of ours may take none of the workers'.
_PROMPT_S = 5.0
# Seconds that Ray may take to end the workers of a driver that was killed.
_LEFT_S = 60.0
# Machines that are asked at a time.
_PARALLEL = 16

logger = logging.getLogger(__name__)


def clear_earlier(run: str) -> None:
    """Have the workers of an earlier start gone, and forget their reports and the checkpoints
    that they did not finish. A driver that was killed has left them, and Ray ends them a little
    later: they must write no more.
    """
    all_gone = True
    found = list(filter(None, map(Process.of, worker_progress(run))))
    if found:
        with ThreadPoolExecutor(_PARALLEL) as pool:
            gone = list(pool.map(end, found, repeat(_LEFT_S)))
        all_gone = all(gone)
        for process, ended in zip(found, gone, strict=True):
            if not ended:
                logger.warning("a worker of an earlier start (%s) was not seen to end", process)
    forget_progress(run)
    if all_gone:
        remove_torn(run)


def at_work(run: str) -> bool:
    """Whether the workers of this start are there; False while they wait for room, or have not
    come so far as to report.
    """
    reports = worker_progress(run)
    # Rank 0 is there at every start, and none of them is without it.
    first = Process.of(reports[0]) if reports else None
    return first is not None and lives(first)


class Watchdog:
    """Reads the notes of a run until it is closed."""

    def __init__(self, run: str, hang_s: float) -> None:
        self._run = run
        self._limit = hang_s
        self._clock = Clock(hang_s)
        self._over = threading.Event()
        # Start of the workers and phase that were warned of; starts of which ranks were ended,
        # with which ones, in words.
        self._warned: set[tuple[str, str]] = set()
        self._ended: dict[str, str] = {}
        # Start of the workers none of which was there any more.
        self._gone = ""
        # Whether what was ended has not been seen to fail yet.
        self._expected = False
        # Failures by their time.
        self._known: set[float] | None = None
        threading.Thread(target=self._work, name="gwp-watchdog", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def hung(self) -> str | None:
        """The ranks that it ended at the newest start of the workers, in words; None when there
        are none, or storage does not say.
        """
        try:
            reports = worker_progress(self._run)
        except (OSError, GwpError):
            return None
        return self._ended.get(reports[0].get("start", "")) if reports else None

    def _work(self) -> None:
        every = min(_POLL_S, self._limit * _WARNED / 2)
        while not self._over.wait(every):
            try:
                self.look(time.monotonic())
            except (OSError, GwpError) as error:
                self._clock.excuse(time.monotonic())
                logger.warning("cannot look after the workers: %s", error)

    def look(self, now: float) -> None:
        """Look once; now: seconds on a steady clock."""
        self._tell_failures()
        reports = [report for report in worker_progress(self._run) if "phase_s" in report]
        start = reports[0]["start"] if reports else ""
        if not reports or start in self._ended or start == self._gone:
            return
        self._clock.see(reports, now)
        if self._clock.all_silent(now):
            if not self._takes_notes():
                # Nor theirs, and they may be at work.
                self._clock.excuse(time.monotonic())
                return
            if not any(map(lives, filter(None, map(Process.of, reports)))):
                self._gone = start
                warn("no worker is there any more; they start again when machines have room")
                return
        found = self._clock.standing(now, self._limit * _WARNED)
        # Once for each phase: where every step is long, one warning is enough.
        if found and (start, found.reports[0]["phase"]) not in self._warned:
            self._warned.add((start, found.reports[0]["phase"]))
            warn(f"{found.text}; at {self._limit:g} s (cluster.hang_s) the workers start again")
        found = self._clock.standing(now, self._limit)
        if found:
            self._ended[start] = found.text
            self._expected = True
            warn(f"{found.text}: ended; the workers start again from the last checkpoint")
            self._end(found.reports)

    def _takes_notes(self) -> bool:
        """Whether storage takes a note beside those of the workers."""
        begin = time.monotonic()
        uri = storage.join(self._run, "progress", "watchdog.json")
        storage.write_bytes(uri, json.dumps({"time": time.time()}).encode())
        return time.monotonic() - begin < _PROMPT_S

    def _end(self, reports: list[dict[str, Any]]) -> None:
        for report in reports:
            process = Process.of(report)
            if process is None or not end(process):
                # The others give up in their collective, and Ray Train when it asks in vain.
                logger.warning("rank %s was not ended", report["rank"])

    def _tell_failures(self) -> None:
        found = {failure["time"]: failure for failure in failures(self._run)}
        # What is there when it begins is of an earlier start: workers take longer to fail.
        if self._known is not None:
            for moment in sorted(set(found) - self._known):
                # What it ended itself is told already.
                if not self._expected:
                    warn(found[moment]["text"])
                self._expected = False
        self._known = set(found)


@contextmanager
def watchdog(run: str, hang_s: float) -> Iterator[Watchdog]:
    """Look after the workers while the block runs them."""
    watch = Watchdog(run, hang_s)
    try:
        yield watch
    finally:
        watch.close()

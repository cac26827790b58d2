"""What the terminal shows of a job elsewhere: the same as if it ran here."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from clusters.jobs.jobs import Job, Jobs, still_there
from pipelines.console import Progress, event, progress

# Of the log of a job that ran before, shown when somebody joins it.
_EARLIER = 40
_LONGEST = 4000
"""Characters of a line of others that are shown."""
_RESULT = "finished"
_OWN = {"event", "task", "done", "total", "elapsed_s"}


def follow(jobs: Jobs, job: Job, joined: bool = False) -> tuple[Job, list[dict[str, Any]]]:
    """Show what a job prints until it is over; the job then, and the results of its stages.

    joined: of what it has printed until now, only the end is shown
    """
    known = 0
    with leaving(job), _Lines() as lines:
        if joined:
            log = jobs.log(job)
            known = len(log)
            earlier = log.split("\n")
            for line in earlier[:-_EARLIER]:
                lines.note(line)
            lines.take("\n".join(earlier[-_EARLIER:]))
        for piece in jobs.follow(job, known):
            lines.take(piece)
    return jobs.get(job.id), lines.results


@contextmanager
def leaving(job: Job) -> Iterator[None]:
    """Whoever leaves by Ctrl-C is told that the job goes on, and how to come back."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(still_there(job.id)) from stop


def results_of(log: str) -> list[dict[str, Any]]:
    """The results of the stages that a job has finished, by what it printed."""
    lines = _Lines()
    for line in log.splitlines():
        lines.note(line)
    return lines.results


def last_progress(log: str) -> dict[str, Any] | None:
    """How far a job was when it last said so."""
    for line in reversed(log.splitlines()):
        found = _event(line)
        if found and found["event"] == "progress":
            return found
    return None


class _Lines:
    """Pieces of a log as whole lines: events and progress of ours as the console shows them, what
    others print as it is on a terminal, and as events elsewhere.

    results: fields of the events that tell a finished stage
    """

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        # Pieces of a line whose end has not come. Joined then: a line may have megabytes.
        self._begun: list[str] = []
        self._bar: Progress | None = None
        self._task = ""
        self._bars = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if any(self._begun):
            self._show("".join(self._begun))
        self._bars.close()

    def take(self, piece: str) -> None:
        """The next characters of the log."""
        first, *more = piece.split("\n")
        self._begun.append(first)
        for line in more:
            self._show("".join(self._begun))
            self._begun = [line]

    def note(self, line: str) -> dict[str, Any] | None:
        """The event of a line, its result kept; None when it is none."""
        found = _event(line)
        if found and found["event"] == _RESULT:
            self.results.append({k: v for k, v in found.items() if k != "event"})
        return found

    def _show(self, line: str) -> None:
        found = self.note(line)
        if found is None:
            self._plain(line)
        elif found["event"] == "progress":
            self._progress(found)
        else:
            event(found["event"], **{k: v for k, v in found.items() if k != "event"})

    def _plain(self, line: str) -> None:
        if not line.strip():
            return
        if len(line) > _LONGEST:
            line = f"{line[:_LONGEST]}... ({len(line)} characters)"
        if sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
        else:
            event("log", text=line)

    def _progress(self, found: dict[str, Any]) -> None:
        if self._bar is None or found["task"] != self._task:
            self._end_bar()
            self._task = found["task"]
            self._bar = self._bars.enter_context(progress(self._task, found["total"]))
        self._bar.update(found["done"], **{k: v for k, v in found.items() if k not in _OWN})

    def _end_bar(self) -> None:
        # What is printed while it is there comes above it.
        self._bars.close()
        self._bar = None


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"event"'):
        return None
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    if found["event"] == "progress" and not {"task", "done", "total"} <= found.keys():
        return None
    return found

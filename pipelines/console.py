"""What long work shows: a progress bar on a terminal, JSON lines anywhere else. Always on
stderr: stdout is for results.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_LINE_EVERY_S = 2.0


class Progress(Protocol):
    """Tells how far the work is."""

    def update(self, done: float, **fields: Any) -> None:
        """`done` of the total so far, with the newest figures (loss, rate) beside it."""


def _json_line(kind: str, **fields: Any) -> None:
    # Paths and numbers of numpy as text. Flushed, for a pipe would hold lines back.
    print(json.dumps({"event": kind, **fields}, default=str), file=sys.stderr, flush=True)


def _shown(fields: dict[str, Any]) -> str:
    return "  ".join(f"{key} {_text(value)}" for key, value in fields.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_listeners: list[Callable[[str, dict[str, Any]], None]] = []


@contextmanager
def heard(listener: Callable[[str, dict[str, Any]], None]) -> Iterator[None]:
    """Have `listener` told of every event, too, while the block runs: its name and fields."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def event(name: str, **fields: Any) -> None:
    """One thing that happened: a line for people on a terminal, a JSON object elsewhere."""
    for listener in _listeners:
        listener(name, fields)
    if sys.stderr.isatty():
        print(f"{name}  {_shown(fields)}".rstrip(), file=sys.stderr, flush=True)
    else:
        _json_line(name, **fields)


def warn(text: str) -> None:
    """Something that looks wrong and stops nothing."""
    event("warning", text=text)


class _Lines:
    """Progress as JSON lines: at most one every two seconds, and always the last."""

    def __init__(self, task: str, total: float | None) -> None:
        self.task = task
        self.total = total
        self.start = time.monotonic()
        # So that the first update is written at once.
        self.written = -_LINE_EVERY_S
        self.latest: dict[str, Any] | None = None

    def update(self, done: float, **fields: Any) -> None:
        elapsed = time.monotonic() - self.start
        self.latest = {
            "task": self.task,
            "done": done,
            "total": self.total,
            "elapsed_s": round(elapsed, 2),
            **fields,
        }
        if elapsed - self.written >= _LINE_EVERY_S:
            self.written = elapsed
            self.flush()

    def flush(self) -> None:
        # Once for each update, also when the end comes right behind it.
        if self.latest is not None:
            _json_line("progress", **self.latest)
            self.latest = None


@contextmanager
def progress(task: str, total: float | None = None, plain: bool = False) -> Iterator[Progress]:
    """Show the progress of `task` while the block runs. `total` None: the end is not known;
    plain: lines on a terminal, too.
    """
    if plain or not sys.stderr.isatty():
        lines = _Lines(task, total)
        try:
            yield lines
        finally:
            # The last update may have come too early to be written.
            lines.flush()
        return
    # Only for terminals: it belongs to an extra, and takes its time to import.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        handle = bar.add_task(task, total=total, figures="")

        class _Bar:
            """Progress as a bar, with the newest figures behind it."""

            def update(self, done: float, **fields: Any) -> None:
                bar.update(handle, completed=done, figures=_shown(fields))

        yield _Bar()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as aligned text with a header line."""
    if not rows:
        return ""
    # Header and rows alike, so that a column is as wide as the widest of both.
    cells = [list(rows[0]), *(list(map(_text, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)

"""Shows a stage while it is trained: one picture on a terminal, JSON lines anywhere else."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gwp.errors import GwpError
from pipelines.console import event, heard, progress
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob
from pipelines.training.control.watch import View, worker_progress
from pipelines.training.screen.seen import Seen

log = logging.getLogger(__name__)

_POLL_S = 1.0
_PER_S = 2


@contextmanager
def shown(job: TrainJob, plain: bool = False) -> Iterator[Seen]:
    """Show the stage's progress while the block runs it; what is known of it then. plain: lines on
    a terminal too
    """
    seen = Seen(job.stage, job.run.name, job.run.steps, job.run.checkpoint_every, time.monotonic())
    lock = threading.Lock()
    with ExitStack() as stack:
        if sys.stderr.isatty() and not plain:
            stack.enter_context(_picture(seen, lock))
            bar = None
        else:
            bar = stack.enter_context(
                progress(f"{job.stage}: {job.run.name}", total=job.run.steps, plain=plain)
            )
        stack.enter_context(_followed(run_uri(job), seen, lock, bar))
        yield seen


@contextmanager
def _picture(seen: Seen, lock: threading.Lock) -> Iterator[None]:
    """What is printed meanwhile comes above it. lock: of `seen`"""
    # Only for terminals: it belongs to an extra, and takes its time to import.
    from rich.console import Console
    from rich.live import Live

    from pipelines.training.screen.panel import panel

    newest: Any = ""

    def renderable() -> Any:
        nonlocal newest
        try:
            with lock:
                newest = panel(seen, time.monotonic())
        except Exception:
            # Whatever a report of another version lacks: a display ends nothing.
            log.debug("no new picture", exc_info=True)
        return newest

    def note(name: str, fields: dict[str, Any]) -> None:
        if name == "warning":
            with lock:
                seen.warn(str(fields.get("text", "")), time.monotonic())
        if name == "validation" and fields.get("loss") is not None:
            with lock:
                seen.judged(fields["step"], fields["loss"])

    with (
        heard(note),
        Live(console=Console(stderr=True), get_renderable=renderable, refresh_per_second=_PER_S),
    ):
        yield


@contextmanager
def _followed(run: str, seen: Seen, lock: threading.Lock, bar: Any) -> Iterator[None]:
    """Read the reports of a run by a thread. lock: of `seen`; bar: told of them, if there is one"""
    stop = threading.Event()

    def reports() -> list[dict[str, Any]]:
        try:
            return worker_progress(run)
        except (OSError, GwpError):
            # A display that storage does not serve shows the last it had; training is told
            # of it by its own calls.
            return []

    # Before workers are started.
    view = View(reports())

    def follow() -> None:
        told = None
        while True:
            over = stop.wait(_POLL_S)
            newest = reports()
            found = view.look(newest, time.monotonic())
            if found:
                step, figures = found
                with lock:
                    seen.look(newest, step, figures.get("phase", ""), time.monotonic())
                if bar:
                    bar.update(step, **figures)
                if seen.started and told != (told := seen.report.get("start")):
                    event("started", **{f"{n}_s": round(s, 2) for n, s in seen.started.items()})
            if over:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # Reading may hang on slow storage; a display must not hold up the end for ever.
        thread.join(timeout=30)

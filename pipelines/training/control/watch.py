"""Progress of a running stage, read from its run folder, for people and for the demo."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gwp import storage
from gwp.errors import GwpError
from pipelines.console import progress
from pipelines.jobs.resolve import run_uri
from pipelines.jobs.train_job import TrainJob

_POLL_S = 1.0


def worker_progress(run: str) -> list[dict[str, Any]]:
    """Newest report of each rank: step, pid, attempt, time, skipped, losses. Empty before the
    first step.
    """
    folder = storage.join(run, "progress")
    # By name, so that rank 0 comes first.
    return [
        json.loads(storage.read_bytes(storage.join(folder, name)))
        for name in sorted(storage.list_files(folder))
    ]


def resumptions(run: str) -> list[dict[str, Any]]:
    """Every restart from a checkpoint, oldest first: step, attempt, world_size, time."""
    folder = storage.join(run, "events")
    events = [
        json.loads(storage.read_bytes(storage.join(folder, name)))
        for name in storage.list_files(folder)
    ]
    return sorted(events, key=lambda e: e["time"])


@contextmanager
def shown(job: TrainJob) -> Iterator[None]:
    """Show the stage's progress while the block runs it."""
    stop = threading.Event()
    run = run_uri(job)

    def follow(update: Any) -> None:
        while not stop.wait(_POLL_S):
            try:
                reports = worker_progress(run)
            except (OSError, GwpError):
                # A display that storage does not serve shows the last it had; training is told
                # of it by its own calls.
                continue
            # A rank that an earlier, larger attempt had would hold the bar at its last step.
            newest = max((r["attempt"] for r in reports), default=0)
            reports = [r for r in reports if r["attempt"] == newest]
            if reports:
                first = reports[0]
                figures = {
                    k: first[k]
                    for k in ("loss", "loss_action", "loss_video", "attempt")
                    if k in first
                }
                # The run is as far as its slowest rank.
                update(min(r["step"] for r in reports), **figures)

    with progress(f"{job.stage}: {job.run.name}", total=job.run.steps) as bar:
        thread = threading.Thread(target=follow, args=(bar.update,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            # Reading may hang on slow storage; a display must not hold up the end for ever.
            thread.join(timeout=30)

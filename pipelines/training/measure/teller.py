"""What a rank tells of its run, and to whom: its journal, which displays read; Prometheus; and from
rank 0 on MLflow and the table of checkpoints.
"""

import logging
import time
from collections.abc import Mapping

import numpy as np

from pipelines.tracking.artefacts import log_picture, log_table
from pipelines.tracking.curves import STEP_TAG
from pipelines.tracking.live import LiveRun
from pipelines.tracking.registry import BEST_TAG, CHECKPOINT_TAG
from pipelines.tracking.run_log import RunLog
from pipelines.training.checkpoint.checkpoints import CheckpointManifest, find_committed
from pipelines.training.checkpoint.retention import best
from pipelines.training.checkpoint.table import FILE, as_columns, updated
from pipelines.training.control.journal import Journal

PICTURES = "imagined"
"""Name of the pictures in MLflow."""

logger = logging.getLogger(__name__)


class Teller:
    """Of one rank; the training loop makes it."""

    def __init__(
        self,
        run_uri: str,
        keep: int,
        attempt: int,
        journal: Journal,
        live: LiveRun,
        log: RunLog | None,
        notes_s: float,
    ) -> None:
        """keep: of `run`; notes_s: how long a checkpoint waits for notes, seconds"""
        self._run_uri, self._keep, self._attempt = run_uri, keep, attempt
        self._journal, self._live, self._log = journal, live, log
        self._notes_s = notes_s
        # Of the checkpoint that became whole last.
        self._took: float | None = None

    def uploaded(self, step: int) -> None:
        """Have what was noted until now where it belongs, before the checkpoint at `step` becomes
        whole: what a committed step measured must not be lost with a killed worker. Called beside
        the steps.
        """
        if self._log:
            self._log.cover(step, self._attempt)
        self._journal.flush(self._notes_s)

    def committed(self, uri: str, step: int) -> None:
        """A checkpoint is whole now. Called beside the steps, on rank 0."""
        self._took = self._live.committed(step)
        self._journal.add(checkpoint={"step": step, "time": time.time()})
        if self._log:
            self._log.set_tags({CHECKPOINT_TAG: uri, STEP_TAG: str(step)})

    def pruned(self, manifest: CheckpointManifest) -> None:
        """Older checkpoints have gone for this one. Called beside the steps, on rank 0."""
        try:
            rows = updated(self._run_uri, self._keep, manifest, self._took)
            lowest = best(find_committed(self._run_uri))
        except Exception:
            # It is for people alone; the checkpoint is whole.
            logger.warning("the table of checkpoints is not written", exc_info=True)
            return
        if self._log:
            table = as_columns(rows)
            self._log.send(FILE, lambda mlflow, run: log_table(mlflow, run, FILE, table))
            if lowest:
                self._log.set_tags({BEST_TAG: lowest})

    def started(self, step: int, parts: Mapping[str, float]) -> None:
        """The first step is done; of rank 0. parts: of the start, seconds"""
        self._journal.add(started=dict(parts))
        self._live.started(parts)
        if self._log:
            self._log.log_metrics(step, parts)

    def progress(
        self,
        step: int,
        skipped: int,
        losses: Mapping[str, float],
        figures: Mapping[str, float],
        phases: Mapping[str, float],
        extra: Mapping[str, float],
    ) -> None:
        """What came since the last time. skipped: samples of all ranks that were broken; losses:
        of the newest step; figures: measured; phases: seconds; extra: for MLflow alone
        """
        self._journal.progress(step, skipped, losses, figures)
        self._live.losses(losses)
        self._live.figures(figures)
        self._live.phases(phases)
        if self._log and losses:
            self._log.log_metrics(step, {**losses, **extra, **figures})

    def judged(
        self,
        step: int,
        losses: Mapping[str, float],
        figures: Mapping[str, float],
        picture: np.ndarray | None,
    ) -> None:
        """Losses and figures of validation; picture: real frames above imagined ones"""
        self._live.losses(losses, validation=True)
        if not losses:
            return
        self._journal.add(validation={"step": step, "loss": losses["loss"]})
        if self._log:
            self._log.log_metrics(step, validation_figures(losses, figures))
        if self._log and picture is not None:
            self._log.send(
                f"{PICTURES} {step}",
                lambda mlflow, run: log_picture(mlflow, run, PICTURES, step, picture),
            )


def validation_figures(
    losses: Mapping[str, float], figures: Mapping[str, float]
) -> dict[str, float]:
    """As MLflow has them, by name; nothing without losses: no sample could be read."""
    if not losses:
        return {}
    told = {f"validation_{name}": value for name, value in losses.items()}
    return told | {f"validation/{name}": value for name, value in figures.items()}

"""What a verdict is told to: the checkpoint's folder, the figures of the run, MLflow, Prometheus and
whoever looks at the run. Of the driver.
"""

import time

from gwp import storage
from pipelines.console import event
from pipelines.tracking.artefacts import log_picture
from pipelines.tracking.curves import add_verdict
from pipelines.tracking.live import losses_told, meter_of
from pipelines.tracking.registry import BEST_TAG
from pipelines.tracking.run_log import RunLog
from pipelines.tracking.runs import tracking_uri
from pipelines.training.checkpoint.checkpoints import MANIFEST, find_committed, place_of
from pipelines.training.checkpoint.references import referenced
from pipelines.training.checkpoint.retention import best, prune
from pipelines.training.checkpoint.table import judged
from pipelines.training.checkpoint.verdict import write_verdict
from pipelines.training.judge.validator import Verdict
from pipelines.training.measure.teller import PICTURES, validation_figures
from pipelines.training.prepare import PreparedRun
from pipelines.training.tracked import RunRecord


class Told:
    """Tells the verdicts of one run. MLflow is told by a thread; nobody waits for it."""

    def __init__(self, prepared: PreparedRun, record: RunRecord) -> None:
        self._run, self._keep = prepared.uri, prepared.job.run.keep
        self._record = record
        self._meter = meter_of(prepared.job.run.name)
        self._log: RunLog | None = None

    def tell(self, name: str, verdict: Verdict) -> None:
        """Of the checkpoint folder of this name. Raises what storage does, and may be called again
        then.
        """
        uri = place_of(self._run, name)
        if not storage.exists(storage.join(uri, MANIFEST)):
            return
        told = validation_figures(verdict.losses, verdict.figures)
        now = time.time_ns() // 1_000_000
        if told:
            add_verdict(self._run, [(key, value, now, verdict.step) for key, value in told.items()])
        loss = verdict.losses.get("loss")
        # Last in storage: with it the checkpoint is judged.
        write_verdict(uri, loss)
        lowest = best(find_committed(self._run))
        losses_told(self._meter, verdict.losses, validation=True)
        event("validation", step=verdict.step, loss=loss, seconds=round(verdict.seconds, 1))
        log = self._to_mlflow()
        if told:
            log.log_metrics(verdict.step, told)
        picture = verdict.picture
        if picture is not None:
            log.send(
                f"{PICTURES} {verdict.step}",
                lambda mlflow, run: log_picture(mlflow, run, PICTURES, verdict.step, picture),
            )
        if lowest:
            log.set_tags({BEST_TAG: lowest})

    def finish(self) -> None:
        """Nobody takes checkpoints any more: remove those that stayed for their verdict alone, and
        bring the table up to date.
        """
        prune(self._run, self._keep, lambda: referenced(self._record.uri, self._record.noted()))
        judged(self._run, self._keep)

    def close(self) -> None:
        """Have MLflow take what it has not, for a few seconds."""
        if self._log:
            self._log.close()
        self._meter.close()

    def _to_mlflow(self) -> RunLog:
        # When there is something to tell: it says there that the run goes on.
        record = self._record
        self._log = self._log or RunLog(record.opened, tracking_uri(), record.uri, record.since)
        return self._log

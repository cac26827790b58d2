"""What rank 0 tells MLflow while it trains.

Tracking must never stop training: metrics go through a bounded buffer and a thread; what MLflow
does not take goes to a local file that is sent later (`replay`, or by itself at the next flush
that finds the server back).
"""

import glob
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwp.cache_folder import cache_folder
from gwp.errors import GwpError
from gwp.storage.names import relative_name
from pipelines.tracking.runs import client, explained, short

if TYPE_CHECKING:
    from mlflow import MlflowClient

_METRICS_PER_CALL = 1000
"""MLflow refuses more."""
_RETRY_S = 15.0
"""After a failure the server is left alone for so long, and records go to files."""

logger = logging.getLogger(__name__)


class RunLog:
    """What rank 0 tells MLflow while it trains. No call raises, and none but `flush` and
    `finish` waits.
    """

    def __init__(
        self,
        run_id: str,
        uri: str,
        spill: str | Path | None = None,
        *,
        every_s: float = 5.0,
        batch: int = 100,
        limit: int = 10_000,
    ) -> None:
        """Sends every `every_s` seconds or `batch` records. What MLflow does not take, and what
        would wait beyond `limit`, goes to a file in the local folder `spill` (default: in
        `gwp.cache_folder`).
        """
        self._folder = Path(spill) if spill else cache_folder("tracking", keep=True)
        self._run_id = run_id
        self._uri = uri
        self._every_s = every_s
        self._batch = batch
        self._limit = limit
        self.spilled = 0
        """Records that went to files so far."""
        # An earlier attempt may have left some on this machine.
        begin = glob.escape(relative_name(run_id, "run id"))
        self._files = sorted(self._folder.glob(f"{begin}-*.jsonl"))
        self._pending: list[dict[str, Any]] = []
        self._sending: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._flushing = False
        self._closed = False
        self._retry_at = 0.0
        self._client: MlflowClient | None = None
        # The attempt before may have been marked failed.
        self._put({"status": "RUNNING"})
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def unsent(self) -> list[Path]:
        """Files that MLflow has not taken; `replay` sends them."""
        with self._changed:
            return list(self._files)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures of optimiser step `step`."""
        now = time.time_ns() // 1_000_000
        self._put({"metrics": [[key, float(value), now, step] for key, value in values.items()]})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts of the run, such as the newest checkpoint's URI."""
        self._put({"tags": dict(tags)})

    def flush(self, timeout_s: float = 30.0) -> None:
        """Have everything so far in MLflow or in a local file, after `timeout_s` seconds at the
        latest.
        """
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            # Woken when a round that began after the request leaves nothing behind.
            if not self._changed.wait_for(lambda: not self._flushing, timeout_s):
                # The server holds the thread. What it is sending may still arrive: MLflow
                # stores the same point once.
                self._spill(self._sending + self._pending)
                self._sending = []
                self._pending = []

    def finish(self, status: str = "FINISHED", timeout_s: float = 30.0) -> None:
        """Flush, mark the run as ended, and stop the thread."""
        self._put({"status": status})
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, record: dict[str, Any]) -> None:
        record = {"run_id": self._run_id, **record}
        with self._changed:
            # Straight to a file: memory must not grow while MLflow does not answer.
            if len(self._pending) >= self._limit:
                self._spill([record])
                return
            self._pending.append(record)
            if len(self._pending) >= self._batch:
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._flushing or self._closed or len(self._pending) >= self._batch,
                    self._every_s,
                )
                if self._closed and not self._pending:
                    return
                asked = self._flushing
                self._sending = self._pending
                self._pending = []
                files = self._files
                self._files = []
            # Without the lock: while MLflow answers slowly, training goes on logging.
            failed = self._send(self._sending, files, asked)
            with self._changed:
                # Files that were written meanwhile are newer than those that are left.
                self._files = files + self._files
                # Nothing is left of it where `flush` lost patience and spilled it.
                if failed:
                    self._spill(self._sending)
                self._sending = []
                if asked and not self._pending:
                    self._flushing = False
                    self._changed.notify_all()

    def _send(self, records: list[dict[str, Any]], files: list[Path], asked: bool) -> bool:
        """Hand over files (each leaves the list when it is sent), then records; True when
        MLflow did not take them.
        """
        if not records and not files:
            return False
        if not asked and time.monotonic() < self._retry_at:
            return True
        try:
            self._client = self._client or client(self._uri)
            while files:
                # Oldest first: the last status of the run must win.
                replay(files[0], self._uri, running=True)
                files.pop(0)
            _apply(self._client, records)
            return False
        except Exception as error:  # noqa: BLE001  whatever MLflow raises, training goes on
            logger.warning(
                "MLflow at %s takes no metrics (%s); they are kept in %s",
                self._uri,
                short(error),
                self._folder,
            )
            self._retry_at = time.monotonic() + _RETRY_S
            return True

    def _spill(self, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        # The time comes first in the name after the run, so names sort by age.
        file = self._folder / f"{self._run_id}-{time.time_ns():020d}-{os.getpid()}.jsonl"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        except OSError as error:
            logger.warning("%d records of run %s are lost: %s", len(records), self._run_id, error)
            return
        self._files.append(file)
        self.spilled += len(records)


def replay(spill: str | Path, uri: str | None = None, *, running: bool = False) -> int:
    """Send what a `RunLog` left in a file (or in every file of a folder), oldest first, and
    remove it; returns how many records.

    `running`: the run still goes on. Otherwise a start that was noted in the file is old news,
    and the run keeps the status that it has.
    """
    path = Path(spill)
    if not path.exists():
        raise GwpError(f"{spill}: nothing there to send")
    count = 0
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        sent = [r for r in records if running or r.get("status") != "RUNNING"]
        # Removed when MLflow has taken all of it; a record sent twice does no harm.
        with explained(uri):
            _apply(client(uri), sent)
        file.unlink()
        count += len(records)
    return count


def _apply(mlflow: "MlflowClient", records: Iterable[dict[str, Any]]) -> None:
    """Send records in few calls: all metrics and the newest tags of each run, and its last
    status at the end.
    """
    from mlflow.entities import Metric, RunTag

    metrics: dict[str, list[Any]] = {}
    tags: dict[str, dict[str, str]] = {}
    status: dict[str, str] = {}
    for record in records:
        run_id = record["run_id"]
        metrics.setdefault(run_id, []).extend(Metric(*entry) for entry in record.get("metrics", ()))
        tags.setdefault(run_id, {}).update(record.get("tags", {}))
        if "status" in record:
            status[run_id] = record["status"]
    for run_id, points in metrics.items():
        for start in range(0, len(points), _METRICS_PER_CALL):
            mlflow.log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])
        if tags[run_id]:
            newest = [RunTag(key, value) for key, value in tags[run_id].items()]
            mlflow.log_batch(run_id, tags=newest)
    for run_id, state in status.items():
        if state == "RUNNING":
            mlflow.update_run(run_id, status=state)
        else:
            mlflow.set_terminated(run_id, state)

"""What rank 0 tells MLflow while it trains.

Tracking must never stop training: figures are sent by a thread. What MLflow does not take waits
in memory until a checkpoint has it in the run folder (`pipelines.tracking.curves`); from there it
is sent when MLflow is back.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipelines.tracking.curves import Curves, Point, write_figures
from pipelines.tracking.runs import client, short

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RETRY_S = 15.0
"""After a failure the server is left alone for so long."""

_MOST_FILES = 50
"""Files that wait while MLflow is away."""
Send = Callable[["MlflowClient", str], None]
"""Sends something, by a client, to the run of an id."""

logger = logging.getLogger(__name__)


class RunLog:
    """What rank 0 tells MLflow while it trains. No call but `cover` raises, and none but that,
    `flush` and `close` waits.
    """

    def __init__(
        self,
        opened: Callable[[], str],
        uri: str,
        run_uri: str,
        since: int = 0,
        *,
        every_s: float = 5.0,
        batch: int = 100,
    ) -> None:
        """Sends every `every_s` seconds or `batch` records. opened: gives the id of the run,
        which it may have to create first; raises while MLflow does not answer. uri: of MLflow;
        run_uri: folder of the run; since: as for `Curves`.
        """
        self._opened = opened
        self._uri = uri
        self._run_uri = run_uri
        self._since = since
        self._every_s = every_s
        self._batch = batch
        self._changed = threading.Condition()
        # Below `_changed`: what is not sent yet.
        self._points: list[Point] = []
        self._records = 0
        self._tags: dict[str, str] = {}
        self._files: dict[str, Send] = {}
        # Of which steps MLflow may lack figures that the run folder has: above the first, which
        # is None where MLflow is to be asked, up to the second.
        self._lacking: tuple[int | None, int] | None = None
        self._uncovered: list[Point] = []
        self._covered = -1
        self._failing = False
        self._flushing = self._closed = False
        # Of the thread.
        self._retry_at = 0.0
        self._curves: Curves | None = None
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def goes_on(self, step: int) -> None:
        """Say that the run goes on from a checkpoint at `step`: figures up to there may not have
        arrived.
        """
        with self._changed:
            self._covered = step
            self._lacking = (None, step)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures of optimiser step `step`."""
        now = time.time_ns() // 1_000_000
        points = [(key, float(value), now, step) for key, value in values.items()]
        with self._changed:
            self._points += points
            self._uncovered += points
            self._records += 1
            if self._records >= self._batch:
                self._changed.notify_all()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts of the run, such as the newest checkpoint's URI."""
        with self._changed:
            self._tags |= tags

    def send(self, name: str, what: Send) -> None:
        """Have a file, table or picture sent, in place of what waits under this name. What MLflow
        does not take is logged and left out: the run folder has it.
        """
        with self._changed:
            self._files[name] = what

    def cover(self, step: int, attempt: int) -> None:
        """Write the figures since the last call, up to `step`, into the run folder: before the
        checkpoint there is whole. Raises what storage does.
        """
        with self._changed:
            points = [point for point in self._uncovered if point[3] <= step]
        write_figures(self._run_uri, step, attempt, points)
        with self._changed:
            self._uncovered = [point for point in self._uncovered if point[3] > step]
            self._covered = step
            self._drop_covered()

    def _drop_covered(self) -> None:
        """Keep in memory only what the run folder does not have, while MLflow is away."""
        covered = [point[3] for point in self._points if point[3] <= self._covered]
        if not self._failing or not covered:
            return
        self._points = [point for point in self._points if point[3] > self._covered]
        after = min(covered) - 1
        if self._lacking:
            before = self._lacking[0]
            after_ = before if before is None else min(before, after)
            self._lacking = (after_, self._covered)
        else:
            self._lacking = (after, self._covered)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until MLflow has everything so far, at most `timeout_s` seconds; whether it has."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            # Woken when a round that began after the request has ended, well or not.
            ended = self._changed.wait_for(lambda: not self._flushing, timeout_s)
            return ended and not self._failing

    def close(self, timeout_s: float = 10.0) -> None:
        """Flush, and end the thread."""
        self.flush(timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._flushing or self._closed or self._records >= self._batch,
                    self._every_s,
                )
                if self._closed:
                    return
                asked = self._flushing
                points, self._points = self._points, []
                tags, self._tags = self._tags, {}
                files, self._files = self._files, {}
                lacking, self._lacking = self._lacking, None
                self._records = 0
            # Without the lock: while MLflow answers slowly, training goes on logging.
            sent = self._send(points, tags, lacking, asked)
            if sent:
                self._send_files(files)
            with self._changed:
                self._failing = not sent
                if not sent:
                    self._points = points + self._points
                    self._tags = tags | self._tags
                    self._files = dict(list((files | self._files).items())[-_MOST_FILES:])
                    if lacking:
                        until = max(lacking[1], self._lacking[1]) if self._lacking else lacking[1]
                        self._lacking = (lacking[0], until)
                    self._drop_covered()
                if asked:
                    self._flushing = False
                    self._changed.notify_all()

    def _send(
        self,
        points: list[Point],
        tags: Mapping[str, str],
        lacking: tuple[int | None, int] | None,
        asked: bool,
    ) -> bool:
        """Whether MLflow took all of it."""
        if not asked and time.monotonic() < self._retry_at:
            return False
        try:
            curves = self._curves = self._curves or self._connected()
            if lacking:
                curves.fill(self._run_uri, lacking[1], lacking[0])
            curves.send(points)
            # Last: what they tell of is there by now.
            if tags:
                self._tell(tags)
        except Exception as error:  # noqa: BLE001  whatever MLflow raises, training goes on
            # What had arrived is not known.
            self._curves = None
            self._retry_at = time.monotonic() + _RETRY_S
            logger.warning(
                "MLflow at %s takes no figures (%s); they are kept in %s", self._uri, short(error),
                self._run_uri,
            )  # fmt: skip
            return False
        return True

    def _send_files(self, files: Mapping[str, "Send"]) -> None:
        assert self._client
        for name, what in files.items():
            try:
                what(self._client, self._run_id)
            except Exception as error:  # noqa: BLE001  whatever MLflow or its store raises
                logger.warning("MLflow at %s takes no %s: %s", self._uri, name, short(error))

    def _connected(self) -> Curves:
        """The run in MLflow, which goes on."""
        self._run_id = self._run_id or self._opened()
        self._client = client(self._uri)
        # The attempt before may have been marked failed.
        self._client.update_run(self._run_id, status="RUNNING")
        return Curves(self._client, self._run_id, self._since)

    def _tell(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        assert self._client
        entries = [RunTag(key, value) for key, value in tags.items()]
        self._client.log_batch(self._run_id, tags=entries)

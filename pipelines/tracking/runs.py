"""MLflow: one run per stage, created where the job is submitted, written by rank 0, whole
across restarts.

Tracking must never stop training: metrics go through a bounded buffer and a thread; what MLflow
does not take goes to a local file that is sent later (`replay`, or by itself at the next flush
that finds the server back).
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwp import storage
from gwp.errors import GwpError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "gwp.parent_run"
_NESTING_TAG = "mlflow.parentRunId"
_PARAM_LENGTH = 500
_DIGEST_LENGTH = 36  # MLflow refuses longer ones
_PARAMS_PER_CALL = 100
_METRICS_PER_CALL = 1000
_RETRY_S = 15.0

logger = logging.getLogger(__name__)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file `runs/mlflow.db` of the current folder, absolute:
    Ray workers run elsewhere.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    Path("runs").mkdir(exist_ok=True)
    return f"sqlite:///{Path('runs/mlflow.db').resolve()}"


def client(uri: str | None = None) -> "MlflowClient":
    """An MLflow client of `uri` (default: `tracking_uri()`) that gives up on a dead server in
    seconds.
    """
    # MLflow's own defaults wait about four minutes, longer than a worker's health check.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # Standard output is for results.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    uri = uri or tracking_uri()
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def explained(uri: str | None = None) -> Iterator[None]:
    """Turn what MLflow raises about its address or a name into one line with the fix."""
    try:
        yield
    except GwpError:
        raise
    except Exception as error:
        uri, text = uri or tracking_uri(), _short(error)
        if any(
            word in str(error)
            for word in (
                "Max retries exceeded",
                "Connection refused",
                "ConnectTimeout",
                "ReadTimeout",
            )
        ):
            raise GwpError(
                f"MLflow at {uri} does not answer; start it or correct MLFLOW_TRACKING_URI"
            ) from error
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise GwpError(
                f"MLflow at {uri}: {text}; check the name, and MLFLOW_TRACKING_URI"
            ) from error
        raise


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def create_run(
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    place: str,
    parents: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> str:
    """Open the run of a stage and log its parameters once; returns the run id that every
    attempt goes on with.

    `place`: folder or URI of the run; a new experiment keeps its artifacts below it. `parents`:
    runs whose weights it starts from. GwpError when MLflow does not answer: a training that
    nobody can see should not start.
    """
    with explained():
        mlflow = client()
        experiment_id = _experiment(mlflow, experiment, place)
        labels = {"mlflow.runName": name, "gwp.place": place, **(tags or {})}
        if parents:
            labels[PARENT_TAG] = ",".join(parents)
            if mlflow.get_run(parents[-1]).info.experiment_id == experiment_id:
                # The UI nests runs of one experiment only.
                labels[_NESTING_TAG] = parents[-1]
        run_id = mlflow.create_run(experiment_id, tags=labels, run_name=name).info.run_id
        log_params(run_id, params)
        return str(run_id)


def _experiment(mlflow: "MlflowClient", name: str, place: str) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        root = (
            place
            if storage.is_remote(place)
            else Path(place.removeprefix("file://")).resolve().as_uri()
        )
        return str(
            mlflow.create_experiment(name, artifact_location=storage.join(root, "artifacts"))
        )
    if found.lifecycle_stage != "active":
        raise GwpError(
            f"the MLflow experiment '{name}' was deleted; choose another run.experiment, or "
            "restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}`"
        )
    return str(found.experiment_id)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with short texts; lists and None as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[path] = text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 3] + "..."
    return flat


def log_params(run_id: str, params: Mapping[str, Any]) -> None:
    """Write parameters, flattened. MLflow keeps the first value of a key for ever and refuses
    another.
    """
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in flatten(params).items()]
    with explained():
        mlflow = client()
        for start in range(0, len(entries), _PARAMS_PER_CALL):
            mlflow.log_batch(run_id, params=entries[start : start + _PARAMS_PER_CALL])


def log_inputs(
    run_id: str, fingerprint: str, samples: int, skipped: int, sources: Sequence[str] = ()
) -> None:
    """Say which data a run reads: the fingerprint of its manifest, how many samples it has, and
    what was left out.
    """
    from mlflow.entities import Dataset, DatasetInput

    with explained():
        mlflow = client()
        data = Dataset(
            name="manifest",
            digest=fingerprint[:_DIGEST_LENGTH],
            source_type="gwp",
            source=json.dumps(list(sources)),
            profile=json.dumps({"samples": samples, "skipped": skipped}),
        )
        mlflow.log_inputs(run_id, [DatasetInput(data)])
        for key, value in {
            "gwp.data_fingerprint": fingerprint,
            "gwp.samples": str(samples),
            "gwp.skipped": str(skipped),
        }.items():
            mlflow.set_tag(run_id, key, value)


def finish_run(run_id: str, tags: Mapping[str, str], status: str = "FINISHED") -> None:
    """End a run from the driver: `status` FINISHED, FAILED or KILLED; an outage is logged, the
    finished training counts.
    """
    try:
        mlflow = client()
        for key, value in tags.items():
            mlflow.set_tag(run_id, key, value)
        mlflow.set_terminated(run_id, status)
    except Exception as error:  # noqa: BLE001  whatever MLflow raises, the training is done
        logger.warning(
            "MLflow did not take the end of run %s (%s); its weights are safe", run_id, error
        )


def metric_history(run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in order of steps; where a resumed run wrote a step again, the
    last value counts.
    """
    with explained():
        history = client().get_metric_history(run_id, key)
    return sorted(
        {m.step: float(m.value) for m in sorted(history, key=lambda m: m.timestamp)}.items()
    )


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
        would wait beyond `limit`, goes to a file in the local folder `spill` (default below
        GWP_CACHE).
        """
        self._folder = (
            Path(spill)
            if spill
            else Path(os.environ.get("GWP_CACHE", "~/.cache/gwp")).expanduser() / "tracking"
        )
        self._run_id, self._uri, self._every_s, self._batch, self._limit = (
            run_id,
            uri,
            every_s,
            batch,
            limit,
        )
        self.spilled = 0
        """Records that went to files so far."""
        # An earlier attempt may have left some on this machine.
        self._files = sorted(self._folder.glob(f"{run_id}-*.jsonl"))
        self._pending: list[dict[str, Any]] = []
        self._sending: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._flushing = self._closed = False
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
            if not self._changed.wait_for(lambda: not self._flushing, timeout_s):
                # The server holds the thread. What it is sending may still arrive: MLflow
                # stores the same point once.
                self._spill(self._sending + self._pending)
                self._sending, self._pending = [], []

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
                asked, self._sending, self._pending = self._flushing, self._pending, []
                files, self._files = self._files, []
            failed = self._send(self._sending, files, asked)
            with self._changed:
                self._files = files + self._files
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
                replay(files[0], self._uri)
                files.pop(0)
            _apply(self._client, records)
            return False
        except Exception as error:  # noqa: BLE001  whatever MLflow raises, training goes on
            logger.warning(
                "MLflow at %s takes no metrics (%s); they are kept in %s",
                self._uri,
                _short(error),
                self._folder,
            )
            self._retry_at = time.monotonic() + _RETRY_S
            return True

    def _spill(self, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        file = self._folder / f"{self._run_id}-{time.time_ns():020d}-{os.getpid()}.jsonl"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
        except OSError as error:
            logger.warning("%d records of run %s are lost: %s", len(records), self._run_id, error)
            return
        self._files.append(file)
        self.spilled += len(records)


def replay(spill: str | Path, uri: str | None = None) -> int:
    """Send what a `RunLog` left in a file (or in every file of a folder), oldest first, and
    remove it; returns how many records.
    """
    place = Path(spill)
    if not place.exists():
        raise GwpError(f"{spill}: nothing there to send")
    count = 0
    for file in sorted(place.glob("*.jsonl")) if place.is_dir() else [place]:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        with explained(uri):
            _apply(client(uri), records)
        file.unlink()
        count += len(records)
    return count


def _apply(mlflow: "MlflowClient", records: Iterable[dict[str, Any]]) -> None:
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
            mlflow.log_batch(
                run_id, tags=[RunTag(key, value) for key, value in tags[run_id].items()]
            )
    for run_id, state in status.items():
        if state == "RUNNING":
            mlflow.update_run(run_id, status=state)
        else:
            mlflow.set_terminated(run_id, state)

"""The MLflow run of a run folder: one, whatever happens to its workers, its driver or MLflow.

    <run>/run_key    drawn before all else; a run that a cut-off start opened is found by it
          run_id     the MLflow run, noted when it is open

MLflow that is away keeps nobody from training: rank 0 opens the run when it is back.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gwp import storage
from pipelines.console import event
from pipelines.tracking.artefacts import log_table, markdown, row_of, set_note
from pipelines.tracking.curves import STEP_TAG, Curves, read_verdicts
from pipelines.tracking.runs import (
    STOPPED_TAG,
    UnansweredError,
    client,
    create_run,
    end_run,
    explained,
    find_run,
    finish_run,
    log_inputs,
    short,
)
from pipelines.training.checkpoint.table import COLUMNS, FILE, as_columns, read_table
from pipelines.training.origin import parents_of
from pipelines.training.prepare import PreparedRun

_REASON_LENGTH = 500
# Seconds that the end of a run waits for MLflow, and between two tries.
_PATIENCE_S = 60.0
_AGAIN_S = 5.0


@dataclass(frozen=True)
class RunRecord:
    """What MLflow is told of a run when it is opened. `record_of` makes it; it goes to rank 0."""

    uri: str
    """The run folder."""
    experiment: str
    """Of MLflow."""
    name: str
    """Shown there."""
    params: Mapping[str, Any]
    """The job."""
    parents: tuple[str, ...]
    """MLflow runs whose weights it starts from."""
    fingerprint: str
    """Of the manifest."""
    samples: int
    """In the manifest."""
    skipped: int
    """Samples that were left out of it."""
    sources: tuple[str, ...]
    """URIs of the data."""
    since: int
    """Time in ms of the last change of the job: figures from before are of another training."""

    def opened(self) -> str:
        """Its id: the noted one, or that of a run which is opened now. UnansweredError while
        MLflow is away.
        """
        if (noted := self.noted()) is not None:
            return noted
        # First of all, so that a run opened by a start that came no further is found again.
        key_uri = self._key_uri()
        if not storage.exists(key_uri):
            storage.write_bytes(key_uri, uuid.uuid4().hex.encode())
        key = storage.read_bytes(key_uri).decode()
        run_id = create_run(
            self.experiment, self.name, self.params, self.uri, self.parents, key=key
        )
        log_inputs(run_id, self.fingerprint, self.samples, self.skipped, self.sources)
        with explained():
            set_note(client(), run_id, note(self))
        storage.write_bytes(self._note_uri(), run_id.encode())
        return run_id

    def noted(self) -> str | None:
        """The id in the run folder; None before there is one."""
        note = self._note_uri()
        return storage.read_bytes(note).decode() if storage.exists(note) else None

    def half_open(self) -> str | None:
        """The run that an interrupted `opened` has made; None when there is none, or MLflow does
        not answer.
        """
        try:
            if (noted := self.noted()) is not None:
                return noted
            if not storage.exists(self._key_uri()):
                return None
            return find_run(self.experiment, storage.read_bytes(self._key_uri()).decode())
        except Exception:  # noqa: BLE001  the error that brought us here is the one to tell
            return None

    def _note_uri(self) -> str:
        return storage.join(self.uri, "run_id")

    def _key_uri(self) -> str:
        return storage.join(self.uri, "run_key")


def record_of(prepared: PreparedRun) -> RunRecord:
    """What MLflow is told of a run."""
    job, manifest = prepared.job, prepared.manifest
    return RunRecord(
        uri=prepared.uri,
        experiment=job.run.experiment,
        name=f"{job.stage}/{job.run.name}",
        params=job.model_dump(mode="json"),
        parents=parents_of(prepared.init),
        fingerprint=prepared.fingerprint,
        samples=len(manifest),
        skipped=len(manifest.skipped),
        sources=tuple(source.uri for source in job.data.sources),
        since=_changed_at(prepared.uri),
    )


def _changed_at(run_uri: str) -> int:
    """Time in ms of the last change of the job; 0 without one."""
    uri = storage.join(run_uri, "job.json")
    if not storage.exists(uri):
        return 0
    changes = json.loads(storage.read_bytes(uri)).get("changes", [])
    # Notes of earlier versions have no time.
    return max((int(1000 * change.get("time", 0)) for change in changes), default=0)


@contextmanager
def open_run(record: RunRecord) -> Iterator[str | None]:
    """The MLflow run of a run folder, the same one on every attempt; None while MLflow does not
    answer.

    Whatever leaves the block ends it: errors as FAILED, interruptions as KILLED, each with the
    reason. What a killed process left is gone on with at the next start.
    """
    run_id = None
    try:
        try:
            run_id = record.opened()
        except UnansweredError as error:
            event("tracking", text=f"{error}. Training goes on, and is told when it is back")
        yield run_id
    # Base: KeyboardInterrupt ends a run too, and must not leave it RUNNING.
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        run_id = run_id or record.half_open()
        if run_id:
            reason = str(error)[:_REASON_LENGTH] or type(error).__name__
            finish_run(run_id, {STOPPED_TAG: reason}, status)
        raise


def finished(
    record: RunRecord, step: int, tags: Mapping[str, str], patience_s: float = _PATIENCE_S
) -> str:
    """Tell MLflow that the run is done, with all figures up to its last checkpoint at `step`;
    returns its id. When it does not answer for `patience_s` seconds, or refuses, a line says so:
    the training counts. The id is empty then, unless it is known.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            run_id = record.opened()
            with explained():
                curves = Curves(client(), run_id, record.since)
                curves.fill(record.uri, step)
                # Of steps that MLflow knew of when they came. Nobody else sends them now.
                curves.send(read_verdicts(record.uri))
            end_run(run_id, {STEP_TAG: str(step), **tags})
            _describe(record, run_id, tags)
            return run_id
        except UnansweredError as error:
            if time.monotonic() > end:
                event("tracking", text=f"{error}. The weights are whole; the same command tells it")
                return record.noted() or ""
            time.sleep(_AGAIN_S)
        except Exception as error:  # noqa: BLE001  whatever MLflow raises, the training is done
            event("tracking", text=f"MLflow did not take the end of the run: {short(error)}")
            return record.noted() or ""


def _describe(record: RunRecord, run_id: str, tags: Mapping[str, str]) -> None:
    """Say at the top of the run's page what came of it. Never raises: it is told without, too."""
    try:
        rows = read_table(record.uri)
        set_note(client(), run_id, note(record, tags, rows))
        # The newest one may not have arrived while it was trained.
        log_table(client(), run_id, FILE, as_columns(rows))
    except Exception as error:  # noqa: BLE001  whatever MLflow or its store raises
        event("tracking", text=f"the page of the run is not described whole: {short(error)}")


def _family(model: Mapping[str, Any]) -> str:
    """Of a model as a job has it: a shape of its own, or a released one."""
    return str(model.get("released") or model["family"])


def note(
    record: RunRecord, tags: Mapping[str, str] | None = None, rows: Sequence[dict[str, Any]] = ()
) -> str:
    """What stands at the top of the page of a run, Markdown. tags: of the finished run; rows: of
    its checkpoints
    """
    job, tags = record.params, tags or {}
    engine, run = job["engine"], job["run"]
    told = {
        "steps": f"{run['steps']} of {engine['global_batch']} samples, seed {run['seed']}",
        "model": f"{_family(job['model'])}, {engine['precision']}, ZeRO {engine['zero_stage']}",
        "data": f"{record.samples} samples of {len(record.sources)} sources, "
        f"{record.skipped} left out, fingerprint `{record.fingerprint[:12]}`",
        "starts from": ", ".join(f"run `{parent}`" for parent in record.parents) or "random weights"
        if job["init"] is None or record.parents
        else str(job["init"]),
        "run folder": f"`{record.uri}`",
        "weights": f"`{tags['final_uri']}`" if "final_uri" in tags else "not finished",
    }
    parts = [
        f"**{record.name}**",
        markdown(["", ""], [row_of([name, text]) for name, text in told.items()]),
    ]
    if rows:
        lines = [row_of([row.get(name) for name in COLUMNS]) for row in rows]
        parts += ["### Checkpoints", markdown(COLUMNS, lines)]
    return "\n\n".join(parts)

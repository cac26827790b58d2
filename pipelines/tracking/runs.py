"""MLflow: one run per stage, created where the job is submitted, whole across restarts.

What rank 0 writes to it while it trains stands in `pipelines.tracking.run_log`.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwp import storage
from gwp.errors import GwpError
from gwp.storage.retry import causes

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "gwp.parent_run"
KEY_TAG = "gwp.run_key"
PLACE_TAG = "gwp.place"
"""The run folder."""
STOPPED_TAG = "gwp.stopped"
"""Why a run ended before its last step."""
_NESTING_TAG = "mlflow.parentRunId"
_PARAM_LENGTH = 500
_DIGEST_LENGTH = 36  # MLflow refuses longer ones
_PARAMS_PER_CALL = 100
# MLflow's codes for a server, or a database behind it, that is there and cannot answer now.
_AWAY = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}

logger = logging.getLogger(__name__)


class UnansweredError(GwpError):
    """MLflow does not answer now; it may later."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file `runs/mlflow.db` of the current folder, absolute:
    Ray workers run elsewhere.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        # SQLite makes files, but no folders.
        Path("runs").mkdir(exist_ok=True)
        given = "sqlite:///runs/mlflow.db"
    scheme, slashes, path = given.partition(":///")
    if scheme == "sqlite" and slashes:
        return f"sqlite:///{storage.absolute(path)}"
    # A folder; other words without a slash are names that MLflow knows (`databricks`).
    return storage.absolute(given) if given.startswith((".", "~", "/")) else given


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
        uri = uri or tracking_uri()
        text = short(error)
        if _unanswered(error):
            raise UnansweredError(
                f"MLflow at {uri} does not answer; start it or correct MLFLOW_TRACKING_URI"
            ) from error
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise GwpError(
                f"MLflow at {uri}: {text}; check the name, and MLFLOW_TRACKING_URI"
            ) from error
        raise


def _unanswered(error: BaseException) -> bool:
    """Whether the server was not reached, or could do nothing: MLflow wraps what its HTTP client
    raised into an error of its own.
    """
    from requests import exceptions

    unanswered = (exceptions.ConnectionError, exceptions.RetryError, exceptions.Timeout)
    codes = {getattr(e, "error_code", None) for e in causes(error)}
    return bool(codes & _AWAY) or any(isinstance(e, unanswered) for e in causes(error))


def short(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def create_run(
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    uri: str,
    parents: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    key: str | None = None,
) -> str:
    """Open the run of a stage and log its parameters once; returns the run id that every
    attempt goes on with.

    `uri`: folder of the run; a new experiment keeps its artifacts below it. `parents`:
    runs whose weights it starts from.
    `key`: known before the run; what an interrupted call with the same key opened is gone on
    with. UnansweredError when MLflow does not answer.
    """
    with explained():
        mlflow = client()
        experiment_id = _experiment(mlflow, experiment, uri)
        labels = {"mlflow.runName": name, PLACE_TAG: uri, **(tags or {})}
        if key:
            # Whoever opened it was interrupted before it could note the id.
            labels[KEY_TAG] = key
            if opened := _opened(mlflow, experiment_id, key):
                log_params(opened, params)
                return opened
        if parents:
            labels[PARENT_TAG] = ",".join(parents)
            # The UI nests runs of one experiment only.
            if _holds(mlflow, experiment_id, parents[-1]):
                labels[_NESTING_TAG] = parents[-1]
        # Tags go with the call, so no run is ever without its key.
        run_id = mlflow.create_run(experiment_id, tags=labels, run_name=name).info.run_id
        log_params(run_id, params)
        return str(run_id)


def _holds(mlflow: "MlflowClient", experiment_id: str, run_id: str) -> bool:
    """Whether a run is one of this experiment: weights may come from another MLflow's."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(mlflow.get_run(run_id).info.experiment_id == experiment_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def find_run(experiment: str, key: str) -> str | None:
    """The run that `create_run` opened with this key; None when there is none."""
    with explained():
        mlflow = client()
        known = mlflow.get_experiment_by_name(experiment)
        return _opened(mlflow, known.experiment_id, key) if known else None


def place_of(run_id: str) -> str:
    """The run folder of an MLflow run; GwpError when there is no such run, or it has none."""
    with explained():
        tags = client().get_run(run_id).data.tags
    if PLACE_TAG not in tags:
        raise GwpError(f"MLflow run {run_id} is no training run of ours; it names no run folder")
    return str(tags[PLACE_TAG])


def _opened(mlflow: "MlflowClient", experiment_id: str, key: str) -> str | None:
    runs = mlflow.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _experiment(mlflow: "MlflowClient", name: str, uri: str) -> str:
    """Its id; a new one keeps its artifacts below `uri`."""
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        # MLflow wants a URI for a local folder too.
        local = Path(uri.removeprefix("file://")).resolve().as_uri()
        root = uri if storage.is_remote(uri) else local
        artifacts = storage.join(root, "artifacts")
        return str(mlflow.create_experiment(name, artifact_location=artifacts))
    # MLflow keeps deleted experiments, and their names with them.
    if experiment.lifecycle_stage != "active":
        raise GwpError(
            f"the MLflow experiment '{name}' was deleted; choose another run.experiment, or "
            "restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


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
        # As tags too: those are searched for in the UI.
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
        end_run(run_id, tags, status)
    except Exception as error:  # noqa: BLE001  whatever MLflow raises, the training is done
        logger.warning(
            "MLflow did not take the end of run %s (%s); its weights are safe", run_id, error
        )


def end_run(run_id: str, tags: Mapping[str, str], status: str = "FINISHED") -> None:
    """As `finish_run`; raises what MLflow does, UnansweredError when it does not answer."""
    with explained():
        mlflow = client()
        for key, value in tags.items():
            mlflow.set_tag(run_id, key, value)
        # An earlier attempt may have failed and left its reason.
        if status == "FINISHED" and STOPPED_TAG in mlflow.get_run(run_id).data.tags:
            mlflow.delete_tag(run_id, STOPPED_TAG)
        mlflow.set_terminated(run_id, status)


def metric_history(run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric in order of steps; where a resumed run wrote a step again, the
    last value counts.
    """
    with explained():
        history = client().get_metric_history(run_id, key)
    # By time: of two values for one step the later one stays in the mapping.
    history = sorted(history, key=lambda metric: metric.timestamp)
    return sorted({metric.step: float(metric.value) for metric in history}.items())


def put_below(run_id: str, parent: str) -> None:
    """Have MLflow's pages show a run below another one of its experiment. An outage is logged: the
    run itself counts.
    """
    try:
        with explained():
            client().set_tag(run_id, _NESTING_TAG, parent)
    except GwpError as error:
        logger.warning("run %s is not shown below %s: %s", run_id, parent, error)

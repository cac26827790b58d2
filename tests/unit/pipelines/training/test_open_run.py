"""A training run is one run in MLflow, and never RUNNING for ever, wherever its start was cut
off.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gwp import storage
from gwp.errors import GwpError
from pipelines.tracking import runs as tracking
from pipelines.tracking.curves import STEP_TAG, add_verdict, write_figures
from pipelines.training.prepare import PreparedRun
from pipelines.training.tracked import finished, open_run, record_of
from tests.unit.pipelines.training.test_stream import prepared


class Killed(BaseException):
    """The process is no more."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One sqlite store for all tests: creating its schema takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
        )
        yield "here"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    return prepared(tmp_path_factory.mktemp("data") / "set")


class Cut:
    """Every call to MLflow and every write to storage, cut off at the one with this number.
    dead: and so are all later ones.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, at: int, error: BaseException, dead: bool
    ) -> None:
        self.calls: list[str] = []
        self._at, self._error, self._dead = at, error, dead
        real, write = tracking.client, storage.write_bytes
        cut = self

        class Client:
            def __init__(self, uri: str | None = None) -> None:
                self._real = real(uri)

            def __getattr__(self, name: str) -> Callable[..., Any]:
                return cut.counted(name, getattr(self._real, name))

        patch.setattr(tracking, "client", Client)
        patch.setattr(storage, "write_bytes", cut.counted("write", write))

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **named: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            if number == self._at or (self._dead and number > self._at):
                raise self._error
            return call(*args, **named)

        return counting


def runs_of(found: PreparedRun) -> list[Any]:
    mlflow = tracking.client()
    experiment = mlflow.get_experiment_by_name(found.job.run.experiment)
    return (
        list(mlflow.search_runs([experiment.experiment_id], f"tags.`gwp.place` = '{found.uri}'"))
        if experiment
        else []
    )


def calls(ready: PreparedRun, folder: Path) -> list[str]:
    """What a start calls when nothing cuts it off."""
    # The first run of a store creates the experiment, which is a call more.
    with open_run(record_of(replace(ready, uri=str(folder / "first")))):
        pass
    with pytest.MonkeyPatch.context() as patch:
        cut = Cut(patch, -1, Killed(), dead=False)
        with open_run(record_of(replace(ready, uri=str(folder / "whole")))):
            pass
    return cut.calls


def test_a_start_that_was_killed_anywhere_is_gone_on_with(
    store: str, ready: PreparedRun, tmp_path: Path
) -> None:
    every = calls(ready, tmp_path)
    assert {"write", "search_runs", "create_run", "log_batch", "log_inputs", "set_tag"} <= set(
        every
    )
    for at in range(len(every)):
        found = replace(ready, uri=str(tmp_path / f"killed-{at}"))
        with pytest.MonkeyPatch.context() as patch:
            cut = Cut(patch, at, Killed(), dead=True)
            with pytest.raises(Killed), open_run(record_of(found)):
                pytest.fail("must not come so far")
        assert len(cut.calls) > at
        with open_run(record_of(found)) as run_id:
            pass
        (run,) = runs_of(found)
        assert (run.info.run_id, run.data.params["run.steps"]) == (run_id, "9")
        assert run.data.tags["gwp.data_fingerprint"] == found.fingerprint
        assert len(run.inputs.dataset_inputs) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (GwpError("no such bucket"), "FAILED")]
)
def test_a_start_that_was_interrupted_anywhere_ends_its_run(
    error: BaseException, status: str, store: str, ready: PreparedRun, tmp_path: Path
) -> None:
    for at in range(len(calls(ready, tmp_path))):
        found = replace(ready, uri=str(tmp_path / f"cut-{at}"))
        with pytest.MonkeyPatch.context() as patch:
            Cut(patch, at, error, dead=False)
            with pytest.raises(type(error)), open_run(record_of(found)):
                pytest.fail("must not come so far")
        assert {run.info.status for run in runs_of(found)} <= {status}
    assert runs_of(found)


def test_what_ends_the_training_is_told_and_what_finishes_it_untold(
    store: str, ready: PreparedRun, tmp_path: Path
) -> None:
    found = replace(ready, uri=str(tmp_path / "run"))
    for error, status, reason in (
        (GwpError("step 3: loss is nan"), "FAILED", "step 3: loss is nan"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
    ):
        with pytest.raises(type(error)), open_run(record_of(found)) as run_id:
            raise error
        (run,) = runs_of(found)
        assert (run.info.run_id, run.info.status, run.data.tags[tracking.STOPPED_TAG]) == (
            run_id,
            status,
            reason,
        )
    with open_run(record_of(found)) as again:
        tracking.finish_run(again, {})
    (run,) = runs_of(found)
    assert (again, run.info.status) == (run_id, "FINISHED")
    assert tracking.STOPPED_TAG not in run.data.tags


def test_mlflow_that_is_away_keeps_nobody_from_training(
    store: str,
    ready: PreparedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the start, and at the end: the same command tells it when it is back."""
    record = record_of(replace(ready, uri=str(tmp_path / "run")))
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with open_run(record) as run_id:
            assert run_id is None
        assert "does not answer" in capsys.readouterr().err
        write_figures(record.uri, 2, 1, [("loss", 1.0, 5, 1), ("loss", 0.5, 6, 2)])
        assert finished(record, 2, {}, patience_s=0.0) == ""
        assert "the same command tells it" in capsys.readouterr().err
    with open_run(record) as run_id:
        assert finished(record, 2, {"final_uri": "there"}) == run_id
    assert tracking.metric_history(str(run_id), "loss") == [(1, 1.0), (2, 0.5)]
    (run,) = runs_of(replace(ready, uri=record.uri))
    assert (run.info.status, run.data.tags["final_uri"]) == ("FINISHED", "there")
    # What it refuses is told, and stops nothing either.
    tracking.client().delete_run(run.info.run_id)
    assert finished(record, 2, {}) == run_id
    assert "did not take the end of the run" in capsys.readouterr().err


def test_a_folder_that_is_made_anew_is_a_new_run(
    store: str, ready: PreparedRun, tmp_path: Path
) -> None:
    found = replace(ready, uri=str(tmp_path / "run"))
    with open_run(record_of(found)) as first:
        pass
    for name in storage.list_files(found.uri):
        storage.remove(storage.join(found.uri, name))
    with open_run(record_of(found)) as second:
        pass
    assert first != second


def test_what_was_said_of_checkpoints_later_is_told_at_the_end(
    store: str, ready: PreparedRun, tmp_path: Path
) -> None:
    """MLflow knew of later steps when it came, and may have missed it."""
    record = replace(record_of(ready), uri=str(tmp_path / "run"))
    run_id = record.opened()
    tracking.client().set_tag(run_id, STEP_TAG, "40")
    add_verdict(record.uri, [("validation_loss", 0.5, 1, 20)])
    # Once more, after a driver that was killed: it takes the place of what was said before.
    add_verdict(record.uri, [("validation_loss", 0.4, 2, 20)])
    add_verdict(record.uri, [("validation_loss", 0.3, 3, 40)])
    assert finished(record, 40, {}) == run_id
    assert tracking.metric_history(run_id, "validation_loss") == [(20, 0.4), (40, 0.3)]
    # And no step twice.
    assert finished(record, 40, {}) == run_id
    assert tracking.metric_history(run_id, "validation_loss") == [(20, 0.4), (40, 0.3)]

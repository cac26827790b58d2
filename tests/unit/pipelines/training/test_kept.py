"""Old checkpoints go, but for those that something refers to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwp import storage
from pipelines.tracking import runs as tracking
from pipelines.tracking.registry import made_of, register
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.checkpoint.references import referenced
from pipelines.training.checkpoint.retention import prune
from tests.unit.pipelines.training.test_checkpoints import _write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One sqlite store for all tests: creating its schema takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def steps(run: str) -> list[int]:
    return [manifest.step for _, manifest in find_committed(run)]


def bundle(folder: Path, run: str, checkpoint: str) -> str:
    """As much of one as the registry reads."""
    folder.mkdir()
    lineage = {"checkpoint": checkpoint, "stages": [{"run": run}]}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return str(folder)


def test_what_is_referred_to_stays(store: str, tmp_path: Path) -> None:
    run = str(tmp_path / "the robot's")
    run_id = tracking.create_run("gwp", "a", {}, run)
    other = tracking.create_run("gwp", "b", {}, str(tmp_path / "other"))
    uris = [_write(run, tmp_path, step) for step in (10, 20, 30, 40, 50, 60, 70)]
    # By its MLflow run, as earlier versions registered it; by its run folder; of another run;
    # and one whose bundle is gone.
    register(bundle(tmp_path / "one", run, uris[0]), "one", "kept", run_id)
    lineage = {"checkpoint": uris[1], "stages": [{"run": run}]}
    register("s3://b/two", "two", "kept", None, made_of(lineage))
    elsewhere = bundle(tmp_path / "three", "elsewhere", "elsewhere/step_000030-a1")
    register(elsewhere, "three", "kept", other)
    register(str(tmp_path / "gone"), "four", "kept", run_id)
    storage.write_bytes(f"{run}/final/run.json", json.dumps({"checkpoint": uris[3]}).encode())
    found = referenced(run, run_id)
    assert set(found) == {"step_000010-a1", "step_000020-a1", "step_000040-a1"}
    assert prune(run, 2, lambda: found) == [uris[2], uris[4]]
    assert steps(run) == [70, 60, 40, 20, 10]
    # Finished anew, the weights are of another one.
    storage.write_bytes(f"{run}/final/run.json", json.dumps({"checkpoint": uris[6]}).encode())
    assert prune(run, 2, lambda: referenced(run, run_id)) == [uris[3]]


@pytest.mark.parametrize("run_id", [None, "0" * 32])
def test_who_cannot_be_asked_loses_nothing(
    run_id: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MLflow does not answer, or has not opened the run yet."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = str(tmp_path / "run")
    for step in (10, 20, 30):
        _write(run, tmp_path, step)
    assert prune(run, 2, lambda: referenced(run, run_id)) == []
    assert steps(run) == [30, 20, 10]
    assert "stay for now" in caplog.text
    # Nobody is asked where nothing would go.
    caplog.clear()
    assert prune(run, 3, lambda: referenced(run, run_id)) == []
    assert not caplog.text


def test_a_manifest_has_a_place_for_a_loss_on_held_out_data(tmp_path: Path) -> None:
    _write(str(tmp_path), tmp_path, 10)
    ((uri, found),) = find_committed(str(tmp_path))
    assert found.validation is None
    # Of a version before.
    file = storage.join(uri, "MANIFEST.json")
    record = json.loads(storage.read_bytes(file))
    del record["validation"], record["digest"]
    storage.write_bytes(file, json.dumps(record).encode())
    assert steps(str(tmp_path)) == [10]

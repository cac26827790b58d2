"""What the page of a run shows besides its curves, in a real MLflow."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.tracking.artefacts import (
    NOTE_TAG,
    add_version,
    log_picture,
    log_table,
    row_of,
    set_note,
)
from pipelines.tracking.run_log import RunLog
from pipelines.tracking.runs import client, create_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return create_run("exp", "policy/arm", {}, str(tmp_path / "run"))


def note_of(run: str) -> str:
    return str(client().get_run(run).data.tags.get(NOTE_TAG, ""))


def line(version: str, alias: str = "champion") -> dict[str, str]:
    return {"policy": "gwp", "version": version, "alias": alias, "id": "`ab`", "gates": "all"}


def test_tables_and_pictures_lie_beside_the_curves(run: str, tmp_path: Path) -> None:
    log_table(client(), run, "checkpoints.json", b'{"columns": ["a"], "data": [[1]]}')
    log_picture(client(), run, "imagined", 40, np.zeros((8, 8, 3), np.uint8))
    names = {file.path for file in client().list_artifacts(run)}
    assert names == {"checkpoints.json", "images"}
    tag = client().get_run(run).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(tag) == [{"path": "checkpoints.json", "type": "table"}]
    assert any("imagined" in file.path for file in client().list_artifacts(run, "images"))


def test_the_text_is_ours_until_somebody_writes_another(run: str) -> None:
    set_note(client(), run, "first")
    set_note(client(), run, "second")
    assert note_of(run).startswith("second")
    client().set_tag(run, NOTE_TAG, "my own words")
    set_note(client(), run, "third")
    add_version(client(), run, line("1"))
    assert note_of(run) == "my own words"


def test_versions_are_named_once_each_and_stay(run: str) -> None:
    set_note(client(), run, "text")
    for version, alias in (("1", "champion"), ("2", "champion"), ("1", "canary")):
        add_version(client(), run, line(version, alias))
    rows = [row for row in note_of(run).splitlines() if row.startswith("| gwp")]
    assert rows == ["| gwp | 2 | champion | `ab` | all |", "| gwp | 1 | canary | `ab` | all |"]
    set_note(client(), run, "the end")
    assert note_of(run).startswith("the end")
    assert all(row in note_of(run) for row in rows)


def test_a_version_of_a_run_without_a_text_is_named_too(run: str) -> None:
    add_version(client(), run, line("1"))
    assert "| gwp | 1 | champion |" in note_of(run)


def test_what_cannot_be_sent_costs_no_figures(
    run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no such bucket")

    sent = []
    log = RunLog(lambda: run, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "run"))
    log.send("picture", fails)
    log.send("table", lambda _, to: sent.append(to))
    log.log_metrics(1, {"loss": 0.5})
    assert log.flush(30)
    log.close()
    assert client().get_run(run).data.metrics["loss"] == 0.5
    assert sent == [run]
    assert "takes no picture: no such bucket" in caplog.text


def test_rows_of_tables_hold_no_bars() -> None:
    assert row_of(["a|b", 0.123456, None, 3]) == "| a/b | 0.1235 |  | 3 |"

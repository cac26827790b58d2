"""A version says what it passed, and the page of its run names it."""

import json
from pathlib import Path

import pytest

from gwp.policy.bundle import seal
from pipelines.cli import main
from pipelines.tracking.artefacts import NOTE_TAG
from pipelines.tracking.registry import GATE_TAG
from pipelines.tracking.runs import client, create_run
from tests.support.tiny import make_tiny_bundle


def of_run(folder: Path, run_id: str | None) -> str:
    """A bundle that was made of a run; of none, when it has no id."""
    make_tiny_bundle(folder)
    stages = [{"run": "s3://runs/arm", "mlflow_run_id": run_id}]
    (folder / "lineage.json").write_text(json.dumps({"stages": stages}))
    (folder / "MANIFEST.json").unlink()
    return seal(folder)


def test_gates_stand_with_the_version_and_on_the_page_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = create_run("gwp", "policy/arm", {}, str(tmp_path / "run"))
    policy = of_run(tmp_path / "bundle", run)
    assert main(["promote", str(tmp_path / "bundle"), "--name", "arm"]) == 0
    assert json.loads(capsys.readouterr().out)["policy_id"] == policy
    tags = client().get_model_version_by_alias("arm", "champion").tags
    assert {name.removeprefix(GATE_TAG) for name in tags if name.startswith(GATE_TAG)} == {
        "integrity",
        "contract",
        "lineage",
    }
    assert tags[f"{GATE_TAG}contract"] == "statistics and limits of tiny-arm"
    note = client().get_run(run).data.tags[NOTE_TAG]
    assert f"| arm | 1 | champion | `{policy[:12]}` | integrity: sha256" in note
    # A run that this MLflow does not know stops nothing.
    of_run(tmp_path / "other", "0" * 32)
    assert main(["promote", str(tmp_path / "other"), "--name", "arm"]) == 0
    of_run(tmp_path / "none", None)
    assert main(["promote", str(tmp_path / "none"), "--name", "arm"]) == 0

"""The last lines of a stage: where everything is, and a command that the command line takes."""

import shlex
from pathlib import Path

import pytest

from pipelines.cli import build_parser
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.screen.summary import following, summary
from pipelines.training.train import StageResult


def result(uri: str, run_id: str = "abc") -> StageResult:
    return StageResult(uri, f"{uri}/final", run_id, 300, 9600, 3725.0)


@pytest.mark.parametrize("stage", ["world", "embodied", "policy"])
def test_the_next_command_is_one(stage: str) -> None:
    job = load_config(f"pipelines/stages/{stage}.yaml", TrainJob)
    words = shlex.split(following(job, result("/runs of mine/world")))
    assert words[0] == "gwp"
    args = build_parser().parse_args(words[1:])
    if stage == "policy":
        assert args.run_folder == "/runs of mine/world"
    else:
        assert args.sets == ["init=/runs of mine/world/final"]
        # The file is the user's own: none that merely has the name of a stage.
        assert not Path(args.files[0]).exists()


def test_it_says_where_everything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load_config("pipelines/stages/world.yaml", TrainJob)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    told = summary(job, result(str(tmp_path)))
    assert told["done"] == (
        "world: world has taken 300 steps, 9600 samples, 1 h 2 min in this command"
    )
    assert told["weights"] == f"{tmp_path}/final"
    assert told["mlflow"] == "run abc of http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    line = summary(job, result(str(tmp_path)))["mlflow"]
    assert line.endswith(f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db")
    assert "tells it later" in summary(job, result(str(tmp_path), run_id=""))["mlflow"]

"""The first command of a newcomer: a stage of the repository, in a plain folder, with the
defaults and relative paths.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gwp import storage
from pipelines.tracking.runs import client, metric_history
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.support.sets import write_v30
from tests.unit.pipelines.jobs.test_stages import STAGES

ROOT = STAGES.parents[1]
STEPS, EVERY = 30, 2
# So many that the workers see the interruption before their end.
LONG = 150
SETS = [
    "init=null",
    "codec={kind: pca, spatial: 8, channels: 24, fit_clips: 8}",
    "text={kind: hashed, dim: 64, rows: 8}",
    "data.sources=[{uri: data/arm, embodiment: arm}]",
    "data.embodiments={arm: {replan: 2}}",
    "data.window={chunk: 4, stride: 1}",
    "data.canvas={layout: single, width: 32, height: 32}",
    "engine.global_batch=4",
    f"run.steps={STEPS}",
    f"run.checkpoint_every={EVERY}",
    "run.log_every=1",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stage_trains_in_a_plain_folder_and_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint is due before the end: the interruption takes one."""
    write_v30(tmp_path / "data" / "arm")
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    env = {name: value for name, value in os.environ.items() if name not in foreign} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, "-m", "pipelines.cli", "train", str(STAGES / "policy.yaml")]
    sets = [
        *SETS,
        f"run.steps={LONG}",
        f"run.checkpoint_every={LONG}",
        "data.sources=[{uri: data/arm, embodiment: arm, episodes: '0'}]",
        "validation={sources: [{uri: data/arm, embodiment: arm, episodes: '1'}], samples: 5}",
    ]
    command += [word for text in sets for word in ("--set", text)]
    run = tmp_path / "runs" / "train" / "policy"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")

    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
        try:
            limit = time.monotonic() + 400
            while not any(report["step"] >= 3 for report in worker_progress(str(run))):
                assert first.poll() is None, (tmp_path / "first.log").read_text()[-3000:]
                assert time.monotonic() < limit
                time.sleep(0.05)
            assert not find_committed(str(run))
            first.send_signal(signal.SIGINT)
            assert first.wait(120) == 130
        finally:
            first.kill()
    ((_, checkpoint),) = find_committed(str(run))
    reached = checkpoint.step
    assert 3 <= reached < LONG
    assert (tmp_path / "first.log").read_text().splitlines()[-1] == (
        f"gwp: interrupted: stopped at step {reached} of {LONG} with a checkpoint; the same command "
        "goes on from there"
    )
    run_id = (run / "run_id").read_text()
    assert client().get_run(run_id).info.status == "KILLED"
    assert not list((run / "lease").iterdir())

    second = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=420
    )
    assert second.returncode == 0, second.stderr[-3000:]
    told = json.loads(second.stdout)
    assert (told["uri"], told["steps"], told["run_id"]) == (str(run), LONG, run_id)
    assert [event["step"] for event in resumptions(str(run))] == [reached]
    assert client().get_run(run_id).info.status == "FINISHED"
    # Judged by the other episode; the interruption was in a hurry.
    ((_, checkpoint), (_, interrupted)) = find_committed(str(run))
    assert interrupted.validation is None
    assert metric_history(run_id, "validation_loss") == [(LONG, checkpoint.validation)]
    # No hole and nothing twice.
    assert [step for step, _ in metric_history(run_id, "loss")] == list(range(1, LONG + 1))
    assert storage.exists(str(run / "final" / "model" / "config.json"))

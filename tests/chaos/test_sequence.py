"""Three stages as one submission: nobody's terminal is needed, the driver may be killed, and asking
again goes on where it stood.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clusters.jobs.access import connect
from clusters.jobs.jobs import Jobs
from clusters.mini import MiniCluster
from gwp import storage
from pipelines.cli import main
from pipelines.tracking.runs import PARENT_TAG, client
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.cluster.test_submit import until
from tests.support.paths import ROOT
from tests.unit.pipelines.jobs.test_stages import STAGES

STEPS = {"world": 20, "embodied": 120, "policy": 20}


def stage_files(mini: MiniCluster, recordings: str, folder: Path, name: str) -> list[str]:
    """Short ones, each of which begins with the one before."""
    files = []
    for number, (stage, steps) in enumerate(STEPS.items()):
        first = number == 0
        labelled = stage == "policy"
        more = (
            "codec: {kind: pca, spatial: 8, channels: 24, fit_clips: 16}\n"
            "text: {kind: hashed, dim: 64, rows: 8}"
            if first
            else f"init: {name}-{number - 1}"
        )
        robots = "embodiments: {dot: {replan: 4}}\n  " if labelled else ""
        actions = "embodiment: dot" if labelled else "with_actions: false"
        text = f"""
extends: {STAGES / "tiny.yaml"}
stage: {stage}
run:
  name: {name}-{number}
  storage: {mini.bucket}/sequence
  steps: {steps}
  checkpoint_every: 20
{more}
data:
  sources: [{{uri: {recordings}, {actions}}}]
  canvas: {{layout: single, width: 32, height: 32}}
  window: {{chunk: 8, stride: 2}}
  {robots}
objective: {{modes: {{{"wam" if labelled else "video"}: 1{"" if labelled else ", wam: 0"}}}}}
engine: {{global_batch: 8}}
cluster: {{train_pool: train, data_pool: data}}
"""
        path = folder / f"{name}-{stage}.yaml"
        path.write_text(text)
        files.append(str(path))
    return files


def drivers(mini: MiniCluster, word: str) -> list[psutil.Process]:
    """Processes of `gwp train` with a stage file of this name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "train" in line and any(word in part for part in line) and "sh" not in line[0]:
            found.append(process)
    return found


@pytest.mark.timeout(900)
def test_three_stages_go_on_where_they_stood_when_their_driver_was_killed(
    mini: MiniCluster, recordings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = stage_files(mini, recordings, tmp_path, "line")
    runs = [f"{mini.bucket}/sequence/line-{number}" for number in range(3)]
    # From a terminal that goes as soon as the job is taken.
    command = [sys.executable, "-m", "pipelines.cli", "submit", *files, "--detach"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True
    )
    first = done.stdout.strip()
    until(lambda: find_committed(runs[1]))
    until(lambda: worker_progress(runs[1]))
    assert not storage.list_files(runs[2]), "it begins when its parent is finished"
    finished = storage.read_bytes(f"{runs[0]}/final/run.json")
    for process in drivers(mini, "1-world.yaml"):
        process.kill()
    jobs = Jobs(connect(mini.dashboard))
    until(lambda: jobs.get(first).over)
    assert jobs.get(first).status == "FAILED"
    stood = find_committed(runs[1])[0][1].step
    killed = time.monotonic()

    assert main(["submit", *files]) == 0
    found = capsys.readouterr()
    print(f"three stages done {time.monotonic() - killed:.0f} s after the kill of their driver")
    assert "attempt 2: goes on where attempt 1 stood (FAILED" in found.err
    results = json.loads(found.out)
    assert [result["steps"] for result in results] == list(STEPS.values())
    # The first was not trained again, the second went on.
    assert storage.read_bytes(f"{runs[0]}/final/run.json") == finished
    assert not resumptions(runs[0])
    assert [event["step"] for event in resumptions(runs[1])] == [stood]
    parents = [client().get_run(r["run_id"]).data.tags.get(PARENT_TAG) for r in results]
    assert parents == [None, results[0]["run_id"], results[1]["run_id"]]
    assert len(jobs.of_key(jobs.find("line-2").key)) == 2


@pytest.mark.timeout(900)
def test_a_stage_that_fails_keeps_the_rest_from_beginning(
    mini: MiniCluster, recordings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = stage_files(mini, recordings, tmp_path, "broken")
    second = Path(files[1])
    second.write_text(second.read_text().replace(recordings, "s3://no-such-bucket/x"))
    assert main(["submit", *files]) == 1
    err = capsys.readouterr().err
    assert "broken-1 is not finished, so broken-2 is not begun" in err
    assert "gwp: error: s3://no-such-bucket/x" in err
    assert find_committed(f"{mini.bucket}/sequence/broken-0")
    assert not storage.list_files(f"{mini.bucket}/sequence/broken-2")

"""`gwp submit` and `gwp jobs` as their users run them, against a cluster that asks for a token."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from clusters.mini import MiniCluster
from gwp import storage
from pipelines.cli import main
from pipelines.config.load import dump_resolved, load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.support.dot import write_recordings
from tests.support.paths import ROOT
from tests.unit.pipelines.jobs.test_stages import STAGES

WITHIN_S = 240.0
STEPS = 200
KEYS = "GWP_TEST_KEYS"
pytestmark = pytest.mark.timeout(900)


def until(holds: Callable[[], Any]) -> Any:
    """What it returns once it is true."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def words(mini: MiniCluster) -> list[str]:
    """A stage of some seconds, as it is written on a command line."""
    uri = f"{mini.bucket}/submit/set"
    write_recordings(uri)
    sets = [
        f"run.storage={mini.bucket}/submit",
        "run.name=twice",
        f"run.steps={STEPS}",
        f"run.checkpoint_every={STEPS}",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
        f"cluster.secrets=[{KEYS}]",
        "engine.global_batch=8",
        "init=null",
        "codec={kind: pca, spatial: 8, channels: 24, fit_clips: 16}",
        "text={kind: hashed, dim: 64, rows: 8}",
        "data.canvas={layout: single, width: 32, height: 32}",
        "data.window={chunk: 8, stride: 2}",
        f"data.sources=[{{uri: {uri}, embodiment: dot}}]",
        "data.embodiments={dot: {replan: 4}}",
    ]
    return [str(STAGES / "policy.yaml"), *(word for text in sets for word in ("--set", text))]


def _leaves_it_running_at_ctrl_c(folder: Path, job: str) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "jobs", "logs", job, "--follow"]
    log = folder / "followed.log"
    with log.open("wb") as err:
        following = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=err,
            stderr=err,
            # In the background of a shell it is ignored, and so it is by what tests start there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        until(lambda: "Running entrypoint" in log.read_text())
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == 130
    finally:
        following.kill()
        following.wait()
    last = log.read_text().splitlines()[-1]
    assert last.startswith(f"gwp: interrupted: {job} goes on; to see it again: ")
    assert last.endswith(f"to stop it: `gwp jobs stop {job}`")


def test_a_job_is_asked_for_twice_stopped_resumed_and_found_finished(
    mini: MiniCluster, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"{mini.bucket}/submit/twice"

    def told() -> tuple[str, str]:
        found = capsys.readouterr()
        return found.out.strip(), found.err

    def jobs() -> list[dict[str, Any]]:
        assert main(["jobs", "list", "--json"]) == 0
        rows: list[dict[str, Any]] = json.loads(told()[0])
        return [row for row in rows if row["run"] == "twice"]

    assert main(["submit", *words, "--detach"]) == 0
    job, err = told()
    assert '"text": "submitted"' in err
    assert main(["submit", *words, "--detach"]) == 0
    again, err = told()
    assert again == job
    assert "runs already" in err
    # It may not be exchanged for something else while it runs.
    assert main(["submit", *words, "--set", "run.log_every=5", "--detach"]) == 2
    assert f"{job} does these runs with another configuration" in told()[1]
    _leaves_it_running_at_ctrl_c(tmp_path, job)
    until(lambda: len(reports := worker_progress(run)) == 2 and min(r["step"] for r in reports) > 2)

    assert main(["jobs", "stop", "twice"]) == 0
    assert '"status": "STOPPED"' in told()[1]
    ((_, manifest),) = find_committed(run)
    assert 2 < manifest.step < STEPS, "it was ended with a checkpoint, and before its end"
    assert not storage.list_files(f"{run}/lease")

    # Followed to its end, from where it stood.
    assert main(["submit", *words]) == 0
    out, err = told()
    assert "attempt 2: goes on where attempt 1 stood (STOPPED" in err
    assert [event["step"] for event in resumptions(run)] == [manifest.step]
    ((result),) = json.loads(out)
    assert (result["steps"], result["uri"]) == (STEPS, run)
    assert '"event": "progress"' in err
    assert '"status": "SUCCEEDED"' in err
    assert [(row["attempt"], row["status"]) for row in jobs()] == [(2, "SUCCEEDED"), (1, "STOPPED")]

    # A finished one says so, and starts nothing.
    assert main(["submit", *words]) == 0
    out, err = told()
    assert json.loads(out) == [result]
    assert "is finished already" in err
    assert len(jobs()) == 2
    assert main(["jobs", "status", "twice", "--json"]) == 0
    status = json.loads(told()[0])
    assert (status["job"], status["done"], status["total"]) == (job[:-1] + "2", STEPS, STEPS)
    assert main(["jobs", "logs", job]) == 0
    assert "the same command goes on from there" in told()[0]

    # What anyone who sees the cluster can read of it.
    client = JobSubmissionClient(mini.dashboard)
    everything = str([j for j in client.list_jobs() if "twice" in (j.submission_id or "")])
    everything += client.get_job_logs(job)
    assert KEYS in everything
    assert os.environ[KEYS] not in everything
    # What looked at the nodes is no failure in anyone's list.
    probes = [j for j in client.list_jobs() if (j.submission_id or "").startswith("gwp-probe")]
    assert {str(j.status.value) for j in probes} == {"SUCCEEDED"}


@pytest.mark.usefixtures("mini")
@pytest.mark.slow
def test_of_two_sequences_that_share_a_stage_one_is_started(
    words: list[str], tmp_path: Path
) -> None:
    """Asked for at the same moment, from two terminals."""
    files = []
    for name in ("first", "shared"):
        sets = [word for word in words[1:] if word != "--set"]
        job = load_config(words[0], TrainJob, [*sets, f"run.name={name}"], as_written=True)
        (tmp_path / f"{name}.yaml").write_text(dump_resolved(job))
        files.append(str(tmp_path / f"{name}.yaml"))
    command = [sys.executable, "-m", "pipelines.cli", "submit", "--detach"]
    asking = [
        subprocess.Popen(
            [*command, *given], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for given in (files, files[1:])
    ]
    told = [process.communicate(timeout=180) for process in asking]
    print(told)
    assert sorted(process.returncode for process in asking) == [0, 2]
    ((out, _),) = [t for t, p in zip(told, asking, strict=True) if p.returncode == 0]
    ((_, refused),) = [t for t, p in zip(told, asking, strict=True) if p.returncode == 2]
    assert out.strip() in refused
    # By its name, the run is that of the other one.
    assert main(["jobs", "stop", "shared"]) == 0


def test_what_nodes_lack_is_told_before_anything_starts(
    mini: MiniCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*words, "--set", "run.name=lacking", "--secret", "GWP_NOBODY_SET_THIS"]
    assert main(["submit", *own]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    pools = ("head", "data", "train", "serve")
    assert "GWP_NOBODY_SET_THIS on" in line
    assert all(f"pool {pool}" in line for pool in pools)
    assert KEYS not in line
    assert not storage.list_files(f"{mini.bucket}/submit/lacking")
    assert main(["jobs", "status", "lacking"]) == 2


def test_a_job_that_fails_says_why_and_is_tried_again_as_a_new_attempt(
    mini: MiniCluster, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the code of this checkout, which goes along."""
    own = [*words, "--set", "run.name=fails", "--code", "project"]
    own += ["--set", "data.sources=[{uri: s3://no-such-bucket/x, embodiment: dot}]"]
    for attempt in (1, 2):
        assert main(["submit", *own]) == 1
        err = capsys.readouterr().err
        assert "gwp: error: s3://no-such-bucket/x" in err
        assert f'-{attempt}", "status": "FAILED", "text": "exit code 2"' in err
    assert "attempt 2: goes on where attempt 1 stood (FAILED: exit code 2)" in err

"""The mini-cluster is a cluster: pools, storage, tracking, jobs, access; and nothing of it
outlives its owner.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.job_submission import JobSubmissionClient

from clusters.mini import CPUS, LABEL, MiniCluster, read_env
from gwp import storage
from gwp.errors import GwpError
from gwp.policy.locate import locate
from pipelines.cli import main
from pipelines.tracking import registry as promote
from pipelines.tracking import runs as tracking
from pipelines.tracking.run_log import RunLog
from pipelines.training.checkpoint import checkpoints, retention

WITHIN_S = 180.0
pytestmark = pytest.mark.timeout(900)


def _until(condition: Any, what: str, within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.1)


@ray.remote
def _labels() -> dict[str, str]:
    return dict(ray.get_runtime_context().get_node_labels())


@ray.remote
def _visit(uri: str, run_id: str) -> bytes:
    fs, path = storage.arrow_filesystem(uri)
    with fs.open_input_stream(path) as stream:
        seen = stream.read()
    storage.write_bytes(f"{uri}.reply", seen[::-1])
    log = RunLog(lambda: run_id, tracking.tracking_uri(), uri)
    log.log_metrics(1, {"loss": 0.5})
    log.close()
    return bytes(seen)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_the_owner(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mini"
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "mini",
        "start",
        "--folder",
        str(folder),
        "--bucket",
        "own",
    ]
    with (tmp_path / "out").open("wb") as out:
        owner = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        _until(lambda: (folder / "env.sh").exists() or owner.poll() is not None, "start")
        assert owner.poll() is None, (tmp_path / "out").read_text()
        family = _family(psutil.Process(owner.pid))
        names = " ".join(" ".join(process.cmdline()) for process in family)
        assert all(name in names for name in ("raylet", "gcs_server", "moto.server", "mlflow")), (
            names
        )
        assert main(["mini", "start", "--folder", str(folder)]) == 2

        for key, value in read_env(folder).items():
            monkeypatch.setenv(key, value)
        (tmp_path / "set" / "a").mkdir(parents=True)
        (tmp_path / "set" / "a" / "b.txt").write_text("hello")
        assert (
            main(["mini", "put", str(tmp_path / "set"), "s3://own/set", "--folder", str(folder)])
            == 0
        )
        assert storage.read_bytes("s3://own/set/a/b.txt") == b"hello"
        owner.send_signal(number)
        code = owner.wait(WITHIN_S)
    finally:
        owner.kill()
        owner.wait()
    _until(lambda: all(map(_gone, family)), "end of every process")
    if number == signal.SIGINT:
        assert code == 0
        assert not (folder / "env.sh").exists()
        with pytest.raises(GwpError, match="no mini-cluster runs"):
            read_env(folder)


def test_every_pool_runs_its_tasks_and_the_head_none(mini: MiniCluster) -> None:
    found = ray.get(
        [_labels.options(label_selector={LABEL: pool}).remote() for pool in CPUS], timeout=WITHIN_S
    )
    assert [labels[LABEL] for labels in found] == list(CPUS)
    nodes = {
        node["Labels"][LABEL]: node["Resources"].get("CPU", 0)
        for node in ray.nodes()
        if node["Alive"]
    }
    assert nodes == {"head": 0, **CPUS}
    driver = ray.get_runtime_context().get_node_id()
    assert driver not in [node for pool in CPUS for node in mini.node_ids(pool)], (
        "killing a pool's node must not end the driver"
    )


def test_tasks_reach_storage_and_tracking(mini: MiniCluster) -> None:
    uri = storage.join(mini.bucket, "visit", "a.bin")
    storage.write_bytes(uri, b"abc")
    run_id = tracking.create_run("visit", "a", {"x": 1}, storage.join(mini.bucket, "visit"))
    assert (
        ray.get(
            _visit.options(label_selector={LABEL: "train"}).remote(uri, run_id), timeout=WITHIN_S
        )
        == b"abc"
    )
    assert storage.read_bytes(f"{uri}.reply") == b"cba"
    run = tracking.client().get_run(run_id)
    # Who drives the run ends it.
    assert (run.data.metrics["loss"], run.info.status) == (0.5, "RUNNING")
    assert run.info.artifact_uri.startswith("s3://gwp/visit/artifacts/")


def test_a_torn_checkpoint_in_object_storage_is_never_loaded(
    mini: MiniCluster, tmp_path: Path
) -> None:
    run = storage.join(mini.bucket, "torn")
    for step in (10, 20):
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "rank_0.pt").write_bytes(os.urandom(1 << 20))
        uri = checkpoints.checkpoint_uri(run, step, 1)
        manifest = checkpoints.CheckpointManifest(
            files=checkpoints.upload_files(tmp_path, uri),
            step=step,
            samples_seen=step,
            world_size=1,
            zero_stage=2,
            attempt=1,
            plan_hash="p",
            config_hash="c",
        )
        checkpoints.commit(uri, manifest)
    with pytest.raises(GwpError, match="committed already"):
        checkpoints.commit(uri, manifest)
    newest = checkpoints.latest_committed(run, deep=True)
    assert newest is not None
    assert newest[1].step == 20
    storage.write_bytes(storage.join(uri, "state", "rank_0.pt"), b"short")
    before = checkpoints.latest_committed(run)
    assert before is not None
    assert before[1].step == 10
    checkpoints.fetch(*before, tmp_path / "back")
    assert retention.prune(run, keep=1) == []
    assert len(checkpoints.find_committed(run)) == 1
    assert checkpoints.next_attempt(run) == 2


def test_policies_are_found_by_name_without_mlflow(
    mini: MiniCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(mini.bucket, "bundles", "one")
    version = promote.register(uri, "id1", "located")
    promote.promote("located", version)
    known = {"name": "located", "version": version, "policy_id": "id1"}
    assert locate("models:/located@champion") == (uri, known | {"alias": "champion"})
    assert locate(f"models:/located/{version}") == (uri, known)
    assert locate(uri) == (uri, {})
    for unknown in ("models:/located@nobody", "models:/nobody@champion", "models:/located/99"):
        with pytest.raises(GwpError, match="has no such policy"):
            locate(unknown)
    with pytest.raises(GwpError, match="write models:/NAME@ALIAS"):
        locate("models:/located")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mini.s3.url)
    with pytest.raises(GwpError, match="check MLFLOW_TRACKING_URI"):
        locate("models:/located@champion")


def test_the_control_plane_wants_its_token(mini: MiniCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{mini.dashboard}/api/jobs/", timeout=10)
    assert refused.value.code == 401


def test_a_submitted_job_finds_everything(mini: MiniCluster) -> None:
    jobs = JobSubmissionClient(mini.dashboard)
    script = (
        "import ray; from gwp import storage; ray.init(); "
        "storage.write_bytes('s3://gwp/job', str(len(ray.nodes())).encode())"
    )
    submitted: list[str] = []

    def submit() -> bool:
        try:
            submitted.append(jobs.submit_job(entrypoint=f'python -c "{script}"'))
        except RuntimeError as error:
            # The job agent comes up after the nodes.
            if "agent" in str(error).lower():
                return False
            raise
        return True

    _until(submit, "submit")
    _until(lambda: jobs.get_job_status(submitted[0]).is_terminal(), "job")
    assert jobs.get_job_status(submitted[0]).value == "SUCCEEDED", jobs.get_job_logs(submitted[0])
    assert int(storage.read_bytes("s3://gwp/job")) == len(
        [node for node in ray.nodes() if node["Alive"]]
    )


def test_an_mlflow_outage_costs_no_metric(mini: MiniCluster, tmp_path: Path) -> None:
    run_id = tracking.create_run("outage", "a", {}, storage.join(mini.bucket, "outage"))
    log = RunLog(lambda: run_id, tracking.tracking_uri(), str(tmp_path), batch=1)
    log.log_metrics(1, {"loss": 1.0})
    log.flush()
    mini.mlflow.stop()
    try:
        log.log_metrics(2, {"loss": 2.0})
        assert not log.flush()
    finally:
        mini.mlflow.start()
        mini.mlflow.wait(WITHIN_S)
    log.log_metrics(3, {"loss": 3.0})
    assert log.flush()
    log.close()
    assert [(m.step, m.value) for m in tracking.client().get_metric_history(run_id, "loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
    ]


def test_a_lost_node_leaves_and_a_new_one_joins(mini: MiniCluster) -> None:
    lost = mini.kill_node("data")

    def alive() -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    _until(lambda: lost not in alive(), "death of the node")
    new = mini.add_node("data")
    assert new in alive()
    assert (
        ray.get(_labels.options(label_selector={LABEL: "data"}).remote(), timeout=WITHIN_S)[LABEL]
        == "data"
    )

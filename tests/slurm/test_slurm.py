"""A stage on a real Slurm of two nodes: it trains, its nodes are taken away, it is queued again
and goes on where it stood.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.cluster.test_newcomer import SETS
from tests.support.paths import ROOT
from tests.support.sets import write_v30
from tests.support.slurm import CPUS, NODES, Slurm, lacking, slurm
from tests.unit.pipelines.jobs.test_stages import STAGES

STEPS = 150
TRAIN = "min_nodes: 2, max_nodes: 2}"
APART = f"""\
min_nodes: 1, max_nodes: 1}}
  data: {{cpus: {CPUS}, memory_gb: 3, shared_memory_gb: 0.3}}"""
DOCUMENT = f"""\
kind: Cluster
version: 1
name: two-nodes
pools:
  head: {{cpus: 1, memory_gb: 1}}
  train: {{cpus: {CPUS}, memory_gb: 3, shared_memory_gb: 0.3, {TRAIN}
slurm: {{partition: low, time_min: 30, save_s: 60, venv: VENV, env_file: FOLDER/env.sh}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # A short one: Ray and munge make sockets below it, whose names may not be long.
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        yield Path(name)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Slurm]:
    reason = lacking()
    if reason:
        pytest.skip(reason)
    (folder / "slurm").mkdir()
    with slurm(folder / "slurm") as running:
        yield running


def batch_script(folder: Path, name: str, *, apart: bool = False) -> Path:
    """A stage on both nodes, rendered by its user's command. apart: one of them decodes"""
    write_v30(folder / "arm")
    (folder / "env.sh").write_text(
        f"PYTHONPATH={ROOT}\nMLFLOW_TRACKING_URI=sqlite:///{folder}/mlflow.db\n"
        f"GWP_CACHE={folder}/cache\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n"
    )
    venv = Path(sys.executable).parents[1]
    text = DOCUMENT.replace("VENV", str(venv)).replace("FOLDER", str(folder))
    text = text.replace(TRAIN, APART) if apart else text
    (folder / "cluster.yaml").write_text(text)
    sets = [
        *SETS,
        f"data.sources=[{{uri: {folder}/arm, embodiment: arm}}]",
        f"run.storage={folder}/runs",
        f"run.name={name}",
        f"run.steps={STEPS}",
        # None is due before the end: the notice takes one.
        f"run.checkpoint_every={STEPS}",
        # One worker a node, and a CPU beside it for decoding unless that is elsewhere.
        f"cluster.workers={1 if apart else 2}",
        f"cluster.cpus_per_worker={CPUS if apart else CPUS - 1}",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
    ]
    command = ["cluster", "render", str(folder / "cluster.yaml"), "--target", "slurm"]
    command += ["--out", str(folder / "out"), "--job", str(STAGES / "policy.yaml")]
    assert main([*command, *(word for text in sets for word in ("--job-set", text))]) == 0
    return folder / "out" / f"00-{name}.sbatch"


def reached(run: str, workers: int = 2) -> int:
    """The step that the slowest worker is at."""
    steps = [int(report["step"]) for report in worker_progress(run)]
    return min(steps, default=0) if len(steps) == workers else 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "decoding apart"])
def test_a_stage_whose_nodes_are_taken_away_is_queued_again_and_goes_on(
    folder: Path, cluster: Slurm, apart: bool
) -> None:
    run = str(folder / "runs" / "taken")
    workers = 1 if apart else 2
    job = cluster.run("sbatch", "--parsable", str(batch_script(folder, "taken", apart=apart)))
    log = folder / "slurm" / f"taken-{job}.out"
    cluster.until(job, "RUNNING", timeout=60)
    began = time.monotonic()
    cluster.wait_for(lambda: reached(run, workers) >= 5, job, timeout=300)
    print(f"fifth step {time.monotonic() - began:.0f} s after the nodes were given")
    # Apart, the worker has all CPUs of its node, and none is left there for decoding.
    hosts = {report["host"] for report in worker_progress(run)}
    assert hosts == set(NODES[:workers])

    # More important work for both nodes.
    noticed = time.monotonic()
    other = cluster.run(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 3"
    )
    cluster.until(job, "PENDING", timeout=180)
    print(f"queued again {time.monotonic() - noticed:.0f} s after it")
    cluster.until(other, "COMPLETED", timeout=120)
    said = log.read_text()
    assert "with a checkpoint; the same command goes on from there" in said, said
    ((_, manifest),) = find_committed(run)
    assert 5 <= manifest.step < STEPS
    print(f"with a checkpoint at step {manifest.step}")

    # Slurm waits for some minutes with what was queued again.
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    cluster.until(job, "COMPLETED", timeout=400)
    print(log.read_text())
    assert [event["step"] for event in resumptions(run)] == [manifest.step]
    assert find_committed(run)[0][1].step == STEPS
    assert (folder / "runs" / "taken" / "final" / "run.json").exists()

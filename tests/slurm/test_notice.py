"""A pod of Kubernetes gets SIGTERM before its end, and so does its `ray start --block`: Ray then
lets the node go, and a run takes a checkpoint. On two nodes of their own, without Kubernetes.
"""

import sys
import time
from pathlib import Path

import pytest

from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.slurm.test_slurm import STEPS, batch_script, cluster, folder, reached  # noqa: F401
from tests.support.slurm import CPUS, NODES, Slurm

SCRIPT = """\
#!/bin/bash
#SBATCH --nodes=2 --exclusive --output=pods.out
set -a; . {folder}/env.sh; set +a
export PATH={bin}:$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=90
options="--num-cpus={cpus} --labels=gwp/pool=train --object-store-memory=300000000 --block"
srun --overlap -N1 -n1 -w node1 ray start --head --node-ip-address=10.99.0.11 --port=6379 $options &
until ray health-check --address 10.99.0.11:6379 > /dev/null 2>&1; do sleep 1; done
srun --overlap -N1 -n1 -w node2 bash -c \
    'echo $$ > {folder}/pid; exec ray start --address=10.99.0.11:6379 '"$options" &
export RAY_ADDRESS=10.99.0.11:6379
python -c 'import ray, time
ray.init(log_to_driver=False)
while len([n for n in ray.nodes() if n["Alive"]]) < 2: time.sleep(1)'
gwp train {stage}
"""


@pytest.mark.timeout(900)
def test_a_node_that_is_told_to_end_costs_no_step(
    folder: Path,
    cluster: Slurm,
) -> None:
    run = str(folder / "runs" / "told")
    stage = batch_script(folder, "told").with_suffix(".yaml")
    # Whoever is left goes on.
    fixed, elastic = "\n  workers: 2\n", "\n  workers: [1, 2]\n"
    assert fixed in stage.read_text()
    stage.write_text(stage.read_text().replace(fixed, elastic))
    script = folder / "pods.sh"
    values = {"folder": folder, "bin": Path(sys.executable).parent, "cpus": CPUS, "stage": stage}
    script.write_text(SCRIPT.format(**values))
    job = cluster.run("sbatch", "--parsable", str(script))
    cluster.until(job, "RUNNING", timeout=60)
    cluster.wait_for(lambda: reached(run) >= 5, job, timeout=300)
    assert {report["host"] for report in worker_progress(run)} == set(NODES)
    assert not find_committed(run)

    told = time.monotonic()
    pid = (folder / "pid").read_text().strip()
    cluster.run("srun", f"--jobid={job}", "--overlap", "-n1", "-N1", "-w", "node2", "kill", pid)
    cluster.wait_for(lambda: bool(find_committed(run)), job, timeout=90)
    ((_, manifest),) = find_committed(run)
    print(f"checkpoint at step {manifest.step}, {time.monotonic() - told:.0f} s after the notice")
    cluster.wait_for(lambda: bool(resumptions(run)), job, timeout=240)
    assert [event["step"] for event in resumptions(run)] == [manifest.step]
    assert resumptions(run)[0]["world_size"] == 1
    print(f"one worker goes on {time.monotonic() - told:.0f} s after it, of {STEPS} steps")

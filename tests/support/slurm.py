"""A real Slurm of two nodes on this machine: each in namespaces of its own, with an address, a
host name and processes that the other one does not see.
"""

import os
import shutil
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "unshare", "nsenter", "ip")
NODES = ("node1", "node2")
CPUS = 4
_UP_S = 60.0

_CONF = """\
ClusterName=gwp
SlurmctldHost=control(10.99.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
NodeName=node[1-2] NodeAddr=10.99.0.1[1-2] CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=180
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
_HOSTS = "127.0.0.1 localhost\n10.99.0.1 control\n10.99.0.11 node1\n10.99.0.12 node2\n"

# The outer namespaces hold the controller and a bridge; each node has its own inside them.
_INSIDE = r"""
set -eu
folder=$1
export SLURM_CONF=$folder/slurm.conf
hostname control
ip link set lo up
ip link add bridge0 type bridge
ip addr add 10.99.0.1/24 dev bridge0
ip link set bridge0 up
mount --bind "$folder/hosts" /etc/hosts
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
slurmctld -c
for i in 1 2; do
    unshare --net --mount --uts --pid --fork --kill-child --mount-proc bash -c '
        set -eu
        hostname "node$1"
        ip link set lo up
        echo ready > "$2/node$1.pid"
        # Ray keeps its files and its shared memory there.
        mkdir -p /tmp/ray
        mount -t tmpfs none /tmp/ray
        mount -t tmpfs -o size=1g none /dev/shm
        until ip -o addr show dev eth0 2> /dev/null | grep -q 10.99; do sleep 0.1; done
        exec slurmd -D -N "node$1"
    ' node $i "$folder" > "$folder/node$i.out" 2>&1 &
    until [ -s "$folder/node$i.pid" ]; do sleep 0.1; done
    inner=$(pgrep -P $!)
    ip link add "out$i" type veth peer name "in$i"
    ip link set "out$i" master bridge0 up
    ip link set "in$i" netns "$inner"
    nsenter -t "$inner" -n ip link set "in$i" name eth0
    nsenter -t "$inner" -n ip addr add "10.99.0.1$i/24" dev eth0
    nsenter -t "$inner" -n ip link set eth0 up
done
echo up > "$folder/up"
wait
"""


def lacking() -> str | None:
    """Why no Slurm can be started here; None when one can."""
    if os.geteuid() != 0:
        return "namespaces for two nodes need root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return (
            f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge iproute2)"
        )
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "true"],
        capture_output=True,
        check=False,
        timeout=30,
    )
    return None if tried.returncode == 0 else "this machine lets nobody make namespaces"


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class Slurm:
    """A running one."""

    def __init__(self, folder: Path, inside: int) -> None:
        self.folder = folder
        self._inside = inside

    def run(self, *command: str, timeout: float = 60) -> str:
        """What a command says on the machine of the controller."""
        enter = ["nsenter", "--target", str(self._inside), "--net", "--mount", "--uts", "--pid"]
        env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}
        done = subprocess.run(
            [*enter, "--wd=" + str(self.folder), *command],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Of a job, e.g. PENDING, RUNNING, COMPLETED."""
        said = self.run("scontrol", "--oneliner", "show", "job", job)
        return said.partition("JobState=")[2].split()[0]

    def wait_for(self, holds: Callable[[], bool], job: str, timeout: float) -> None:
        """Until it holds, while the job runs."""
        end = time.monotonic() + timeout
        while not holds():
            state = self.state(job)
            assert state == "RUNNING", f"job {job} is {state}: {self.logs()}"
            assert time.monotonic() < end, self.logs()
            time.sleep(0.5)

    def until(self, job: str, *states: str, timeout: float) -> str:
        """The first of `states` that the job comes to."""
        end = time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state}, not {states}: {self.logs()}"
            time.sleep(0.5)
        return state

    def logs(self) -> str:
        """The ends of all logs."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"== {f.name}\n{_end(f)}" for f in files)


def _end(file: Path) -> str:
    return file.read_text(errors="replace")[-3000:]


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Two nodes and a controller, until the block ends. folder: short, for sockets"""
    for name in ("state", "spool-node1", "spool-node2"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(_CONF.format(folder=folder, cpus=CPUS))
    (folder / "hosts").write_text(_HOSTS)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    # munged wants the way to its socket closed to others.
    folder.chmod(0o755)
    outer = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
    with (folder / "control.out").open("wb") as log:
        process = subprocess.Popen(
            [*outer, "--mount-proc", "bash", "-c", textwrap.dedent(_INSIDE), "slurm", str(folder)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": _path()},
            start_new_session=True,
        )
    try:
        yield _ready(folder, process)
    finally:
        # The first process of the outer namespace goes with it, and takes all others along.
        process.send_signal(signal.SIGKILL)
        process.wait(30)


def _ready(folder: Path, process: "subprocess.Popen[bytes]") -> Slurm:
    end = time.monotonic() + _UP_S
    while not (folder / "up").exists():
        assert process.poll() is None, _end(folder / "control.out")
        assert time.monotonic() < end, _end(folder / "control.out")
        time.sleep(0.1)
    (inside,) = psutil.Process(process.pid).children()
    running = Slurm(folder, inside.pid)
    while running.run("sinfo", "--noheader", "-p", "low", "-o", "%t %D") != "idle 2":
        assert time.monotonic() < end, running.logs()
        time.sleep(0.3)
    return running

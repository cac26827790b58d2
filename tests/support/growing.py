"""A Ray cluster on this machine that starts and ends nodes as work asks for them.

Ray's own `AutoscalingCluster` reads a file that its package lacks, and begins with `ray stop
--force`, which ends every Ray of the machine. This one speaks to the same autoscaler (v2) and the
same provider of pretended machines, and ends what it started.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray

from clusters.compat import reread_access
from clusters.mini import LABEL
from clusters.services import LOOPBACK, Sweeper, free_ports

# The provider gives its nodes these ids, and the head this one.
_HEAD_ID = "f" * 51 + "00000"
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_START_S = 120.0


def _kind(pool: str, cpus: int, most: int) -> dict[str, Any]:
    return {
        "resources": {"CPU": cpus, "object_store_memory": 300 << 20},
        "labels": {LABEL: pool},
        "node_config": {},
        "min_workers": 0,
        "max_workers": most,
    }


class GrowingCluster:
    """Pools without nodes, beside a head with label `head`."""

    def __init__(
        self, folder: Path, pools: Mapping[str, tuple[int, int]], idle_s: float = 5.0
    ) -> None:
        """pools: name -> logical CPUs of a node, most nodes; idle_s: after so long without work a
        node goes
        """
        self.folder = folder
        port, self._dashboard_port, self._client_port = free_ports(3)
        host = ray.util.get_node_ip_address()
        self.address = f"{host}:{port}"
        self._port = port
        head = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0}
        kinds = {pool: _kind(pool, cpus, most) for pool, (cpus, most) in pools.items()}
        self._config = {
            "cluster_name": "growing",
            "max_workers": 8,
            "idle_timeout_minutes": idle_s / 60,
            "upscaling_speed": 1.0,
            "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": head, **kinds},
            "provider": {
                # By its module: as a type it needs the file that is not there.
                "type": "external",
                "module": _PROVIDER,
                "disable_node_updaters": True,
                "launch_multiple": True,
                "head_node_id": _HEAD_ID,
                "gcs_address": self.address,
            },
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
        }

    @property
    def dashboard(self) -> str:
        return f"http://{LOOPBACK}:{self._dashboard_port}"

    def env(self) -> dict[str, str]:
        """For this cluster and what runs on it."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "45",
            "RAY_worker_niceness": "5",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "OMP_NUM_THREADS": "1",
        }

    @contextlib.contextmanager
    def running(self) -> Iterator["GrowingCluster"]:
        """Run it while the block lasts, with the environment of its users."""
        before = dict(os.environ)
        os.environ.update(self.env())
        reread_access()
        sweeper = Sweeper()
        process = self._start()
        try:
            self._wait(process)
            sweeper.tell(p.pid for p in _family(process.pid))
            yield self
        finally:
            ray.shutdown()
            family = _family(process.pid)
            # In order: the nodes that the monitor started are its children.
            for found in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.send_signal(signal.SIGKILL)
            process.wait(30)
            psutil.wait_procs(family, timeout=30)
            sweeper.dismiss()
            os.environ.clear()
            os.environ.update(before)
            reread_access()

    def _start(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(self._config))
        ray_program = str(Path(sys.executable).parent / "ray")
        command = [ray_program, "start", "--head", "--block", f"--autoscaling-config={config}"]
        command += [f"--port={self._port}", f"--dashboard-port={self._dashboard_port}"]
        command += [f"--dashboard-host={LOOPBACK}", "--num-cpus=1", f"--labels={LABEL}=head"]
        command += [
            f"--object-store-memory={150 << 20}",
            f"--ray-client-server-port={self._client_port}",
        ]
        own = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID, "RAY_CLOUD_INSTANCE_ID": _HEAD_ID}
        # As a parameter: whoever connects must not take the head's id for its own.
        env = os.environ | own | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        env.pop("RAY_ADDRESS")
        with (self.folder / "ray.log").open("wb") as log:
            return subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + _START_S
        log = self.folder / "ray.log"
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def pools_now() -> dict[str, int]:
    """Pool -> living nodes, of the connected cluster, without its head."""
    counts: dict[str, int] = {}
    for node in ray.nodes():
        pool = node["Labels"].get(LABEL, "")
        if node["Alive"] and pool != "head":
            counts[pool] = counts.get(pool, 0) + 1
    return counts

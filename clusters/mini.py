"""A whole cluster on one machine: labelled Ray nodes, an S3 and an MLflow server, all on this
machine, for demos and tests.

    with MiniCluster("runs/mini") as mini:
        mini.connect()
        ...                            # Ray, s3://gwp and MLflow are in the environment

* Ray: a head without work CPUs and one node per pool, labelled `gwp/pool`. CPUs are logical:
  training workers hold theirs for the whole run, so a pool that decodes must have CPUs of its
  own, or both wait for each other for ever.
* S3 is moto and keeps objects in memory: they go when the cluster stops. MLflow is sqlite in
  the folder and stays.
* Ray binds the machine's own address, so it asks for a token, made anew for each cluster; S3
  and MLflow bind loopback.
* Everything ends with the process that started it, also when that is killed.
"""

import contextlib
import fcntl
import os
import secrets
import shlex
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clusters.compat import drain, reread_access
from clusters.gpus import seeing
from clusters.services import LOOPBACK, Service, Sweeper, free_ports, node_processes
from gwp.errors import GwpError

LABEL = "gwp/pool"
HEAD = "head"
NAMESPACE = "gwp"
CPUS: Mapping[str, int] = {"data": 2, "train": 2, "serve": 4}
"""Pool -> logical CPUs of its node."""

_MB = 1 << 20
_OBJECT_STORE = {HEAD: 150 * _MB, "data": 300 * _MB, "train": 300 * _MB}
_OBJECT_STORE_DEFAULT = 150 * _MB
_START_S = 240.0
# Of the user's own accounts; they would lead past the mini-cluster.
_FOREIGN = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "RAY_AUTH_TOKEN_PATH",
)


class MiniCluster:
    """Start with `with` or `start()`, from the main thread."""

    def __init__(
        self,
        folder: str | Path = "runs/mini",
        *,
        cpus: Mapping[str, int] = CPUS,
        gpus: Mapping[str, Sequence[str]] | None = None,
        buckets: Sequence[str] = ("gwp",),
    ) -> None:
        """`folder`: MLflow's store, logs and `env.sh`. `cpus`: pool -> logical CPUs of its
        node. `gpus`: pool -> names of the GPUs of its node, as `CUDA_VISIBLE_DEVICES` has them.
        `buckets`: made at the start.
        """
        self.folder = Path(folder).resolve()
        self.bucket = f"s3://{buckets[0]}"
        self.cluster: Any = None
        """The `ray.cluster_utils.Cluster`."""
        self._cpus = dict(cpus)
        self._gpus = dict(gpus or {})
        self._buckets = tuple(buckets)
        self._nodes: dict[str, list[Any]] = {pool: [] for pool in cpus}
        self._count = 0
        self._token = secrets.token_hex(32)
        self._sweeper: Sweeper
        self._undo = contextlib.ExitStack()
        s3_port, mlflow_port, self._dashboard_port = free_ports(3)
        self.s3 = Service(
            "S3 (moto)",
            [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(s3_port)],
            s3_port,
            "/moto-api/",
            self.folder / "logs" / "s3.log",
            {},
        )
        self.mlflow = Service(
            "MLflow",
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--backend-store-uri",
                f"sqlite:///{self.folder / 'mlflow.db'}",
                "--artifacts-destination",
                str(self.folder / "mlartifacts"),
                "--host",
                LOOPBACK,
                "--port",
                str(mlflow_port),
                "--workers",
                "1",
            ],
            mlflow_port,
            "/health",
            self.folder / "logs" / "mlflow.log",
            # Its job runner alone is eight processes and a gigabyte.
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )

    def start(self) -> Self:
        """Bring everything up; what did come up is taken down again when something does not, or
        on Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "start the mini-cluster from the main thread: Ray ends its nodes with the "
                "thread that started them"
            )
        with contextlib.ExitStack() as undo:
            self._lock(undo)
            undo.callback(
                self._restore,
                {
                    name: os.environ.get(name)
                    for name in (*self._settings(), *_FOREIGN, "RAY_ADDRESS")
                },
            )
            for name in (*_FOREIGN, "RAY_ADDRESS"):
                os.environ.pop(name, None)
            # Before anything starts: servers, nodes and their workers inherit it.
            os.environ |= self._settings()
            for service in (self.s3, self.mlflow):
                service.start()
                undo.callback(service.stop)
            self._start_ray(undo)
            os.environ["RAY_ADDRESS"] = self.address
            self.s3.wait(_START_S)
            self._make_buckets()
            self.mlflow.wait(_START_S)
            self._write_env(undo)
            self._undo = undo.pop_all()
        return self

    def stop(self) -> None:
        """Take everything down and restore the environment. May be called twice."""
        for service in (self.s3, self.mlflow):
            service.end()
        self._undo.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """HOST:PORT of Ray, as in RAY_ADDRESS."""
        return str(self.cluster.address)

    @property
    def dashboard(self) -> str:
        """URL of Ray's dashboard and job interface."""
        return f"http://{LOOPBACK}:{self._dashboard_port}"

    def env(self) -> dict[str, str]:
        """What a process needs in its environment to use this cluster."""
        return {**self._settings(), "RAY_ADDRESS": self.address}

    def connect(self, **options: Any) -> None:
        """Make this process a Ray driver of the cluster; `options` go to `ray.init`."""
        import ray

        settings: dict[str, Any] = {
            "namespace": NAMESPACE,
            "log_to_driver": False,
            "logging_level": "warning",
        }
        ray.init(address=self.address, **(settings | options))

    def node_ids(self, pool: str) -> list[str]:
        """Ray's ids of the living nodes of a pool."""
        return [node.node_id for node in self._nodes[pool]]

    def add_node(self, pool: str) -> str:
        """Start one more node of a pool, from the main thread; returns its id."""
        gpus = self._gpus.get(pool, ())
        with seeing(gpus):
            node = self._add(
                num_cpus=self._cpus[pool],
                # Ray would count all of the machine for each node.
                num_gpus=len(gpus),
                labels={LABEL: pool},
                object_store_memory=_OBJECT_STORE.get(pool, _OBJECT_STORE_DEFAULT),
            )
        self._nodes[pool].append(node)
        return str(node.node_id)

    def kill_node(self, pool: str) -> str:
        """Kill the newest node of a pool as a power cut would; returns the id it had."""
        node = self._nodes[pool].pop()
        self.cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def drain_node(self, pool: str, seconds: int) -> str:
        """Give notice that the newest node of a pool is taken away in so many seconds, as a spot
        machine is; returns its id. Whoever calls this kills it.
        """
        node_id = self.node_ids(pool)[-1]
        drain(self.address, node_id, int((time.time() + seconds) * 1000))
        return node_id

    def alive(self) -> str | None:
        """None while everything runs, else what has ended."""
        dead = [service.name for service in (self.s3, self.mlflow) if not service.alive()]
        if not self.cluster.remaining_processes_alive():
            dead.append("Ray")
        return ", ".join(dead) or None

    def _settings(self) -> dict[str, str]:
        no_proxy = ",".join(
            filter(
                None,
                [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), LOOPBACK, "localhost"],
            )
        )
        programs = str(Path(sys.executable).parent)
        path = os.environ.get("PATH", os.defpath)
        return {
            "AWS_ENDPOINT_URL": self.s3.url,
            "AWS_ACCESS_KEY_ID": "mini",
            "AWS_SECRET_ACCESS_KEY": "mini",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            # Ray Train asks the dashboard whether its controller lives; unpinned, it may ask
            # another cluster on this machine and then remove our placement group.
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            # The defaults (2 s, 60 s, 5 s) are for large clusters; every report and every recovery
            # waits for them.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "45",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
            # A killed node counts as lost after five failed looks; by default three seconds
            # apart.
            "RAY_health_check_period_ms": "1000",
            # At Ray's own 15, whatever else computes on this machine leaves a worker 3 % of a
            # core. Still behind Ray's servers.
            "RAY_worker_niceness": "5",
            "RAY_USAGE_STATS_ENABLED": "0",
            **({} if self._gpus else {"DS_ACCELERATOR": "cpu"}),
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
            # Entry points of submitted jobs find `python` and `gwp`.
            "PATH": path if path.split(os.pathsep)[0] == programs else programs + os.pathsep + path,
        }

    def _lock(self, undo: contextlib.ExitStack) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = undo.enter_context((self.folder / "lock").open("w"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GwpError(
                f"another mini-cluster runs from {self.folder}; use it (`. "
                f"{self.folder}/env.sh`), stop it, "
                "or give another --folder"
            ) from error

    def _start_ray(self, undo: contextlib.ExitStack) -> None:
        import ray
        from ray.cluster_utils import Cluster

        if ray.is_initialized():
            raise GwpError(
                "this process uses another Ray cluster already; call ray.shutdown() first"
            )
        reread_access()
        self._sweeper = Sweeper()
        undo.callback(self._sweeper.dismiss)
        self.cluster = Cluster()
        undo.callback(self._stop_ray)
        self._add(
            num_cpus=0,
            num_gpus=0,
            labels={LABEL: HEAD},
            object_store_memory=_OBJECT_STORE[HEAD],
            include_dashboard=True,
            dashboard_host=LOOPBACK,
            dashboard_port=self._dashboard_port,
        )
        for pool in self._cpus:
            self.add_node(pool)

    def _add(self, **settings: Any) -> Any:
        previous = signal.getsignal(signal.SIGTERM)
        self._count += 1
        # Each as a machine of its own: a node that unpacks what travels with a job removes what
        # lies there, under the feet of the others.
        own = f"runtime_resources_{self._count}"
        try:
            node = self.cluster.add_node(**settings, runtime_env_dir_name=own)
        finally:
            # Ray puts its own handler there.
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)
        # Nodes end with us by themselves, however we end; their agents would look for the dead
        # head for a minute first.
        self._sweeper.tell(process.pid for process in node_processes())
        return node

    def _stop_ray(self) -> None:
        import psutil
        import ray

        started = node_processes()
        try:
            ray.shutdown()
        finally:
            self.cluster.shutdown()
            for nodes in self._nodes.values():
                nodes.clear()
            # Of a node whose start was interrupted, Ray's cluster object knows nothing.
            for process in started:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _make_buckets(self) -> None:
        for name in self._buckets:
            request = urllib.request.Request(f"{self.s3.url}/{name}", method="PUT")  # noqa: S310  loopback
            try:
                urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
            except urllib.error.HTTPError as error:
                raise GwpError(
                    f"no bucket can be named '{name}' ({error}); use lower-case letters"
                ) from error

    def _write_env(self, undo: contextlib.ExitStack) -> None:
        path = self.folder / "env.sh"
        undo.callback(path.unlink, missing_ok=True)
        path.unlink(missing_ok=True)
        # The token in it gives full access to Ray.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(
                f"export {name}={shlex.quote(value)}\n" for name, value in self.env().items()
            )
            file.write(f"unset {' '.join(_FOREIGN)}\n")

    @staticmethod
    def _restore(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        reread_access()


def read_env(folder: str | Path = "runs/mini") -> dict[str, str]:
    """The environment of the mini-cluster that runs from `folder`; GwpError when there is none."""
    path = Path(folder) / "env.sh"
    if not path.exists():
        raise GwpError(
            f"no mini-cluster runs from {folder}; start one with `gwp mini start --folder {folder}`"
        )
    words = shlex.split(path.read_text().rpartition("unset ")[0])
    return dict(word.split("=", 1) for word in words if word != "export")

"""The endpoint that is measured: on a Ray cluster of one machine, started and stopped here."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from clusters.services import free_ports
from serve.config import ServeApp

_WAIT_S = 300.0
_WATCH_S = 0.5


@dataclass
class Served:
    """A running endpoint.

    config: as deployed; url: where robots connect
    """

    config: ServeApp
    url: str

    def stats(self) -> dict[str, Any]:
        """What one of its processes says of itself."""
        with urlopen(f"http://{self.url.removeprefix('ws://')}v1/stats", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
            return found


@contextmanager
def watched_replicas(endpoint: Served) -> Iterator[list[tuple[float, int]]]:
    """While the block runs: each change of the number of replicas that answer, with the seconds
    since the block began.
    """
    from serve.app import replica_counts

    begin, over = time.monotonic(), threading.Event()
    seen = [(0.0, replica_counts(endpoint.config.name))]

    def watch() -> None:
        while not over.wait(_WATCH_S):
            count = replica_counts(endpoint.config.name)
            if count != seen[-1][1]:
                seen.append((round(time.monotonic() - begin, 1), count))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()


@contextmanager
def served(
    way: str, bundle: Path, scale: dict[str, int], slots: int, threads: int
) -> Iterator[Served]:
    """Serve a bundle for as long as the block runs.

    way: `inline` or `separate`; scale: least and most replicas, as fields of `autoscaling`
    """
    import ray
    from ray import serve

    from serve.app import deploy

    config = ServeApp.model_validate(
        {
            "policy": str(bundle),
            "port": free_ports(1)[0],
            "gateway": "inline" if way == "inline" else {"replicas": 2},
            "replica": {"cpus": 0.5, "torch_threads": threads},
            "autoscaling": scale,
            "engine": {"slots": slots},
            "start_timeout_s": _WAIT_S,
        }
    )
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        yield Served(config, deploy(config))
    finally:
        serve.shutdown()
        ray.shutdown()

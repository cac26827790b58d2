"""A real Prometheus beside a cluster of tests, and what it is asked."""

import json
import math
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import yaml

from clusters.services import free_ports
from tests.support.paths import ROOT

PROMETHEUS = ROOT / "clusters" / "prometheus"
INSTALLED = shutil.which("prometheus")


def _get(url: str, timeout: float = 10) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        return bytes(reply.read())


class Prometheus:
    """Scrapes the cluster of this machine by the configuration of the repository, only oftener."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "2s", "evaluation_interval": "5s"}
        config["rule_files"] = [str(PROMETHEUS / "alerts.yaml")]
        for job in config["scrape_configs"]:
            for found in job["file_sd_configs"]:
                found["refresh_interval"] = "2s"
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        words = [
            INSTALLED or "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def ask(self, expr: str, begin: float, end: float) -> list[dict[str, Any]]:
        """Series of an expression between two moments, a point every two seconds."""
        query = {"query": expr, "start": begin, "end": end, "step": 2}
        reply = json.loads(_get(f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(query)}"))
        assert reply["status"] == "success", reply
        found = reply["data"]["result"]
        return [series for series in found if any(map(_number, series["values"]))]

    def rules(self) -> list[dict[str, Any]]:
        """All alert rules, as it evaluates them."""
        groups = json.loads(_get(f"{self.url}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def _number(point: list[Any]) -> bool:
    return math.isfinite(float(point[1]))


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus | None]:
    """None where the program is not installed."""
    if INSTALLED is None:
        yield None
        return
    folder.mkdir(parents=True)
    found = Prometheus(folder, free_ports(1)[0])
    try:
        yield found
    finally:
        found.stop()


class Scraper:
    """Reads all agents of the cluster again and again, as Prometheus does; what it has seen stays.

    seen: name of a series -> every set of labels that it had
    """

    def __init__(self) -> None:
        self.seen: dict[str, set[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(30)

    def until(self, name: str, label: str, timeout: float) -> None:
        """Wait until there is a series of this name and label."""
        end = time.monotonic() + timeout
        while not any(label in labels for labels in set(self.seen.get(name, ()))):
            assert time.monotonic() < end, f"{name} has not come with {label}"
            self._over.wait(0.2)

    def _work(self) -> None:
        while not self._over.wait(1.0):
            for node in ray.nodes():
                if node["Alive"]:
                    address = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
                    try:
                        self._read(_get(f"http://{address}/metrics").decode())
                    except OSError:
                        # An agent that is starting, or that ends.
                        continue

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith("ray_"):
                name, _, labels = line.rpartition(" ")[0].partition("{")
                self.seen.setdefault(name, set()).add(labels)

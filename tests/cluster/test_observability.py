"""The line runs, things go wrong in it, and a real Prometheus sees all of that: every metric of the
table is emitted, every panel and alert finds its series.
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import ray
from PIL import Image
from ray import serve

from clusters.grafana.dashboard import ALL
from clusters.grafana.draw import draw
from clusters.mini import MiniCluster
from clusters.services import free_ports
from gwp import storage
from gwp.client import Client, ClientError, Observation
from gwp.data.robot.embodiment import Limits
from gwp.errors import GwpError
from gwp.metrics.names import SERVE_REPLICAS, SERVE_REQUESTS, all_metrics
from gwp.policy.policy import Policy
from gwp.protocol.handshake import short_name
from gwp.protocol.msgpack_numpy import packb
from gwp.protocol.report import Report
from pipelines.jobs.resolve import run_uri
from pipelines.training.control.watch import worker_progress
from pipelines.training.prepare import prepare
from pipelines.training.train import train
from serve.app import deploy
from serve.config import ServeApp
from serve.warmup import observation_for
from tests.support.dot import job, write_recordings
from tests.support.tiny import TINY_ARM, make_tiny_bundle
from tests.support.watched import PROMETHEUS, Prometheus, Scraper, prometheus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROBOT = "arm-17-of-the-north-hall"
REPORT = Report(executed=8, blended=2, held=1, dry=1, skipped=1, late=1, failed=1, age_s=0.2)
needs_prometheus = pytest.mark.skipif(
    "not __import__('shutil').which('prometheus')",
    reason="needs a Prometheus; `apt-get install prometheus`, or `make test-observability`",
)


@dataclass
class Watched:
    """What is left when all has happened. begin, end: between which it did"""

    scraper: Scraper
    prometheus: Prometheus | None
    begin: float
    end: float


class Robots:
    """Two that ask well, with little room for their actions; two that do not; and one of another make."""

    def __init__(self, url: str, observation: Observation) -> None:
        self.url = url
        self.observation = replace(observation, prompt="go", robot=ROBOT, report=REPORT)
        self.stop = threading.Event()
        kinds: list[dict[str, object]] = [
            {"deadline_s": 5.0},
            {"deadline_s": 2.0},
            {"deadline_s": 1e-4},
            {"state": observation.state * float("nan")},
        ]
        self.threads = [
            threading.Thread(target=self.ask, args=(fields,), daemon=True) for fields in kinds
        ]
        self.threads.append(threading.Thread(target=self.ask_without_deadline, daemon=True))
        for thread in self.threads:
            thread.start()

    def ask_without_deadline(self) -> None:
        """As a stock client, who is told of a replica that does not come, and not that he is late."""
        images = {
            f"observation/{short_name(name)}": image
            for name, image in self.observation.images.items()
        }
        asked = images | {"observation/state": self.observation.state, "prompt": "go"}
        address = f"http{self.url.removeprefix('ws')}v1/act"
        while not self.stop.wait(0.1):
            # `gwp.client` would not send the second one.
            for message in (asked, asked | {"observed_at": time.time() - 60}):
                with contextlib.suppress(httpx.HTTPError):
                    httpx.post(address, content=packb(message), timeout=10)

    def ask(self, fields: dict[str, object]) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(ClientError), Client(self.url, timeout_s=10) as client:
                while not self.stop.wait(0.1):
                    with contextlib.suppress(ClientError):
                        client.act(replace(self.observation, observed_at=time.time(), **fields))

    def close(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(30)


def serve_app(mini: MiniCluster, folder: Path) -> tuple[ServeApp, Robots]:
    """One replica behind one gateway, of a robot whose actions are nearly always too large."""
    tight = Limits(lower=(-0.001,) * 4, upper=(0.001,) * 4)
    uri = f"{mini.bucket}/observability/bundle"
    storage.upload(
        make_tiny_bundle(folder / "bundle", arm=TINY_ARM.model_copy(update={"limits": tight})), uri
    )
    config = ServeApp.model_validate(
        {
            "policy": uri,
            "port": free_ports(1)[0],
            "gateway": {"pool": "serve", "replicas": 1},
            "replica": {"pool": "serve", "cpus": 0.5},
            "limits": {"request_timeout_s": 3},
        }
    )
    url = deploy(config)
    arm = Policy.load(folder / "bundle").contract.embodiment(None)
    return config, Robots(url, observation_for(arm))


def run_with_losses(mini: MiniCluster) -> None:
    """A run that finds some of its samples gone, and loses a worker on its way."""
    for name, episodes in (("whole", 4), ("torn", 2)):
        write_recordings(f"{mini.bucket}/observability/{name}", episodes)
    sources = [
        f"{{uri: {mini.bucket}/observability/{name}, embodiment: dot}}"
        for name in ("whole", "torn")
    ]
    found = job(
        mini,
        "unused",
        "watched",
        f"data.sources=[{', '.join(sources)}]",
        "run.steps=50",
        "data.max_broken=0.9",
    )
    uri = run_uri(found)
    prepare(found)
    for name in storage.list_files(f"{mini.bucket}/observability/torn"):
        if name.endswith(".mp4"):
            storage.remove(f"{mini.bucket}/observability/torn/{name}")
    killer = threading.Thread(target=kill_one, args=(uri, 20), daemon=True)
    killer.start()
    assert train(found).steps == 50
    killer.join(10)


def kill_one(uri: str, step: int) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        reports = worker_progress(uri)
        if len(reports) == 2 and reports[1]["step"] >= step:
            os.kill(reports[1]["pid"], signal.SIGKILL)
            return
        time.sleep(0.1)


def run_without_a_loss(mini: MiniCluster) -> None:
    """A learning rate after which no loss is finite."""
    found = job(
        mini,
        f"{mini.bucket}/observability/whole",
        "diverged",
        "run.steps=30",
        "optimizer.lr=1e30",
        "optimizer.warmup_steps=0",
        "optimizer.max_skipped=12",
    )
    with pytest.raises(GwpError, match=r"lower optimizer\.lr"):
        train(found)


def kill_replica(app: str) -> None:
    names = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if f"{app}#Replica#" in actor["name"]
    ]
    assert names
    for found in names:
        ray.kill(ray.get_actor(found["name"], namespace=found["namespace"]), no_restart=True)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("observability")
    begin = time.time()
    with pytest.MonkeyPatch.context() as patch:
        # Read by all processes of the cluster; by default agents hear of numbers every ten seconds.
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        with MiniCluster(folder / "mini") as mini, prometheus(folder / "prometheus") as asked:
            mini.connect()
            scraper = Scraper()
            try:
                config, robots = serve_app(mini, folder)
                run_with_losses(mini)
                run_without_a_loss(mini)
                scraper.until(SERVE_REPLICAS.exported, "", 60)
                kill_replica(config.name)
                scraper.until(SERVE_REQUESTS.exported, 'outcome="unavailable"', 60)
                # Two scrapes of what came last.
                time.sleep(5)
                robots.close()
            finally:
                scraper.stop()
                serve.shutdown()
            yield Watched(scraper, asked, begin, time.time())


def test_every_metric_of_the_table_is_emitted(watched: Watched) -> None:
    missing = [
        s for metric in all_metrics() for s in metric.series if s not in watched.scraper.seen
    ]
    assert not missing


def test_labels_are_those_of_the_table_and_none_is_a_robots(watched: Watched) -> None:
    for metric in all_metrics():
        for labels in watched.scraper.seen[metric.series[0]]:
            names = set(re.findall(r'(\w+)="', labels))
            assert set(metric.labels) <= names, f"{metric.name}: {labels}"
            assert ROBOT not in labels


@needs_prometheus
def test_every_panel_has_something_to_show(watched: Watched) -> None:
    assert watched.prometheus
    empty = []
    for dashboard in ALL:
        for panel in dashboard.panels:
            for query in panel.queries:
                expr = query.expr.replace(f"${dashboard.label}", ".*")
                if not watched.prometheus.ask(expr, watched.begin, watched.end):
                    empty.append(f"{dashboard.name}: {panel.title}: {expr}")
    assert not empty


@needs_prometheus
def test_every_alert_is_evaluated_and_has_its_numbers(watched: Watched) -> None:
    assert watched.prometheus
    rules = watched.prometheus.rules()
    assert len(rules) > 10
    for rule in rules:
        assert rule["health"] == "ok", rule.get("lastError")
        # Without the comparison: whatever the numbers are, there are some.
        for side in re.split(r" (?:>|<|==) ", rule["query"]):
            if re.search("[a-z]", side):
                assert watched.prometheus.ask(side, watched.begin, watched.end), side


@needs_prometheus
def test_what_went_wrong_is_seen(watched: Watched) -> None:
    """Alerts whose condition held, for however short a time."""
    assert watched.prometheus
    held = {
        rule["name"]
        for rule in watched.prometheus.rules()
        if watched.prometheus.ask(rule["query"], watched.begin, watched.end)
    }
    assert {
        "GwpBrokenSamples",
        "GwpDeadlineMisses",
        "GwpNoReplica",
        "GwpRobotsRefused",
        "GwpStaleObservations",
        "GwpSafetyViolations",
    } <= held
    assert "GwpVersionMismatch" not in held


@needs_prometheus
def test_dashboards_can_be_drawn(
    watched: Watched, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    assert watched.prometheus
    folder = Path(pytestconfig.getoption("--pictures") or tmp_path)
    for dashboard in ALL:
        file = folder / f"dashboard-{dashboard.name}.png"
        draw(dashboard, watched.prometheus.ask, watched.begin, watched.end, file)
        with Image.open(file) as picture:
            assert picture.width > 1000
            # Lines, and not empty axes alone.
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 200


@needs_prometheus
def test_promtool_takes_rules_and_configuration() -> None:
    for words in (["rules", "alerts.yaml"], ["config", "prometheus.yaml"]):
        done = subprocess.run(
            ["promtool", "check", words[0], str(PROMETHEUS / words[1])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

"""A cluster whose pools have no node: those that train and those that decode come when a run asks for
them, and go when it is over; the endpoint's replicas bring one up under load and give it back.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import ray
from ray import serve

from clusters.services import free_ports
from gwp.client import Client
from gwp.errors import GwpError
from gwp.policy.policy import Policy
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.control.watch import resumptions, worker_progress
from pipelines.training.train import train
from serve.app import deploy, replica_states
from serve.config import ServeApp
from serve.warmup import observation_for
from tests.support.dot import write_recordings
from tests.support.growing import GrowingCluster, pools_now
from tests.support.tiny import make_tiny_bundle
from tests.unit.pipelines.jobs.test_stages import STAGES

WITHIN_S = 120.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrowingCluster]:
    pools = {"train": (2, 2), "data": (2, 2), "serve": (1, 2)}
    cluster = GrowingCluster(tmp_path_factory.mktemp("growing"), pools)
    with cluster.running():
        ray.init(address=cluster.address, namespace="gwp", log_to_driver=False)
        yield cluster


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: {pools_now()}"
        time.sleep(0.2)
    return found


def job(folder: Path, name: str, *more: str) -> TrainJob:
    if not (folder / "set").exists():
        write_recordings(str(folder / "set"))
    sets = [
        f"run.storage={folder / 'runs'}",
        f"run.name={name}",
        "run.steps=60",
        "run.checkpoint_every=60",
        "run.log_every=1",
        "cluster.workers=2",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
        "engine.global_batch=8",
        "init=null",
        "codec={kind: pca, spatial: 8, channels: 24, fit_clips: 16}",
        "text={kind: hashed, dim: 64, rows: 8}",
        "data.canvas={layout: single, width: 32, height: 32}",
        "data.window={chunk: 8, stride: 2}",
        f"data.sources=[{{uri: {folder / 'set'}, embodiment: dot}}]",
        "data.embodiments={dot: {replan: 4}}",
        *more,
    ]
    return load_config(STAGES / "policy.yaml", TrainJob, sets)


class Watched:
    """Nodes of each pool at most, while the block lasts."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for pool, count in pools_now().items():
                self.most[pool] = max(self.most.get(pool, 0), count)

    def __enter__(self) -> Self:
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watching.join(30)


def test_a_run_waits_for_machines_says_so_trains_and_gives_them_back(
    growing: GrowingCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pools_now() == {}
    begin = time.monotonic()
    with Watched() as watched:
        result = train(job(tmp_path, "grown"))
    most = watched.most
    took = time.monotonic() - begin
    assert result.steps == 60
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    print(f"trained {took:.0f} s after it was asked for, with {most} nodes")
    (waiting,) = [event["text"] for event in events if event["event"] == "waiting"]
    assert "2 workers with 1 CPU each in pool 'train', 1 CPU for decoding in pool 'data'" in waiting
    assert "there are 1 in pool 'head' with 1 CPU" in waiting
    assert [event for event in events if event["event"] == "machines"]
    # Each by what it needs: two workers find place on one node.
    assert most["train"] == 1
    assert most["data"] == 1
    assert "serve" not in most
    begin = time.monotonic()
    until(lambda: not pools_now(), "nodes leave")
    print(f"the last node left {time.monotonic() - begin:.0f} s after the end")
    # A finished run needs none of them.
    assert train(job(tmp_path, "grown")).run_id == result.run_id
    assert pools_now() == {}


def test_more_decoding_brings_nodes_of_its_own_pool_alone(
    growing: GrowingCluster, tmp_path: Path
) -> None:
    """Four processes that decode do not fit onto one node of two cores."""
    with Watched() as watched:
        result = train(job(tmp_path, "decodes", "cluster.decode_tasks=4", "run.steps=200"))
    assert result.steps == 200
    assert watched.most == {"train": 1, "data": 2}
    until(lambda: not pools_now(), "nodes leave")


def test_an_elastic_run_begins_with_what_comes_first_and_asks_for_more(
    growing: GrowingCluster, tmp_path: Path
) -> None:
    """A worker has a whole node: it begins with one, and goes on with two once the second is there."""
    more = ["cluster.workers=[1, 2]", "cluster.cpus_per_worker=2", "cluster.resize_every_s=2"]
    steps = ["run.steps=1500", "run.checkpoint_every=1500"]
    elastic = job(tmp_path, "elastic", *more, *steps)
    worlds: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            count = len(worker_progress(elastic.run.uri))
            if count and worlds[-1:] != [count]:
                worlds.append(count)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        with Watched() as watched:
            result = train(elastic)
    finally:
        over.set()
        watching.join(30)
    assert result.steps == 1500
    print(f"workers {worlds}, nodes {watched.most}, resumed {resumptions(elastic.run.uri)}")
    assert watched.most["train"] == 2
    assert worlds[-1] == 2
    until(lambda: not pools_now(), "nodes leave")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["cluster.cpus_per_worker=3"], "2 workers with 3 CPU each in pool 'train'"),
        (["cluster.data_pool=nowhere"], "1 CPU for decoding in pool 'nowhere'"),
    ],
)
def test_machines_that_can_never_come_are_told(
    growing: GrowingCluster, tmp_path: Path, more: list[str], words: str
) -> None:
    with pytest.raises(
        GwpError, match=rf"can never have this together: .*{words}.*\. Its autoscaler"
    ):
        train(job(tmp_path, "never", *more))
    assert not (tmp_path / "runs" / "never" / "job.json").exists()


def test_replicas_bring_a_node_up_under_load_and_give_it_back(
    growing: GrowingCluster, tmp_path: Path
) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    policy = Policy.load(folder)
    config = ServeApp.model_validate(
        {
            "policy": str(folder),
            "port": free_ports(1)[0],
            "gateway": {"replicas": 1, "pool": "head"},
            "replica": {"pool": "serve", "cpus": 1},
            "autoscaling": {
                "max_replicas": 2,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 1,
                "downscale_delay_s": 3,
            },
        }
    )
    observation = replace(observation_for(next(iter(policy.contract.embodiments.values()))))
    begin = time.monotonic()
    url = deploy(config)
    print(f"answers {time.monotonic() - begin:.0f} s after it was deployed on no node")
    over = threading.Event()
    failed: list[BaseException] = []

    def robot() -> None:
        try:
            with Client(url) as client:
                while not over.is_set():
                    client.act(observation)
        except BaseException as error:  # noqa: BLE001  raised below
            failed.append(error)

    robots = [threading.Thread(target=robot, daemon=True) for _ in range(6)]
    try:
        assert pools_now() == {"serve": 1}
        for thread in robots:
            thread.start()
        begin = time.monotonic()
        until(lambda: replica_states(config.name).running == 2 or failed, "a second replica")
        print(f"a second replica {time.monotonic() - begin:.0f} s after the load came")
        assert pools_now() == {"serve": 2}
        over.set()
        for thread in robots:
            thread.join(30)
        begin = time.monotonic()
        until(lambda: pools_now() == {"serve": 1}, "a node goes back")
        print(f"its node left {time.monotonic() - begin:.0f} s after the load went")
        # What is left goes on.
        with Client(url) as client:
            client.act(observation)
    finally:
        over.set()
        serve.shutdown()
    assert not failed
    until(lambda: not pools_now(), "nodes leave")


def test_a_pool_that_no_node_can_be_of_is_told_while_the_endpoint_waits(
    growing: GrowingCluster, tmp_path: Path
) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    replica = {"pool": "nowhere", "cpus": 1}
    config = ServeApp.model_validate(
        {
            "policy": str(folder),
            "port": free_ports(1)[0],
            "replica": replica,
            # Serve says it after half a minute.
            "start_timeout_s": 40,
        }
    )
    told: list[str] = []
    try:
        with pytest.raises(GwpError, match="not ready after 40 s"):
            deploy(config, told.append)
    finally:
        serve.shutdown()
    print(told)
    assert len(told) == 1
    assert "scheduled" in told[0]
    assert pools_now() == {}

"""What happens to an endpoint under robots: processes are killed, replicas follow the load, another
policy is rolled out.
"""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import serve

from clusters.mini import MiniCluster
from clusters.services import free_ports
from gwp import storage
from gwp.client import Client
from gwp.errors import GwpError
from gwp.policy.bundle import seal
from serve.app import deploy, replica_counts, replica_states
from serve.config import ServeApp
from tests.cluster.conftest import Endpoint

pytestmark = pytest.mark.timeout(900)
WAIT_S = 180


def kill_one(deployment: str) -> None:
    names = [
        a for a in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in a["name"]
    ]
    ray.kill(ray.get_actor(names[0]["name"], namespace=names[0]["namespace"]), no_restart=True)


@pytest.mark.parametrize("deployment", ["Replica", "Gateway"])
def test_no_request_is_lost_when_a_process_is_killed_under_load(
    endpoint: Endpoint, deployment: str
) -> None:
    stop, answered = threading.Event(), [0] * 4
    expected = [
        endpoint.policy.act(replace(endpoint.observation, seed=seed)).actions for seed in range(4)
    ]

    def robot(seed: int) -> None:
        with endpoint.client(timeout_s=WAIT_S) as client:
            while not stop.is_set():
                chunk = client.act(replace(endpoint.observation, seed=seed))
                assert np.allclose(chunk.actions, expected[seed], atol=1e-4)
                answered[seed] += 1

    def reached(count: int) -> None:
        goal, deadline = [n + count for n in answered], time.monotonic() + WAIT_S
        while any(n < g for n, g in zip(answered, goal, strict=True)) and not any(
            r.done() for r in robots
        ):
            assert time.monotonic() < deadline, f"{answered} of {goal}"
            time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        robots = [pool.submit(robot, seed) for seed in range(4)]
        try:
            reached(5)
            kill_one(deployment)
            reached(10)
        finally:
            stop.set()
        for done in robots:
            done.result(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while replica_counts(endpoint.config.name) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_replicas_follow_the_load_and_nobody_notices(endpoint: Endpoint) -> None:
    """More while robots wait, fewer when they are gone, and one robot that asks all the time."""
    scale = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1}
    config = ServeApp.model_validate(
        endpoint.config.model_dump(exclude={"api_keys_env"})
        | {
            "name": "scaling",
            "port": free_ports(1)[0],
            "gateway": {"pool": "serve", "replicas": 1},
            "autoscaling": scale | {"upscale_delay_s": 1, "downscale_delay_s": 3},
        }
    )
    url = deploy(config)
    crowd_over, over = threading.Event(), threading.Event()

    def robot(until: threading.Event) -> int:
        answered = 0
        with Client(url, timeout_s=WAIT_S) as client:
            while not until.is_set():
                client.act(endpoint.observation)
                answered += 1
        return answered

    def reached(count: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while replica_counts("scaling") != count:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with ThreadPoolExecutor(7) as pool:
        steady = pool.submit(robot, over)
        crowd = [pool.submit(robot, crowd_over) for _ in range(6)]
        try:
            begin = time.monotonic()
            while not sum(replica_states("scaling")) > 1:
                assert time.monotonic() < begin + WAIT_S
                time.sleep(0.02)
            print(f"another replica was asked for after {time.monotonic() - begin:.1f} s")
            reached(2)
            crowd_over.set()
            reached(1)
        finally:
            crowd_over.set()
            over.set()
        assert all(one.result(WAIT_S) > 0 for one in [steady, *crowd])
    serve.delete("scaling")


def test_altered_weights_never_take_traffic_and_the_reason_is_told(
    endpoint: Endpoint, mini: MiniCluster, tmp_path: Path
) -> None:
    folder = storage.download(endpoint.config.policy, tmp_path / "altered")
    (folder / "lineage.json").write_text('{"note": "another id, so that no cached copy is used"}')
    seal(folder)
    uri = f"{mini.bucket}/serve/altered"
    storage.upload(folder, uri)
    name = next(
        n for n in storage.list_files(uri) if n.startswith("model/") and n.endswith(".safetensors")
    )
    storage.write_bytes(f"{uri}/{name}", storage.read_bytes(f"{uri}/{name}")[:-1] + b"\xff")
    with endpoint.client(timeout_s=WAIT_S) as client:
        with pytest.raises(GwpError, match="was altered"):
            deploy(endpoint.config.model_copy(update={"policy": uri}))
        assert client.act(endpoint.observation).policy_id == endpoint.policy.id
        deploy(endpoint.config)
        assert client.act(endpoint.observation).policy_id == endpoint.policy.id
    assert replica_counts(endpoint.config.name) == 2


def test_another_policy_is_rolled_out_under_running_robots(
    endpoint: Endpoint, mini: MiniCluster, tmp_path: Path
) -> None:
    folder = storage.download(endpoint.config.policy, tmp_path / "next")
    (folder / "lineage.json").write_text('{"note": "the next version"}')
    new_id = seal(folder)
    uri = f"{mini.bucket}/serve/next"
    storage.upload(folder, uri)
    seen: list[str] = []
    stop = threading.Event()

    def robot() -> None:
        with endpoint.client(timeout_s=WAIT_S) as client:
            while not stop.is_set():
                chunk = client.act(endpoint.observation)
                if not seen or seen[-1] != chunk.policy_id:
                    seen.append(chunk.policy_id)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(robot)
        try:
            deploy(endpoint.config.model_copy(update={"policy": uri}))
            deadline = time.monotonic() + WAIT_S
            while new_id not in seen and not running.done():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            stop.set()
        running.result(WAIT_S)
    assert seen[-1] == new_id
    with endpoint.client() as client:
        assert client.metadata["policy_id"] == new_id


def test_the_verb_serves_until_interrupted_and_leaves_nothing(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    serve.delete(endpoint.config.name)
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "serve",
        "--policy",
        str(endpoint.folder),
        "--set",
        f"port={endpoint.config.port}",
        "--set",
        "name=verb",
        "--set",
        "replica.cpus=0.5",
        "--set",
        "autoscaling.max_replicas=1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = next((line for line in process.stderr if '"serving"' in line), "")
        assert endpoint.url in said
        with Client(endpoint.url, timeout_s=WAIT_S) as client:
            assert client.act(endpoint.observation).policy_id == endpoint.policy.id
        act = [sys.executable, "-m", "pipelines.cli", "act", "--url", endpoint.url]
        assert (
            endpoint.policy.id
            in subprocess.run(act, capture_output=True, text=True, check=True).stdout
        )
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, rest
    finally:
        process.kill()
    assert "verb" not in serve.status().applications

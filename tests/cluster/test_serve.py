"""The endpoint on a real Ray cluster, under the clients that robots use and under what happens
to fleets.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from clusters.mini import MiniCluster
from clusters.services import free_ports
from gwp import storage
from gwp.client import ChunkBuffer, Client, ClientError, Observation
from gwp.errors import GwpError
from gwp.policy.bundle import seal
from gwp.policy.policy import Policy
from gwp.protocol.handshake import short_name
from gwp.protocol.msgpack_numpy import packb, unpackb
from serve.app import deploy, replica_counts, replica_states
from serve.config import ServeApp
from serve.warmup import observation_for
from tests.support.tiny import make_tiny_bundle

KEY = "robot-key"
WAIT_S = 180
pytestmark = pytest.mark.timeout(900)
# Before the cluster starts: gateways read their keys from the environment of their node.
os.environ["GWP_TEST_KEYS"] = f"other,{KEY}"


@dataclass
class Endpoint:
    config: ServeApp
    url: str
    folder: Path
    policy: Policy
    observation: Observation

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.config.port}"

    def client(self, **options: object) -> Client:
        return Client(self.url, api_key=KEY, **options)  # type: ignore[arg-type]

    def raw(self) -> dict[str, object]:
        """The observation as a stock client would write it."""
        images = {
            f"observation/{short_name(name)}": image
            for name, image in self.observation.images.items()
        }
        return {
            **images,
            "observation/state": self.observation.state.astype(np.float64),
            "prompt": "go",
            "seed": 3,
        }


@pytest.fixture(scope="module")
def endpoint(mini: MiniCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = make_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    uri = f"{mini.bucket}/serve/bundle"
    storage.upload(folder, uri)
    policy = Policy.load(folder)
    config = ServeApp.model_validate(
        {
            "policy": uri,
            "port": free_ports(1)[0],
            "api_keys_env": "GWP_TEST_KEYS",
            "gateway": {"pool": "serve"},
            "replica": {"pool": "serve", "cpus": 0.5},
            "autoscaling": {"min_replicas": 2, "max_replicas": 2, "metrics_interval_s": 0.5},
            "engine": {"slots": 4},
            "limits": {"request_timeout_s": 20},
        }
    )
    embodiment = next(iter(policy.contract.embodiments.values()))
    yield Endpoint(
        config,
        deploy(config),
        folder,
        policy,
        replace(observation_for(embodiment), prompt="go", seed=3),
    )
    serve.shutdown()


def kill_one(deployment: str) -> None:
    names = [
        a for a in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in a["name"]
    ]
    ray.kill(ray.get_actor(names[0]["name"], namespace=names[0]["namespace"]), no_restart=True)


def test_the_stock_openpi_client_works_unchanged(endpoint: Endpoint) -> None:
    stock = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="openpi-client is not installed"
    )
    client = stock.WebsocketClientPolicy("127.0.0.1", endpoint.config.port, api_key=KEY)
    assert client.get_server_metadata()["policy_id"] == endpoint.policy.id
    first, second = client.infer(endpoint.raw()), client.infer(endpoint.raw())
    expected = endpoint.policy.act(endpoint.observation).actions
    assert np.allclose(first["actions"], expected, atol=1e-5)
    assert np.array_equal(first["actions"], second["actions"])
    assert first["server_timing"]["infer_ms"] >= first["policy_timing"]["infer_ms"] > 0
    assert "prev_total_ms" in second["server_timing"]
    with pytest.raises(RuntimeError, match="state: got NaN"):
        client.infer(endpoint.raw() | {"observation/state": endpoint.observation.state * np.nan})
    assert np.array_equal(client.infer(endpoint.raw())["actions"], first["actions"])


def test_a_chunk_from_afar_is_the_chunk_computed_here(endpoint: Endpoint) -> None:
    embodiment = endpoint.policy.contract.embodiment(None)
    expect = {
        "fps": embodiment.fps,
        "action_names": embodiment.action_names,
        "cameras": list(embodiment.cameras.values()),
    }
    with endpoint.client(embodiment=embodiment.name, expect=expect) as client:
        chunk = client.act(endpoint.observation)
        assert client.healthz()
    here = endpoint.policy.act(endpoint.observation)
    assert np.allclose(chunk.actions, here.actions, atol=1e-5)
    assert (chunk.policy_id, chunk.flags, chunk.valid_from) == (
        here.policy_id,
        here.flags,
        here.valid_from,
    )
    assert {"vae", "denoise", "total", "server"} <= chunk.timings.keys()


def test_robots_in_one_batch_get_their_own_answers_also_beside_a_bad_one(
    endpoint: Endpoint,
) -> None:
    def robot(seed: int) -> bool:
        with endpoint.client() as client:
            for _ in range(5):
                if seed == 0:
                    with pytest.raises(ClientError, match="state: got NaN"):
                        client.act(
                            replace(endpoint.observation, state=endpoint.observation.state * np.nan)
                        )
                    continue
                expected = endpoint.policy.act(replace(endpoint.observation, seed=seed)).actions
                assert np.allclose(
                    client.act(replace(endpoint.observation, seed=seed)).actions,
                    expected,
                    atol=1e-4,
                )
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(robot, range(6)))


def test_real_time_chunking_over_the_wire_keeps_what_was_committed(endpoint: Endpoint) -> None:
    embodiment = endpoint.policy.contract.embodiment(None)
    with endpoint.client() as client:
        first = client.act(endpoint.observation)
        prefix = first.actions[1:]
        second = client.act(replace(endpoint.observation, prefix_actions=prefix, delay=2))
        assert second.valid_from == 2
        assert np.allclose(second.actions[:2], prefix[:2], atol=1e-3)
        with ChunkBuffer(client.act, replan=1, delay=1) as buffer:
            rows = [buffer.next_action(lambda: endpoint.observation) for _ in range(6)]
    assert all(row.shape == (len(embodiment.action_names),) for row in rows)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?fps=1", "at 1 Hz"),
        ("?embodiment=hand", "'hand'"),
        ("?action_names=a,b", "action_names"),
        ("?cameras=none", "needs camera"),
    ],
)
def test_a_robot_that_does_not_match_is_refused_at_the_handshake(
    endpoint: Endpoint, query: str, words: str
) -> None:
    with pytest.raises(ClientError, match=words):
        Client(endpoint.url + query, api_key=KEY, timeout_s=10)


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_a_key_nothing_but_health_is_told(endpoint: Endpoint, key: str | None) -> None:
    with pytest.raises(ClientError, match="check the API key"):
        Client(endpoint.url, api_key=key, timeout_s=10)
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    assert httpx.get(f"{endpoint.http}/healthz").text == "OK\n"
    assert httpx.get(f"{endpoint.http}/v1/policy", headers=headers).status_code == 401
    assert (
        httpx.post(
            f"{endpoint.http}/v1/act", content=packb(endpoint.raw()), headers=headers
        ).status_code
        == 401
    )


def test_the_http_door_gives_the_same_chunk_and_clear_refusals(endpoint: Endpoint) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=WAIT_S) as http:
        assert http.get(f"{endpoint.http}/v1/policy").json()["policy_id"] == endpoint.policy.id
        reply = http.post(f"{endpoint.http}/v1/act", content=packb(endpoint.raw()))
        assert reply.status_code == 200
        assert np.allclose(
            unpackb(reply.content)["actions"],
            endpoint.policy.act(endpoint.observation).actions,
            atol=1e-5,
        )
        for body, status, code in [
            (b"\xc1", 400, "protocol"),
            (packb([1]), 400, "protocol"),
            (packb({"prompt": "go"}), 422, "observation"),
            (packb(endpoint.raw() | {"deadline_s": 1e-4}), 504, "deadline"),
            (bytes(17 << 20), 400, "protocol"),
        ]:
            reply = http.post(f"{endpoint.http}/v1/act", content=body)
            assert (reply.status_code, reply.json()["code"]) == (status, code)
            assert "Traceback" not in reply.text


def test_the_fields_of_vllm_omni_are_understood(endpoint: Endpoint) -> None:
    with Client(endpoint.url + "v1/realtime/robot/openpi", api_key=KEY) as omni:
        assert omni.infer({"endpoint": "reset", "session_id": "s"}) == {
            "status": "reset successful"
        }
        assert (
            omni.infer({"endpoint": "infer", "session_id": "s"} | endpoint.raw())["policy_id"]
            == endpoint.policy.id
        )
        with pytest.raises(ClientError, match="is not served here"):
            omni.act(replace(endpoint.observation, policy="another"))


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

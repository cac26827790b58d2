"""The endpoint on a real Ray cluster, under the clients that robots use."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import httpx
import numpy as np
import psutil
import pytest

from gwp.client import ChunkBuffer, Client, ClientError
from gwp.protocol.msgpack_numpy import packb, unpackb
from tests.cluster.conftest import KEY, Endpoint

pytestmark = pytest.mark.timeout(900)
WAIT_S = 180


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


def test_who_answers_robots_stands_behind_nothing_that_starts_beside_it(endpoint: Endpoint) -> None:
    titles = [f"ray::ServeReplica:{endpoint.config.name}:{part}" for part in ("Replica", "Gateway")]
    workers = [p for p in psutil.process_iter() if p.name().startswith("ray::ServeRepl")]
    found = {title: [p for p in workers if title in " ".join(p.cmdline())] for title in titles}
    assert all(found.values())
    for process in chain(*found.values()):
        starts_others = process.parent()
        assert starts_others is not None
        assert process.nice() == starts_others.nice()


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
        told = omni.infer({"endpoint": "reset", "session_id": "s"})
        assert told["status"] == "reset successful"
        assert (
            omni.infer({"endpoint": "infer", "session_id": "s"} | endpoint.raw())["policy_id"]
            == endpoint.policy.id
        )
        with pytest.raises(ClientError, match="another is asked for") as caught:
            omni.act(replace(endpoint.observation, policy="another"))
        assert caught.value.code == "gone"

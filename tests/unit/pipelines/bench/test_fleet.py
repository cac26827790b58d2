"""What `gwp bench fleet` reckons from what robots saw."""

import asyncio
from pathlib import Path

import pytest

from gwp.policy.batching.engine import Engine
from gwp.policy.contract import PolicyContract
from gwp.policy.policy import Policy
from pipelines.bench.act.sizes import Arm
from pipelines.bench.fleet import bench, faults
from pipelines.bench.fleet.bundle import random_bundle
from pipelines.bench.fleet.faults import Fault
from pipelines.bench.fleet.robots import Log, drive
from pipelines.bench.fleet.show import table
from serve.config import ServeApp
from serve.endpoint import Endpoint
from serve.guarded import GuardedEngine
from serve.identity import Identity
from serve.loop import LoopThread


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    random_bundle(folder, "tiny", 2)
    return folder


def test_a_note_makes_another_policy_of_the_same_weights(bundle: Path, tmp_path: Path) -> None:
    assert random_bundle(tmp_path, "tiny", 2, "note") != Policy.load(bundle).id
    assert (tmp_path / "model/config.json").read_bytes() == (
        bundle / "model/config.json"
    ).read_bytes()


@pytest.mark.parametrize("arm", ["joint", "video-first", "latent-frame"])
def test_policies_that_act_with_a_future_are_measured_too(tmp_path: Path, arm: Arm) -> None:
    random_bundle(tmp_path, "tiny", 2, arm=arm)
    said = PolicyContract.read(str(tmp_path)).metadata()
    assert said["batching"] == "requests"
    frames = arm == "latent-frame"
    assert said["visibility"] == ("joint" if frames else arm)
    assert said["action_form"] == ("latent-frame" if frames else "tokens")


def test_robots_ask_the_endpoint_and_say_how_it_went(bundle: Path) -> None:
    policy, thread = Policy.load(bundle), LoopThread("test")
    app = ServeApp(policy=str(bundle)).model_copy(update={"port": 0})
    with Engine(policy) as engine:
        who = Identity(policy_id=policy.id)
        endpoint = Endpoint(GuardedEngine(engine, 60), policy.contract, who, app, thread)
        url = f"ws://127.0.0.1:{endpoint.port}"
        plan = bench.Plan(seconds=0.5)
        told = asyncio.run(drive(bench.crowd_for(bundle, plan, 3, url)))
        thread.run(endpoint.close(), 20)
    thread.close()
    assert told["robots"] == 3
    assert told["requests"] == len(told["answered"]) > 3
    assert told["failed"] == 0
    assert told["policies"] == {policy.id: told["requests"]}
    assert 0 < told["ms"]["p50"] <= told["ms"]["p99"] <= told["ms"]["max"]
    assert told["age_ms"]["p50"] <= told["ms"]["max"]


def test_answers_a_second_are_those_while_all_asked() -> None:
    log = Log(begins=[10.0, 12.0], ends=[20.0, 22.0])
    log.answered = [(when / 10, 0) for when in range(100, 221)]
    assert log.per_s == pytest.approx(10, rel=0.05)


def test_a_silence_is_the_longest_of_any_robot_while_a_fault_lasted() -> None:
    # One robot is answered every tenth of a second, the other waits for two around the fault.
    steady = [(when / 10, 1) for when in range(400)]
    other = [(when / 10, 2) for when in range(400) if not 100 < when < 120]
    # Longer than any, but long after.
    late = [(60.0, 1), (90.0, 1)]
    found = faults._silence(Fault("killed", 10.5, 13.0), [*steady, *other, *late])
    assert found == {"name": "killed", "silence_s": 2.0, "took_s": 2.5}


def test_the_table_shows_every_crowd_beside_its_rival() -> None:
    ms = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0}
    row = {"robots": 4, "per_s": 50.0, "ms": ms, "age_ms": {}, "failed": 0, "missed": 0}
    row |= {"errors": {}, "silence_s": 0.1}
    ours = row | {"per_s": 100.0, "batch": 2.0, "replicas": [(0.0, 1), (1.5, 2)]}
    text = table(
        {
            "size": "tiny",
            "visibility": "joint",
            "replicas": 1,
            "slots": 8,
            "threads": 1,
            "rate_hz": 0.0,
            "hardware": "two cores",
            "torch": "2",
            "picture": [240, 278, 3],
            "bare_ms_p50": 0.5,
            "by_robots": {"4": {"one_at_a_time": row, "inline": ours}},
            "by_gateway": {"inline": {"overhead_ms_p50": 0.5, "vs_one_at_a_time": {"4": 2.0}}},
        }
    )
    assert "one_at_a_time" in text
    assert "replicas 1 at 0 s, 2 at 1.5 s" in text
    assert "by robots: 4: 2.00" in text

"""The fleet's robots against a peer on loopback: who waits for a replica, and what a fleet that
ends early leaves behind.
"""

from typing import Any

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.sim.metaworld import EMBODIMENT
from pipelines.evaluation.fleet import Robot, run_fleet
from tests.unit.gwp.client.test_client import METADATA, Peer, url

pytest.importorskip("metaworld", reason="the sim extra is not installed")

TASK = "handle-press-v3"
STILL = {"actions": np.zeros((12, 4), np.float32), "policy_id": "abc"}
CROWD_ASKS = 3


@pytest.fixture
def peer() -> Any:
    peer = Peer(METADATA | {"embodiments": {EMBODIMENT.name: {}}, "embodiment": EMBODIMENT.name})
    peer.answer = lambda _: STILL
    peer.start()
    yield peer
    peer.stop()


@pytest.mark.slow
def test_a_crowd_asks_until_a_replica_has_come_and_then_acts(peer: Peer) -> None:
    """One robot acts from the start, one gathers: the replica that its load is for comes after
    three of its requests.
    """
    robots = [Robot("first", TASK, (1,)), Robot("crowd", TASK, (2, 3), gathers=True)]
    done: list[str] = []
    samples: list[int] = []

    def replicas() -> tuple[int, int]:
        samples.append(len(peer.requests))
        if len(samples) == 1 or len(done) == 3:
            return 1, 0
        # An episode of 12 steps in turns of 6 asks twice.
        return (2, 0) if len(peer.requests) >= 2 + CROWD_ASKS else (1, 1)

    result = run_fleet(
        url(peer),
        robots,
        "metaworld",
        replan=6,
        max_steps=12,
        timeout_s=200,
        replicas=replicas,
        patience_s=150,
        settle_s=60,
        on_event=lambda r: done.__setitem__(slice(None), [e["robot"] for e in r.episodes]),
    )
    assert (result.errors, result.failed) == ([], 0)
    assert sorted((e["robot"], e["seed"]) for e in result.episodes) == [
        ("crowd", 2),
        ("crowd", 3),
        ("first", 1),
    ]
    gathering = [r for r in result.requests if r["gathering"]]
    assert {r["robot"] for r in gathering} == {"crowd"}
    assert len(gathering) >= CROWD_ASKS
    up = result.scaling["up_s"]
    assert up is not None
    acting = [r["t"] for r in result.requests if r["robot"] == "crowd" and not r["gathering"]]
    assert len(acting) == 4
    assert min(acting) > max(r["t"] for r in gathering)
    assert result.scaling["down_s"] > up
    # It waited in its starting pose: the same observation again and again.
    states = [request["state"] for request in peer.requests if "seed" not in request]
    assert len(states) == len(gathering)
    assert all(np.array_equal(state, states[0]) for state in states)


@pytest.mark.slow
def test_a_fleet_whose_time_is_over_says_so_and_keeps_what_it_saw(peer: Peer) -> None:
    """No replica ever comes, and the robots would ask for ever: the crowd's patience is longer
    than the fleet's time.
    """
    robots = [Robot("first", TASK, (1,)), Robot("crowd", TASK, (2,), gathers=True)]
    result = run_fleet(
        url(peer),
        robots,
        "metaworld",
        replan=6,
        max_steps=12,
        timeout_s=8,
        replicas=lambda: (1, 0),
        patience_s=900,
    )
    assert result.errors == ["1 robots were not done after 8 s"]
    assert [e["robot"] for e in result.episodes] == ["first"]
    assert result.scaling == {"asked_s": None, "up_s": None, "down_s": None}
    assert result.failed == 1


# Less than robots wait for each other.
@pytest.mark.timeout(200)
def test_a_robot_that_cannot_start_ends_the_wait_and_is_named(peer: Peer) -> None:
    robots = [Robot("good", TASK, (1,)), Robot("bad", "no-such-task", (2,))]
    with pytest.raises(GwpError, match=r"did not get ready: bad: .*no-such-task"):
        run_fleet(url(peer), robots, "metaworld", replan=6, max_steps=12, timeout_s=200)

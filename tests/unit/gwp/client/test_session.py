"""The rules of an exchange against a scripted endpoint and a clock that the test turns."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gwp.client import ActionChunk, ClientError, Observation
from gwp.client.connection.session import Session
from gwp.client.connection.steps import Exchange, LinkLostError, Open
from gwp.protocol.msgpack_numpy import unpackb
from tests.support.scripted import ABOUT, OURS, SEEN, Endpoint, act, chunk_for, error


def test_a_reply_under_another_number_is_waited_past() -> None:
    def answer(request: dict[str, Any]) -> Any:
        other = chunk_for(request, actions=np.ones((4, 2))) | {"request_id": "somebody-1"}
        unnamed = {"actions": np.ones((4, 2)), "policy_id": "a" * 64}
        return [other, unnamed, chunk_for(request)]

    endpoint = Endpoint(OURS, answer)
    session = endpoint.session()
    for n in range(3):
        chunk = act(endpoint, session)
        assert not chunk.actions.any()
        assert chunk.request_id == endpoint.requests[n]["request_id"]
    assert session.dropped == 6
    assert len({request["request_id"] for request in endpoint.requests}) == 3


def test_an_error_that_could_name_no_request_is_the_answer() -> None:
    endpoint = Endpoint(OURS, lambda _: error("protocol"))
    with pytest.raises(ClientError) as caught:
        act(endpoint, endpoint.session())
    assert caught.value.code == "protocol"
    assert endpoint.opened == 1


def test_a_stock_server_is_sent_nothing_it_does_not_know() -> None:
    endpoint = Endpoint({}, lambda _: {"actions": np.zeros((4, 2))})
    session = endpoint.session()
    session.episode("one")
    act(endpoint, session, replace(SEEN, executed_action=np.zeros(2), rate=50.0, steps_left=3))
    assert set(endpoint.requests[0]) == {"images", "state", "prompt"}


def test_a_wait_that_the_endpoint_asks_for_is_kept() -> None:
    replies = iter([error("busy", retry_after_s=1.5), error("limit", retry_after_s=0.7), None])
    endpoint = Endpoint(OURS, lambda r: next(replies) or chunk_for(r))
    act(endpoint, endpoint.session(max_age_s=9))
    assert 1.5 <= endpoint.pauses[0] <= 1.8
    assert 0.7 <= endpoint.pauses[1] <= 0.84
    assert endpoint.opened == 1


def test_pauses_grow_and_never_two_robots_keep_step() -> None:
    def all_pauses() -> list[float]:
        endpoint = Endpoint(OURS, lambda _: error("busy"))
        with pytest.raises(ClientError, match="no"):
            act(endpoint, endpoint.session(timeout_s=20, max_age_s=math.inf))
        return endpoint.pauses

    first, second = all_pauses(), all_pauses()
    assert first != second
    for i, pause in enumerate(first):
        assert 0.5 * min(0.1 * 2**i, 2) <= pause <= 1.5 * min(0.1 * 2**i, 2)
    assert sum(first) < 20


@pytest.mark.parametrize("failing", [LinkLostError("gone"), error("busy")])
def test_an_observation_that_got_too_old_is_not_sent_again(failing: Any) -> None:
    endpoint = Endpoint(OURS, lambda _: failing)
    with pytest.raises(ClientError, match=r"0\.5 s are allowed") as caught:
        act(endpoint, endpoint.session(), max_age_s=0.5)
    assert caught.value.code == "stale"
    assert caught.value.passing
    # What will not be sent is not waited for, either.
    assert endpoint.now < 50 + 0.5 + 2 * endpoint.latency
    assert len(endpoint.requests) > 1


@pytest.mark.parametrize("known", [OURS, {}, OURS | {"max_age_s": 2.0}])
def test_some_bound_of_age_holds_when_nobody_gives_one(known: dict[str, Any]) -> None:
    endpoint = Endpoint(known, lambda _: LinkLostError("gone"))
    with pytest.raises(ClientError) as caught:
        act(endpoint, endpoint.session(timeout_s=100))
    assert caught.value.code == "stale"
    assert endpoint.now - 50 < known.get("max_age_s", 10.0)


def test_an_observation_that_is_old_already_is_not_sent_at_all() -> None:
    endpoint = Endpoint(OURS, chunk_for)
    old = replace(SEEN, observed_at=ABOUT + endpoint.now - 3)
    with pytest.raises(ClientError, match=r"3.0\d s old"):
        act(endpoint, endpoint.session(), old, max_age_s=1.0)
    assert not endpoint.requests


def test_an_answer_to_what_was_seen_too_long_ago_is_none() -> None:
    endpoint = Endpoint(OURS, chunk_for)
    endpoint.latency = 0.4
    with pytest.raises(ClientError) as caught:
        act(endpoint, endpoint.session(), max_age_s=0.5)
    assert caught.value.code == "stale"


def test_who_can_observe_is_asked_anew_before_each_try() -> None:
    looks = []

    def observe() -> Observation:
        looks.append(endpoint.now)
        return replace(SEEN, prompt=f"look {len(looks)}")

    replies = iter([LinkLostError("gone"), error("busy"), error("stale"), None])
    endpoint = Endpoint(OURS, lambda r: next(replies) or chunk_for(r))
    act(endpoint, endpoint.session(), observe, max_age_s=0.2)
    assert [request["prompt"] for request in endpoint.requests] == [
        f"look {n}" for n in (1, 2, 3, 4)
    ]
    # Each is sent with the time at which it was made.
    assert [request["observed_at"] - ABOUT for request in endpoint.requests] == pytest.approx(looks)


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 0.25, 86400.0])
def test_the_endpoint_is_told_its_own_time(ahead: float) -> None:
    endpoint = Endpoint(OURS, chunk_for)
    endpoint.ahead = ahead
    endpoint.metadata = OURS | {"time": ABOUT + endpoint.now + ahead}
    session = endpoint.session()
    endpoint.drive(session.connect())
    assert session.clock.offset_s == pytest.approx(ahead, abs=1e-3)
    made = endpoint.now - 0.1
    chunk = act(endpoint, session, replace(SEEN, observed_at=ABOUT + made))
    assert endpoint.requests[0]["observed_at"] == pytest.approx(ABOUT + made + ahead, abs=1e-3)
    assert chunk.observation_age_s == pytest.approx(0.12)


def test_the_way_that_took_least_tells_the_time() -> None:
    endpoint = Endpoint(OURS | {"time": ABOUT + 50 + 7.3}, chunk_for)
    endpoint.ahead = 7.0
    latencies = iter([0.3, 0.004, 0.2])
    original = endpoint.exchange

    def uneven(step: Exchange) -> bytes:
        endpoint.latency = 0.0
        if step.data is not None and unpackb(step.data).get("endpoint") == "clock":
            # All of it on the way back: the worst case.
            reply = original(step)
            endpoint.now += next(latencies)
            return reply
        return original(step)

    endpoint.exchange = uneven  # type: ignore[method-assign]
    session = endpoint.session()

    endpoint.metadata = OURS | {"time": ABOUT + 40.0}
    original_open = endpoint.do

    def slow_open(step: Any) -> Any:
        if isinstance(step, Open):
            endpoint.now += 1.0
        return original_open(step)

    endpoint.do = slow_open  # type: ignore[method-assign]
    endpoint.drive(session.connect())
    assert session.clock.offset_s == pytest.approx(7.0, abs=0.0021)
    assert session.clock.uncertainty_s == pytest.approx(0.002)


def test_within_an_episode_one_policy_answers_also_across_connections() -> None:
    policies = iter(["a" * 64, "a" * 64, LinkLostError("gone"), "a" * 64, "b" * 64, "b" * 64])

    def answer(request: dict[str, Any]) -> Any:
        policy = next(policies)
        return policy if isinstance(policy, Exception) else chunk_for(request, policy_id=policy)

    endpoint = Endpoint(OURS, answer)
    session = endpoint.session()
    episode = session.episode("pick")
    for _ in range(3):
        assert act(endpoint, session).policy_id == "a" * 64
    assert episode.policy_id == "a" * 64
    assert [request.get("policy") for request in endpoint.requests] == [None] + ["a" * 64] * 3
    assert {request["episode"] for request in endpoint.requests} == {"pick"}
    with pytest.raises(ClientError, match=f"policy {'a' * 64} is asked for, {'b' * 64}") as caught:
        act(endpoint, session)
    assert caught.value.code == "gone"
    assert not caught.value.passing
    # The next episode may have another.
    assert act_in_new_episode(endpoint, session).policy_id == "b" * 64


def act_in_new_episode(endpoint: Endpoint, session: Session) -> ActionChunk:
    assert session.episode().policy_id == ""
    return act(endpoint, session)


def test_a_pin_may_be_the_beginning_of_an_id() -> None:
    endpoint = Endpoint(OURS, chunk_for)
    assert act(endpoint, endpoint.session(), replace(SEEN, policy="a" * 8)).policy_id == "a" * 64
    with pytest.raises(ClientError) as caught:
        act(endpoint, endpoint.session(), replace(SEEN, policy="ab" * 4))
    assert caught.value.code == "gone"


def test_what_is_larger_than_the_endpoint_takes_is_not_sent() -> None:
    endpoint = Endpoint(OURS | {"max_message_bytes": 100_000}, chunk_for)
    big = replace(SEEN, images={"top": np.zeros((480, 640, 3), np.uint8)})
    with pytest.raises(ClientError, match=r"0.9 MB.*takes 0.1; .*images.top \[480, 640, 3\]") as e:
        act(endpoint, endpoint.session(), big)
    assert "JPEG" in str(e.value)
    assert not endpoint.requests
    assert endpoint.opened == 1
    small = replace(SEEN, images={"top": b"\xff\xd8 a JPEG"})  # type: ignore[dict-item]
    act(endpoint, endpoint.session(), small)
    assert endpoint.requests[0]["images"]["top"] == b"\xff\xd8 a JPEG"


def test_nothing_that_is_not_a_number_reaches_the_robot() -> None:
    endpoint = Endpoint(OURS, lambda r: chunk_for(r, actions=np.full((4, 2), np.nan)))
    with pytest.raises(ClientError, match="not finite") as caught:
        act(endpoint, endpoint.session())
    assert caught.value.code == "policy"


@pytest.mark.parametrize(
    "wrong", [{"valid_from": "soon"}, {"policy_timing": {"infer_ms": "x"}}, {"flags": 3}]
)
def test_a_reply_that_makes_no_sense_is_told_in_one_line(wrong: dict[str, Any]) -> None:
    endpoint = Endpoint(OURS, lambda r: chunk_for(r, **wrong))
    with pytest.raises(ClientError, match="what cannot be") as caught:
        act(endpoint, endpoint.session())
    assert caught.value.code == "protocol"


def test_what_a_reply_says_of_itself_comes_with_the_chunk() -> None:
    said = {"policy_version": "7", "policy_alias": "champion", "run_id": "r1", "flags": ["stale"]}
    endpoint = Endpoint(OURS, lambda r: chunk_for(r, observation_age_s=0.25, **said))
    chunk = act(endpoint, endpoint.session())
    assert (chunk.policy_version, chunk.policy_alias, chunk.run_id) == ("7", "champion", "r1")
    assert (chunk.observation_age_s, chunk.flags) == (0.25, ("stale",))


def test_a_thousand_bad_days_no_answer_meets_another_request() -> None:
    for seed in range(1000):
        random = np.random.default_rng(seed)

        late: list[Any] = []

        def answer(
            request: dict[str, Any],
            random: np.random.Generator = random,
            late: list[Any] = late,
        ) -> Any:
            mine = chunk_for(request, actions=np.full((1, 2), request["seed"]))
            frames: list[Any] = []
            while random.random() < 0.4:
                stranger = {"request_id": f"x-{random.integers(9)}", "actions": np.ones((1, 2))}
                frames.append(stranger if random.random() < 0.7 else error("busy", request_id="y"))
            kind = random.random()
            if kind < 0.1:
                return [*frames, LinkLostError("gone")]
            if kind > 0.8:
                late.append(mine)
                return []
            return [*frames, error("busy") if kind < 0.2 else mine]

        endpoint = Endpoint(OURS, answer)
        endpoint.late = late
        session = endpoint.session(max_age_s=math.inf, timeout_s=1e4)
        for n in range(100, 108):
            assert act(endpoint, session, replace(SEEN, seed=n)).actions[0, 0] == n, seed

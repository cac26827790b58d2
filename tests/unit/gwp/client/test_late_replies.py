"""What a robot does about a reply that comes too late, and what it tells the endpoint before."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gwp.client import ClientError
from tests.support.scripted import ABOUT, FIELDS, OURS, SEEN, Endpoint, act, chunk_for, error

TIMED = OURS | {"fields": [*FIELDS, "deadline_s"]}


def test_a_late_reply_costs_no_connection_where_replies_have_numbers() -> None:
    def answer(request: dict[str, Any]) -> Any:
        if request["seed"] == 1:
            endpoint.late.append(chunk_for(request, actions=np.ones((4, 2))))
            return []
        return chunk_for(request)

    endpoint = Endpoint(OURS, answer)
    session = endpoint.session(timeout_s=0.5, reply_timeout_s=0.5)
    with pytest.raises(ClientError, match="no answer within"):
        act(endpoint, session, replace(SEEN, seed=1))
    assert not act(endpoint, session, replace(SEEN, seed=2)).actions.any()
    assert (endpoint.opened, session.dropped) == (1, 1)


def test_a_late_reply_costs_the_connection_of_a_stock_server() -> None:
    replies: Iterator[Any] = iter([[], None])
    endpoint = Endpoint({}, lambda r: chunk_for(r) if next(replies) is None else [])
    act(endpoint, endpoint.session(timeout_s=1.0, reply_timeout_s=0.2))
    assert endpoint.opened == 2


def test_a_late_reply_is_not_taken_for_the_time() -> None:
    endpoint = Endpoint(OURS, chunk_for)
    endpoint.metadata = OURS | {"time": ABOUT + endpoint.now}
    session = endpoint.session()
    act(endpoint, session)
    endpoint.now += 1000
    endpoint.ahead = 5.0
    endpoint.late.append(chunk_for({"request_id": "late-1"}) | {"time": 3.0})
    act(endpoint, session)
    assert abs(session.clock.offset_s - 5) < 0.1


@pytest.mark.parametrize(("own", "told"), [(None, 1.8), (5.0, 1.8), (0.5, 0.5)])
def test_the_endpoint_is_told_how_long_its_reply_is_awaited(own: float | None, told: float) -> None:
    endpoint = Endpoint(TIMED, chunk_for)
    session = endpoint.session(reply_timeout_s=2.0)
    act(endpoint, session, replace(SEEN, deadline_s=own))
    endpoint.drive(session.infer({"state": np.zeros(2)} | ({"deadline_s": own} if own else {})))
    assert [round(r["deadline_s"], 6) for r in endpoint.requests] == [told, told]


def test_a_stock_server_and_a_batch_are_told_of_no_deadline() -> None:
    cases: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (({}, {}), (TIMED, {"batch": [{}]}))
    for known, message in cases:
        endpoint = Endpoint(known, chunk_for)
        endpoint.drive(endpoint.session().infer(dict(message)))
        assert "deadline_s" not in endpoint.requests[0]


@pytest.mark.parametrize(("own", "tries"), [(None, 2), (0.1, 1)])
def test_only_a_deadline_of_the_robot_itself_ends_the_call(own: float | None, tries: int) -> None:
    replies = iter([error("deadline"), None])
    endpoint = Endpoint(TIMED, lambda r: next(replies) or chunk_for(r))
    expected = pytest.raises(ClientError, match="no") if tries == 1 else nullcontext()
    with expected:
        act(endpoint, endpoint.session(), replace(SEEN, deadline_s=own))
    assert (len(endpoint.requests), endpoint.opened) == (tries, 1)

"""What robots of different houses send becomes one observation; what nobody knows is told, with
the name that was meant.
"""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gwp.errors import GwpError, ObservationError
from gwp.protocol.fields import FIELDS, unknown
from gwp.protocol.messages import ActionChunk
from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb
from gwp.protocol.report import Report
from serve.messages.replies import join, to_error, to_reply
from serve.messages.requests import to_observation
from serve.messages.together import split
from tests.unit.gwp.policy.test_contract import ARM, IMAGE, ONE

STATE = np.arange(3, dtype=np.float32)
PICTURES = {"top": IMAGE, "wrist": IMAGE}


def good(**more: Any) -> dict[str, Any]:
    return PICTURES | {"state": STATE} | more


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            {
                "video": {"top": IMAGE[None, None], "wrist": IMAGE[None, None]},
                "state": {"x": STATE[None, None, :1], "y": [[[1.0]]], "grip": 2},
                "language": {"task": [["go"]]},
            },
            id="GR00T",
        ),
        pytest.param(
            {
                "video.top": IMAGE[None],
                "video.wrist": IMAGE[None],
                "state.x": STATE[None, :1],
                "state.y": STATE[None, 1:2],
                "state.grip": STATE[None, 2:],
                "annotation.human.action.task_description": ["go"],
            },
            id="GR00T N1.5",
        ),
        pytest.param(
            PICTURES | {"x": 0.0, "y": np.float32(1), "grip": 2, "task": "go"}, id="LeRobot's robot"
        ),
        pytest.param(
            {
                "observation.images.top": IMAGE[None],
                "observation.images.wrist": IMAGE[None],
                "observation.state": STATE[None],
                "task": ["go"],
            },
            id="LeRobot's batch of one",
        ),
        pytest.param(
            {"observation": PICTURES | {"state": STATE, "x": 5.0, "reward": 1.0, "task": "go"}},
            id="more under the observation",
        ),
        pytest.param(good(prompt="go", task="go", session="a", session_id="a"), id="said twice"),
        pytest.param(
            good(prompt="go", spare=IMAGE, depth=np.zeros((9, 9, 1), np.float32), mono=IMAGE[0]),
            id="cameras that nobody looks at",
        ),
    ],
)
def test_keys_of_other_houses_are_understood(message: dict[str, Any]) -> None:
    observation, _ = ONE.admit(to_observation(unpackb(packb(message)), ONE))
    assert np.array_equal(observation.state, STATE)
    assert observation.prompt == "go"
    assert all(np.array_equal(picture, IMAGE) for picture in observation.images.values())


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            good(prefix_action=np.zeros((4, 2))),
            "prefix_action: unknown; did you mean prefix_actions",
        ),
        (good(prefix_action=np.zeros((1, 8, 2))), "did you mean prefix_actions"),
        (good(deadline=0.1), "deadline: unknown; did you mean deadline_s"),
        (good(Delay=2), "Delay: unknown; did you mean delay"),
        (good(seeds=[1]), "did you mean seed"),
        (good(observedat=1.0), "did you mean observed_at"),
        (good(reward=1.0), "reward: unknown"),
        (good(timestamp=1.0), "timestamp: unknown"),
        (good(zzz={"a": 1, "b": {"c": 2}}), "zzz: unknown; known fields are state, prompt"),
        (good(top=b"abc", spare=b"abc"), "top: got 3 bytes that are no JPEG"),
        (good(spare=b"abc"), "spare: unknown"),
        (good(observation={"prefix_actions": np.zeros((4, 2))}), "stands beside the observation"),
        (good(**{"observation/delay": 3}), "observation.delay: .* send it as `delay`"),
        (good(**{"observation.state": STATE}), "state: came as state and as observation.state"),
        (good(x=1.0), "came as state and as x"),
        (PICTURES | {"x": 1.0, "y": 2.0}, "grip missing beside x, y"),
        (PICTURES | {"state.arm": STATE}, "state.arm: unknown; groups of the state"),
        (PICTURES | {"x": 1.0, "y": [1.0, 2.0], "grip": 1}, "state.y: got several numbers"),
        (good(prompt="go", task="stop"), "prompt and task say different things"),
        (good(prompt="go", observation={"task": "stop"}), "say different things"),
        (good(session="a", session_id="b"), "session and session_id say different things"),
        (good(prompt=["go", "stop"]), "prompt: got list, expected text"),
        (good(request_id="x" * 65), "request_id: .* up to 64"),
        (good(request_id=1.5), "request_id: got float"),
        (good(report=3), "report: got int, expected a map with any of executed, blended"),
        (good(report={"exeuted": 3}), "report.exeuted: unknown; did you mean executed?"),
        (good(report={"held": -1}), "report.held: expected a whole number of 0 to 1000000"),
        (good(report={"held": 1e3}), "report.held: expected a whole number"),
        (good(report={"held": True}), "report.held: expected a whole number"),
        (good(report={"held": 1 << 40}), "report.held: expected a whole number"),
        (good(report={"held": {"a": 1}}), "report.held: expected a whole number"),
        (good(report={"age_s": np.nan}), "report.age_s: expected 0 to 86400 seconds"),
        (good(report={"age_s": "old"}), "report.age_s: expected 0 to 86400 seconds"),
        (good(observation={"report": {"held": 1}}), "send it as `report.held`"),
        (good(steps_left=-1), "steps_left: got -1, expected 0 or more"),
        (good(rate=0), "rate: expected a positive number of Hz"),
        (good(rate=float("nan")), "rate"),
        (good(max_age_s=-1), "max_age_s"),
        (good(executed_action=np.zeros(3)), r"executed_action: got shape \[3\], expected \[2\]"),
        (good(executed_action=np.array([0, np.nan])), "executed_action: got NaN or infinity in y"),
        (good(batch=[]), "batch"),
    ],
)
def test_what_nobody_knows_is_refused_with_the_name_that_was_meant(
    message: dict[str, Any], words: str
) -> None:
    with pytest.raises(GwpError, match=words) as caught:
        ONE.admit(to_observation(unpackb(packb(message)), ONE))
    assert isinstance(caught.value, (ObservationError, ProtocolError))
    assert "\n" not in str(caught.value)


def test_every_field_is_taken_and_none_of_them_is_unknown() -> None:
    message = good(
        prompt="go",
        embodiment="arm",
        robot="r",
        session="s",
        episode="e",
        policy="id",
        prefix_actions=np.ones((3, 2), np.float32),
        delay=2,
        executed_action=np.ones(2, np.float32),
        seed=5,
        deadline_s=0.5,
        observed_at=12.0,
        max_age_s=0.3,
        steps_left=4,
        rate=50,
        report={"executed": 3, "age_s": 0.25},
        request_id="abc",
        endpoint="infer",
    )
    left_out = {"task", "session_id", "batch"}
    assert set(message) - set(PICTURES) == set(FIELDS) - left_out
    told, _ = ONE.admit(to_observation(unpackb(packb(message)), ONE))
    assert (told.robot, told.session, told.episode) == ("r", "s", "e")
    assert (told.max_age_s, told.steps_left, told.rate, told.request_id) == (0.3, 4, 50.0, "abc")
    assert told.report == Report(executed=3, age_s=0.25)
    assert told.executed_action is not None
    assert told.executed_action.dtype == np.float32
    assert unknown("prefix_action") == "prefix_action: unknown; did you mean prefix_actions?"


def test_a_long_unknown_name_is_cut() -> None:
    assert len(unknown("x" * 100_000)) < 500


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "PNG")
    return buffer.getvalue()


def test_one_observation_stays_one() -> None:
    for message in (good(), good(state=STATE[None], top=IMAGE[None]), [1], {b"a": 1}, {}):
        requests, form = split(message)
        assert form == "one"
        assert requests[0] is message


def test_a_list_of_requests_is_taken_as_it_is() -> None:
    batch = [good(), 5, good(seed="x")]
    assert split({"batch": batch, "endpoint": "infer", "request_id": 3}) == (batch, "batch")
    for message, words in [
        ({"batch": good()}, "expected a list"),
        ({"batch": []}, "expected a list"),
        ({"batch": batch * 100}, "300 requests, up to 64"),
        ({"batch": batch, "prompt": "go"}, "prompt: stands beside `batch`"),
    ]:
        with pytest.raises(ProtocolError, match=words):
            split(message)


STATES = np.arange(12, dtype=np.float32).reshape(4, 3)
IMAGES = np.stack([IMAGE + i for i in range(4)])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"top": IMAGES, "wrist": IMAGES, "state": STATES}, id="flat"),
        pytest.param({"images": {"top": IMAGES, "wrist": IMAGES}, "state": STATES}, id="nested"),
        pytest.param({"top": IMAGES, "wrist": IMAGES, "state": STATES.tolist()}, id="lists"),
        pytest.param(
            {"video": {"top": IMAGES[:, None], "wrist": IMAGES[:, None]}, "state": STATES[:, None]},
            id="GR00T",
        ),
        pytest.param(
            {
                "video": {"top": IMAGES[:, None], "wrist": IMAGES[:, None]},
                "state": {
                    name: STATES[:, None, i : i + 1] for i, name in enumerate(ARM.state_names)
                },
            },
            id="GR00T's groups",
        ),
    ],
)
def test_a_leading_axis_is_that_of_several_observations(message: dict[str, Any]) -> None:
    prefix = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    more = {
        "prompt": ["a", "b", "c", "d"],
        "seed": np.arange(4),
        "prefix_actions": prefix,
        "executed_action": prefix[:, 0],
        "delay": 2,
        "deadline_s": [0.1, 0.2, 0.3, 0.4],
        "robot": "r",
    }
    requests, form = split(unpackb(packb(message | more)))
    assert form == "stacked"
    for i, request in enumerate(requests):
        told, _ = ONE.admit(to_observation(request, ONE))
        assert np.array_equal(told.state, STATES[i])
        assert all(np.array_equal(picture, IMAGES[i]) for picture in told.images.values())
        assert (told.prompt, told.seed, told.delay, told.robot) == ("abcd"[i], i, 2, "r")
        assert told.deadline_s == pytest.approx(0.1 * (i + 1))
        assert told.prefix_actions is not None
        assert told.executed_action is not None
        assert np.array_equal(told.prefix_actions, prefix[i])
        assert np.array_equal(told.executed_action, prefix[i, 0])


def test_what_is_the_same_for_all_is_sent_once() -> None:
    prefix = np.ones((4, 2), np.float32)
    message = {
        "top": [jpeg()] * 4,
        "wrist": IMAGES,
        "state": STATES,
        "prompt": "go",
        "prefix_actions": prefix,
        "executed_action": prefix[0],
    }
    for request in split(message).requests:
        told, _ = ONE.admit(to_observation(request, ONE))
        assert told.prompt == "go"
        assert told.prefix_actions is not None
        assert told.prefix_actions.shape == (4, 2)


def test_a_batch_without_all_its_pictures_is_refused() -> None:
    for top in (IMAGE, IMAGES[:3], jpeg()):
        with pytest.raises(ObservationError, match="top: has no leading axis of 4"):
            split({"top": top, "wrist": IMAGES, "state": STATES})
    with pytest.raises(ProtocolError, match="4 observations, up to 3"):
        split({"top": IMAGES, "wrist": IMAGES, "state": STATES}, most=3)


def reply(value: float, **more: Any) -> dict[str, Any]:
    return to_reply(ActionChunk(np.full((8, 2), value, np.float32), "id", **more), 1.0, None)


def test_answers_come_in_the_form_of_the_question() -> None:
    replies = [reply(1.0, flags=("clipped:x",)), reply(2.0, flags=("clipped:x", "slowed:y"))]
    assert join(replies[:1], "one") is replies[0]
    assert join(replies, "batch") == {"batch": replies}
    stacked = unpackb(packb(join(replies, "stacked")))
    assert stacked["actions"].shape == (2, 8, 2)
    assert stacked["actions"][1, 0, 0] == 2.0
    assert stacked["flags"] == ["clipped:x", "slowed:y"]
    failed = [replies[0], to_error("observation", "state: missing", 7)]
    assert join(failed, "stacked") == {"batch": failed}
    assert failed[1] == {
        "type": "error",
        "code": "observation",
        "message": "state: missing",
        "request_id": 7,
    }


def test_a_reply_says_what_was_asked_for() -> None:
    plain = reply(1.0)
    assert not plain.keys() & {"request_id", "observation_age_s"}
    told = reply(1.0, request_id=0, observation_age_s=0.0, run_id="run", policy_version="3")
    assert (told["request_id"], told["observation_age_s"]) == (0, 0.0)
    assert (told["run_id"], told["policy_version"], told["policy_alias"]) == ("run", "3", "")
    assert to_error("busy", "wait", retry_after_s=0.2)["retry_after_s"] == 0.2

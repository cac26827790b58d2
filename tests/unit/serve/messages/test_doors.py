"""The doors: what stock clients send becomes one observation, and what is wrong becomes one
line.
"""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gwp.errors import GwpError, ObservationError
from gwp.protocol.messages import ActionChunk
from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb
from serve.doors.announced import announced
from serve.messages.replies import to_reply
from serve.messages.requests import to_observation
from tests.unit.gwp.policy.test_contract import IMAGE, ONE, TWO

STATE = np.arange(3, dtype=np.float32)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            {
                "observation.images.top": IMAGE,
                "observation.images.wrist": IMAGE,
                "observation.state": STATE,
            },
            id="le",
        ),
        pytest.param(
            {"observation/top": IMAGE, "observation/wrist": IMAGE, "observation/state": STATE},
            id="libero",
        ),
        pytest.param({"images/top": IMAGE, "images/wrist": IMAGE, "state": STATE}, id="flat aloha"),
        pytest.param({"images": {"top": IMAGE, "wrist": IMAGE}, "state": STATE}, id="aloha"),
        pytest.param(
            {"images": {"top": IMAGE.transpose(2, 0, 1), "wrist": IMAGE}, "state": STATE}, id="CHW"
        ),
        pytest.param(
            {"observation": {"images": {"top": IMAGE, "wrist": IMAGE}, "state": STATE}}, id="nested"
        ),
        pytest.param(
            {"top": IMAGE, "wrist": IMAGE, "state": STATE.tolist()}, id="bare, state as a list"
        ),
        pytest.param(
            {"top": IMAGE, "wrist": IMAGE, "state": STATE[None]}, id="a batch of one state"
        ),
        pytest.param(
            {
                "top": IMAGE,
                "wrist": IMAGE,
                "spare": IMAGE,
                "state": STATE,
                "observation.reward": 1.0,
            },
            id="more than needed",
        ),
    ],
)
def test_every_spelling_gives_the_same_observation(message: dict[str, Any]) -> None:
    observation, _ = ONE.admit(to_observation(unpackb(packb(message | {"prompt": "go"})), ONE))
    assert np.array_equal(observation.state, STATE)
    assert observation.prompt == "go"
    assert all(np.array_equal(picture, IMAGE) for picture in observation.images.values())


def good(**more: Any) -> dict[str, Any]:
    return {"top": IMAGE, "wrist": IMAGE, "state": STATE} | more


def test_the_fields_of_a_request_arrive() -> None:
    prefix = np.ones((3, 2), np.float32)
    told = to_observation(
        good(
            task="lift",
            embodiment="leg",
            prefix_actions=prefix,
            delay=np.int64(2),
            seed=5,
            robot="r1",
            session_id="s1",
            policy="id",
            deadline_s=0.5,
            observed_at=12.0,
        ),
        TWO,
    )
    assert told.prefix_actions is prefix
    assert (told.prompt, told.embodiment, told.delay, told.seed, told.robot, told.session) == (
        "lift",
        "leg",
        2,
        5,
        "r1",
        "s1",
    )
    assert (told.policy, told.deadline_s, told.observed_at) == ("id", 0.5, 12.0)


def test_the_robot_of_the_handshake_is_used_where_a_request_names_none() -> None:
    assert to_observation(good(), TWO, "leg").embodiment == "leg"
    assert to_observation(good(embodiment="arm"), TWO, "leg").embodiment == "arm"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_may_be_compressed(kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 100, np.uint8)).save(buffer, kind)
    picture = to_observation(good(top=buffer.getvalue()), ONE).images["top"]
    assert picture.shape == (16, 16, 3)
    assert np.abs(picture.astype(int) - 100).max() <= 2


def huge() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ([1], ProtocolError, "one msgpack map"),
        ({b"state": 1}, ProtocolError, "text keys"),
        ({"images": {b"top": 1}}, ProtocolError, "text keys"),
        ({"top": IMAGE, "wrist": IMAGE}, ObservationError, r"state: missing \(came: top, wrist\)"),
        (good(state="x"), ObservationError, "state: got a str"),
        (good(state=[1, "x", 2]), ObservationError, "not all numbers"),
        (good(state=[1, [2], 3]), ObservationError, "not all numbers"),
        (good(top=b"GIF89a"), ObservationError, "6 bytes that are no JPEG or PNG"),
        (good(top=huge()), ObservationError, "9000x9000 pixels"),
        (good(top="x"), ObservationError, "got a str"),
        (good(**{"images/top": IMAGE}), ObservationError, "'top' came twice"),
        (good(delay=1.5), ObservationError, "delay: got float, expected a whole number"),
        (good(delay=True), ObservationError, "delay"),
        (good(seed="1"), ObservationError, "seed"),
        (good(prompt=3), ObservationError, "prompt: got int"),
        (good(prompt="x" * 5000), ObservationError, "up to 4096"),
        (good(robot="x" * 300), ObservationError, "robot: .* up to 256"),
        (good(deadline_s=-1), ObservationError, "deadline_s: expected a positive"),
        (good(deadline_s=float("nan")), ObservationError, "deadline_s"),
        (good(prefix_actions=[[1, 2]]), ObservationError, "prefix_actions: got a list"),
        (good(embodiment="hand"), ObservationError, "'hand'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    message: object, error: type[GwpError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        ONE.admit(to_observation(message, ONE))
    assert "\n" not in str(caught.value)


def test_a_reply_has_what_stock_clients_and_ours_read() -> None:
    chunk = ActionChunk(
        np.ones((8, 2), np.float32), "id", 2, {"vae": 1.0, "total": 5.0}, ("clipped:x",)
    )
    reply = unpackb(packb(to_reply(chunk, 6.0, None)))
    assert reply["actions"].shape == (8, 2)
    assert reply["policy_timing"] == {"infer_ms": 5.0, "vae_ms": 1.0}
    assert reply["server_timing"] == {"infer_ms": 6.0}
    assert (reply["policy_id"], reply["valid_from"], reply["flags"]) == ("id", 2, ["clipped:x"])
    assert to_reply(chunk, 6.0, 9.0)["server_timing"]["prev_total_ms"] == 9.0


def test_what_a_robot_announces_is_read_from_the_query() -> None:
    query = {
        "embodiment": "arm",
        "fps": "50",
        "action_names": "x, y",
        "cameras": "top",
        "team": "a",
    }
    assert announced(query) == {
        "embodiment": "arm",
        "fps": 50.0,
        "action_names": ["x", "y"],
        "cameras": ["top"],
    }
    with pytest.raises(ObservationError, match="fps: 'fast' is no number"):
        announced({"fps": "fast"})

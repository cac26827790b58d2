"""What a policy admits: every observation that does not fit is refused with its field, what
came, and what is expected.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment
from gwp.data.window import Window
from gwp.errors import BundleError, ObservationError
from gwp.policy.bundle import MANIFEST, PolicyConfig, read_bundle, seal
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import Observation
from gwp.protocol.msgpack_numpy import packb, unpackb

ARM = Embodiment(
    name="arm",
    fps=50,
    state_names=("x", "y", "grip"),
    action_names=("x", "y"),
    cameras={"front": "observation.images.top", "left": "observation.images.wrist"},
    chunk=8,
    replan=4,
)
CANVAS = Canvas(layout="horizontal", width=64, height=32)
ONE = PolicyContract(
    policy_id="id", family="gwp05", model_dim=6, chunk=8, canvas=CANVAS, embodiments={"arm": ARM}
)
TWO = ONE.model_copy(
    update={"embodiments": {"arm": ARM, "leg": ARM.model_copy(update={"name": "leg"})}}
)

IMAGE = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
GOOD = Observation(
    {"observation.images.top": IMAGE, "observation.images.wrist": IMAGE},
    np.zeros(3, np.float32),
    "go",
)


def image(value: object) -> dict[str, Any]:
    return {"images": {"top": value, "wrist": IMAGE}}


def test_a_good_observation_is_admitted_as_it_is() -> None:
    admitted, embodiment = ONE.admit(GOOD)
    assert embodiment is ARM
    assert ONE.check(GOOD) is ARM
    assert set(admitted.images) == set(ARM.cameras.values())
    assert all(np.array_equal(i, IMAGE) for i in admitted.images.values())
    assert admitted.state.dtype == np.float32
    assert (admitted.embodiment, admitted.seed, admitted.prompt) == ("arm", 0, "go")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"images": {"top": IMAGE, "wrist": IMAGE}}, id="short camera names"),
        pytest.param(
            {"images": {"observation/top": IMAGE, "images/wrist": IMAGE}}, id="other prefixes"
        ),
        pytest.param(
            {"images": GOOD.images | {"spare": np.zeros(3)}}, id="more cameras than needed"
        ),
        pytest.param(image(np.ascontiguousarray(IMAGE.transpose(2, 0, 1))), id="channels first"),
        pytest.param({"state": np.zeros(3)}, id="float64 state"),
        pytest.param({"state": np.zeros(3, np.int64)}, id="integer state"),
        pytest.param({"prefix_actions": np.zeros((8, 2)), "delay": 7}, id="longest prefix"),
        pytest.param({"policy": "id"}, id="pinned to this policy"),
        pytest.param({"seed": 2**32 - 1}, id="largest seed"),
    ],
)
def test_what_means_the_same_is_brought_into_one_form(changes: dict[str, Any]) -> None:
    admitted, _ = ONE.admit(replace(GOOD, **changes))
    assert set(admitted.images) == set(ARM.cameras.values())
    for picture in admitted.images.values():
        assert np.array_equal(picture, IMAGE)
        assert picture.flags.c_contiguous
    assert admitted.state.dtype == np.float32
    if admitted.prefix_actions is not None:
        assert admitted.prefix_actions.dtype == np.float32
    again, _ = ONE.admit(admitted)
    assert np.array_equal(again.state, admitted.state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": {"top": IMAGE}},
            r"images: camera observation.images.wrist is missing \(came: top\); arm needs .*top, .*wrist",
        ),
        ({"images": {}}, r"came: none"),
        ({"images": {"top": IMAGE, "observation/top": IMAGE, "wrist": IMAGE}}, "'top' came twice"),
        (
            image(IMAGE.astype(np.float32) / 255),
            r"images.observation.images.top: got dtype float32, .*multiply by 255",
        ),
        (image(IMAGE.astype(np.int32)), "got dtype int32, expected uint8"),
        (image([[1]]), "got a list, expected a uint8 array"),
        (image(IMAGE[None]), r"got shape \[1, 10, 12, 3\], expected \[height, width, 3\]"),
        (image(IMAGE[..., 0]), r"got shape \[10, 12\]"),
        (image(np.zeros((10, 12, 4), np.uint8)), r"got shape \[10, 12, 4\]"),
        (image(np.zeros((4, 12, 3), np.uint8)), "got 12x4 pixels, expected 8 to 8192"),
        (image(np.zeros((10, 9000, 3), np.uint8)), "got 9000x10 pixels"),
        (
            {"state": np.zeros(2, np.float32)},
            r"state: got shape \[2\], expected \[3\] \(x, y, grip\)",
        ),
        ({"state": np.zeros((1, 3), np.float32)}, r"state: got shape \[1, 3\]"),
        ({"state": np.float32(1)}, "state: got a float32, expected an array"),
        ({"state": np.zeros(3, bool)}, "state: got dtype bool, expected float32"),
        ({"state": np.array([0, np.nan, np.inf])}, "state: got NaN or infinity in y, grip"),
        ({"state": np.array([0, 1e300, 0])}, "NaN or infinity in y,"),
        ({"embodiment": "hand"}, "embodiment: 'hand' is not one .* use one of: arm"),
        ({"policy": "other"}, "policy: other is asked for, this endpoint serves id"),
        ({"prompt": "x" * 5000}, "prompt: expected text of up to 4096"),
        ({"seed": -1}, "seed: -1 is outside"),
        ({"seed": 2**32}, "seed: 4294967296 is outside"),
        ({"delay": -1}, r"delay: -1 control steps, expected 0..7"),
        (
            {"delay": 8, "prefix_actions": np.zeros((8, 2))},
            r"delay: 8 control steps, expected 0..7",
        ),
        ({"delay": 1}, "delay: 1 is more than the 0 rows of prefix_actions"),
        ({"delay": 3, "prefix_actions": np.zeros((2, 2))}, "delay: 3 is more than the 2 rows"),
        ({"prefix_actions": np.zeros((9, 2))}, "prefix_actions: 9 rows, expected at most 8"),
        (
            {"prefix_actions": np.zeros((2, 3))},
            r"prefix_actions: got shape \[2, 3\], expected \[k, 2\] \(x, y\)",
        ),
        ({"prefix_actions": np.zeros(2)}, r"prefix_actions: got shape \[2\]"),
        (
            {"prefix_actions": np.full((2, 2), np.nan)},
            "prefix_actions: got NaN or infinity in x, y",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ObservationError, match=message) as caught:
        ONE.check(replace(GOOD, **changes))
    assert "\n" not in str(caught.value)


def test_with_several_embodiments_one_has_to_be_named() -> None:
    with pytest.raises(ObservationError, match=r"embodiment: missing; .* name one of: arm, leg"):
        TWO.check(GOOD)
    assert TWO.check(replace(GOOD, embodiment="leg")).name == "leg"


def test_metadata_travels_and_says_what_a_robot_needs() -> None:
    told = unpackb(packb(ONE.metadata()))
    assert told == json.loads(json.dumps(ONE.metadata()))
    assert told["policy_id"] == "id"
    assert (told["action_horizon"], told["action_dim"], told["replan"], told["fps"]) == (
        8,
        2,
        4,
        50,
    )
    assert told["cameras"] == list(ARM.cameras.values())
    assert told["embodiments"]["arm"]["action_names"] == ["x", "y"]
    assert "fps" not in TWO.metadata()
    assert TWO.metadata("leg")["embodiment"] == "leg"


def test_a_robot_is_compared_at_the_handshake() -> None:
    assert ONE.agree({}) is ARM
    assert TWO.agree({}) is None
    assert (
        ONE.agree({"fps": 50.0, "cameras": ["wrist", "top", "spare"], "action_names": ["x", "y"]})
        is ARM
    )
    for robot, message in [
        ({"embodiment": "hand"}, "not one this policy was trained for"),
        ({"fps": 30.0}, "30 Hz, the policy at 50 Hz"),
        ({"action_names": ["y", "x"]}, "action_names of the robot: y, x; of the policy: x, y"),
        ({"state_names": ["x", "y"]}, "state_names"),
        ({"cameras": ["top"]}, "needs camera observation.images.wrist"),
    ]:
        with pytest.raises(ObservationError, match=message):
            ONE.agree(robot)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    settings = PolicyConfig(
        family="gwp05", model_dim=6, canvas=CANVAS, window=Window(chunk=8, stride=2)
    )
    (tmp_path / "policy.json").write_text(settings.model_dump_json())
    (tmp_path / "embodiments.json").write_text(json.dumps({"arm": ARM.model_dump(mode="json")}))
    (tmp_path / "stats.json").write_text("{}")
    (tmp_path / "lineage.json").write_text("{}")
    (tmp_path / "weights").write_bytes(b"\0" * 100)
    seal(tmp_path)
    return tmp_path


def test_the_contract_is_read_without_the_weights(bundle: Path) -> None:
    contract = PolicyContract.read(str(bundle))
    assert contract == ONE.model_copy(
        update={"policy_id": hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()}
    )
    (bundle / "weights").unlink()
    assert PolicyContract.read(str(bundle)) == contract
    assert PolicyContract.model_validate(contract.model_dump(mode="json")) == contract


@pytest.mark.parametrize("name", ["policy.json", "embodiments.json"])
def test_an_altered_bundle_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_text((bundle / name).read_text().replace("8", "9"))
    with pytest.raises(BundleError, match=f"{name} was altered"):
        PolicyContract.read(str(bundle))


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"files": 3}'])
def test_what_is_no_bundle_is_refused(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="not a policy bundle"):
        PolicyContract.read(str(bundle))


@pytest.mark.parametrize("text", ["[]", "7", '{"arm": []}', "[" * 100_000])
def test_sealed_nonsense_is_refused_by_every_reader(bundle: Path, text: str) -> None:
    (bundle / "embodiments.json").write_text(text)
    seal(bundle)
    for read in (PolicyContract.read, read_bundle):
        with pytest.raises(BundleError, match="export the policy again"):
            read(str(bundle))


def test_a_bundle_may_hold_another_manifest_further_down(bundle: Path) -> None:
    for name in ("stats.json", "lineage.json", "text/MANIFEST.json"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("{}")
    seal(bundle)
    assert read_bundle(bundle).settings == PolicyConfig.model_validate_json(
        (bundle / "policy.json").read_text()
    )

"""What an endpoint asks beyond the bundle: states that can be the robot's, delays that were
trained, limits where the bundle has none. And what the handshake says of it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.errors import GoneError, ObservationError
from gwp.policy.admission.derived import Seen
from gwp.policy.admission.guard import Guard
from gwp.policy.admission.plausible import strangers
from gwp.policy.bundle import PolicyConfig, read_bundle, seal
from gwp.policy.contract import PolicyContract
from gwp.policy.policy import Policy
from gwp.protocol.handshake import mismatch
from gwp.protocol.messages import Observation
from gwp.protocol.msgpack_numpy import packb, unpackb
from tests.support.tiny import TINY_ARM, make_tiny_bundle
from tests.unit.gwp.policy.test_contract import ARM, CANVAS, GOOD, ONE

SEEN = Seen(lower=(-1.0, 0.0, 0.5), upper=(1.0, 2.0, 0.5), moves=(True, True, False))
GUARDED = ONE.model_copy(update={"seen": {"arm": SEEN}}).guarded(Guard())


def told(contract: PolicyContract, state: Any) -> tuple[str, ...]:
    observation, _ = contract.admit(replace(GOOD, state=np.asarray(state, np.float32)))
    return contract.remarks(observation)


def test_a_state_far_outside_of_training_is_refused_flagged_or_let_through() -> None:
    # Ten spans of two beyond 1.
    for near in ([0, 1, 0.5], [20.9, 1, 0.5], [-20.9, 21.9, 0.5], [0, 1, 1e6]):
        assert told(GUARDED, near) == ()
    far = [21.1, -19.0, 0.5]
    with pytest.raises(ObservationError, match=r"state: x is 21.1, training saw -1 to 1.*guard"):
        told(GUARDED, far)
    flagged = GUARDED.guarded(Guard(on_state="flag"))
    assert told(flagged, far) == ("out-of-range:x",)
    assert told(flagged, [21.1, -20.1, 0.5]) == ("out-of-range:x", "out-of-range:y")
    assert told(GUARDED.guarded(Guard(on_state="ignore")), far) == ()
    assert told(GUARDED.guarded(Guard(state_spans=100)), far) == ()
    # In one's own process, and where a bundle says nothing of training, nobody asks.
    assert told(GUARDED.guarded(None), far) == ()
    assert told(ONE.guarded(Guard()), far) == ()


JOINTS = Embodiment(
    name="arm",
    fps=50,
    state_names=("shoulder", "elbow", "wrist"),
    action_names=("shoulder",),
    cameras={"front": "top"},
    chunk=8,
    replan=4,
)
RADIANS = Seen(lower=(-1.5, 0.2, -1.0), upper=(1.5, 2.2, 1.0), moves=(True, True, True))
POSES = np.random.default_rng(0).uniform(RADIANS.lower, RADIANS.upper, (500, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("arm", "share"),
    [
        # Of a joint within a third of a radian of 0 the number alone cannot tell.
        (JOINTS, 0.98),
        (JOINTS.model_copy(update={"state_units": ("rad",) * 3}), 0.99),
        (JOINTS.model_copy(update={"kinds": dict.fromkeys(JOINTS.state_names, "radians")}), 0.99),
    ],
)
def test_degrees_sent_as_radians_are_caught(arm: Embodiment, share: float) -> None:
    assert not any(strangers(pose, arm, RADIANS, 10) for pose in POSES)
    caught = [bool(strangers(np.rad2deg(pose), arm, RADIANS, 10)) for pose in POSES]
    assert np.mean(caught) > share
    assert strangers(np.float32([1e3, 0.5, 0.5]), arm, RADIANS, 10).keys() == {"shoulder"}


def test_the_unit_that_was_meant_is_named() -> None:
    (why,) = strangers(np.float32([0, 68.8, 0]), JOINTS, RADIANS, 10).values()
    assert "as degrees it would be 1.201 radians: send radians" in why
    metres = Seen(lower=(0.2, 0, 0), upper=(0.5, 1, 1), moves=(True, False, False))
    arm = JOINTS.model_copy(update={"state_units": ("m", "", "")})
    (why,) = strangers(np.float32([400, 0, 0]), arm, metres, 10).values()
    assert "as millimetres it would be 0.4 metres" in why


def test_a_state_that_is_no_number_of_its_kind_is_caught() -> None:
    names = ("qx", "qy", "qz", "qw")
    arm = JOINTS.model_copy(
        update={"state_names": names, "kinds": dict.fromkeys(names, "quaternion")}
    )
    seen = Seen(lower=(-1.0,) * 4, upper=(1.0,) * 4, moves=(True,) * 4)
    assert strangers(np.float32([0, 0, 0.6, -0.8]), arm, seen, 10) == {}
    assert "length 2" in strangers(np.float32([0, 0, 0, 2]), arm, seen, 10)["qx"]


PREFIX = {"prefix_actions": np.zeros((8, 2), np.float32)}


@pytest.mark.parametrize(
    ("trained", "on_delay", "delay", "flags", "holds"),
    [
        (None, "refuse", 3, ("untrained:delay",), False),
        (None, "refuse", 0, (), False),
        (4, "refuse", 4, (), False),
        (4, "hold", 4, (), False),
        (4, "hold", 5, ("untrained:delay",), True),
        (4, "allow", 5, ("untrained:delay",), False),
        (0, "hold", 1, ("untrained:delay",), True),
    ],
)
def test_a_delay_that_was_never_trained(
    trained: int | None, on_delay: Any, delay: int, flags: tuple[str, ...], holds: bool
) -> None:
    contract = ONE.model_copy(update={"trained_delay": trained}).guarded(Guard(on_delay=on_delay))
    admitted, _ = contract.admit(replace(GOOD, delay=delay, **PREFIX))
    assert contract.remarks(admitted) == flags
    assert contract.holds(admitted) == holds


def test_a_delay_beyond_training_is_refused_with_the_fix() -> None:
    contract = ONE.model_copy(update={"trained_delay": 4})
    late = replace(GOOD, delay=5, **PREFIX)
    with pytest.raises(ObservationError, match=r"delay: 5 .* trained for 4 at most; .*on_delay"):
        contract.guarded(Guard()).check(late)
    contract.check(late)


def test_a_pin_is_an_id_or_the_beginning_of_one() -> None:
    contract = ONE.model_copy(update={"policy_id": "0123456789abcdef"})
    for pin in ("0123456789abcdef", "01234567"):
        contract.check(replace(GOOD, policy=pin))
    for pin in ("0123456", "012345678a", "0123456789abcdef0", ""):
        with pytest.raises(GoneError, match="is asked for, this endpoint serves 0123456789abcdef"):
            contract.check(replace(GOOD, policy=pin))


def test_the_handshake_says_what_a_robot_needs() -> None:
    limits = Limits(lower=(-1, -1), upper=(1, 1), jump=(0.1, 0.1))
    arm = ARM.model_copy(update={"limits": limits, "state_units": ("radians", "m", "")})
    contract = ONE.model_copy(update={"embodiments": {"arm": arm}, "trained_delay": 3})
    offer = unpackb(packb(contract.metadata()))
    assert offer == json.loads(json.dumps(contract.metadata()))
    assert offer["limits"] == {
        "lower": [-1, -1],
        "upper": [1, 1],
        "velocity": None,
        "acceleration": None,
        "jump": [0.1, 0.1],
    }
    assert (offer["chunk"], offer["replan"], offer["rates"]) == (8, 4, {"fps": 50})
    assert offer["images"] == {
        camera: {"height": CANVAS.height, "width": CANVAS.width // 2}
        for camera in ARM.cameras.values()
    }
    assert offer["state_units"] == ["rad", "m", ""]
    assert offer["recommend"] == {"jpeg_quality": 95, "resize": False, "delay": 3, "blend": 0}
    assert offer["trained_delay"] == 3
    assert {"prefix_actions", "executed_action", "request_id", "batch"} <= set(offer["fields"])
    plain = ONE.metadata()
    assert plain["limits"] is None
    assert plain["trained_delay"] is None
    assert plain["recommend"]["delay"] == 0
    assert plain["recommend"]["blend"] == 4


@pytest.mark.parametrize(
    ("robot", "words"),
    [
        ({"fps": float("nan")}, "fps: nan is no rate"),
        ({"fps": float("inf")}, "fps: inf is no rate"),
        ({"fps": 0.0}, "fps: 0 is no rate"),
        ({"fps": -50.0}, "fps: -50 is no rate"),
        ({"action_names": ["x", ""]}, "action_names: announced with an empty name"),
        ({"action_names": []}, "empty name; the policy has x, y"),
        ({"cameras": ["", "top"]}, "cameras: announced with an empty name"),
        ({"action_names": ["y", "x"]}, "entry 0 is y and not x"),
        ({"action_names": ["x", "z"]}, "only the robot has z, only the policy has y"),
        ({"action_names": ["x", "x", "y"]}, "3 names, not 2"),
        ({"state_names": "x,y,grip"}, "state_names: a list of names"),
        ({"state_units": ["deg", "m", "m"]}, "x in deg, the policy in rad; convert"),
        ({"state_units": ["rad"]}, "1 of them, the policy has 3"),
    ],
)
def test_a_handshake_spells_the_difference_out(robot: dict[str, Any], words: str) -> None:
    arm = ARM.model_copy(update={"state_units": ("rad", "m", "")})
    contract = ONE.model_copy(update={"embodiments": {"arm": arm}})
    with pytest.raises(ObservationError, match=words) as caught:
        contract.agree(robot)
    assert "\n" not in str(caught.value)


def test_units_in_other_words_and_units_that_nobody_states_pass() -> None:
    offer = {"fps": 50, "state_names": ["a", "b"], "state_units": ["rad", "m"]}
    for units in (["Radians", "metres"], ["rad", ""], ["", ""]):
        assert mismatch({"state_units": units}, offer) is None
    assert mismatch({"action_units": ["deg"]}, offer | {"action_units": []}) is None
    assert mismatch({"fps": 50.00001}, offer) is None


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose robot has no limits."""
    arm = TINY_ARM.model_copy(update={"limits": None})
    return make_tiny_bundle(tmp_path_factory.mktemp("free") / "bundle", arm=arm)


def observation(**more: Any) -> Observation:
    fields = {"state": np.zeros(4, np.float32), "prompt": "go"} | more
    return Observation({"top": np.full((32, 32, 3), 99, np.uint8)}, **fields)


def test_a_policy_of_ones_own_has_no_guard_and_an_endpoint_has(free: Path) -> None:
    bundle = read_bundle(free)
    plain = PolicyContract.from_bundle(bundle)
    assert plain == PolicyContract.read(str(free))
    assert plain.envelope(plain.embodiment(None)) is None
    guarded = plain.guarded(Guard())
    assert PolicyContract.model_validate(guarded.model_dump(mode="json")) == guarded
    envelope = guarded.envelope(guarded.embodiment(None))
    assert envelope is not None
    assert envelope.derived
    # The range of state and of action, each from -1 to 1, widened by half.
    assert envelope.limits.lower[:3] == pytest.approx([-4.0] * 3, abs=1e-3)
    assert envelope.limits.upper[3] == pytest.approx(2.0, abs=1e-3)
    assert guarded.metadata()["limits"]["lower"] == list(envelope.limits.lower)
    assert plain.metadata()["limits"] is None
    assert plain.guarded(Guard(limits="none")).envelope(plain.embodiment(None)) is None


def test_answers_are_held_and_flagged_under_a_guard_alone(free: Path) -> None:
    plain, guarded = Policy.load(free), Policy.load(free, guard=Guard(on_delay="allow"))
    # Of untrained weights: this noise leads one dimension a little too far.
    asked = observation(request_id="r-7", seed=2)
    chunk, same = plain.act(asked), guarded.act(asked)
    envelope = plain.contract.guarded(Guard()).envelope(
        TINY_ARM.model_copy(update={"limits": None})
    )
    assert envelope is not None
    held = np.clip(chunk.actions, *np.float32([envelope.limits.lower, envelope.limits.upper]))
    assert np.array_equal(same.actions, held)
    assert not np.array_equal(same.actions, chunk.actions)
    assert (chunk.flags, same.flags, same.request_id) == ((), ("clipped:grip",), "r-7")
    late = observation(prefix_actions=np.zeros((8, 4), np.float32), delay=2)
    assert plain.act(late).flags == ()
    assert guarded.act(late).flags[0] == "untrained:delay"


def test_a_chunk_stands_still_after_a_delay_that_was_never_trained(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "bundle")
    settings = json.loads((folder / "policy.json").read_text()) | {"trained_delay": 1}
    (folder / "policy.json").write_text(json.dumps(settings))
    seal(folder)
    policy = Policy.load(folder, guard=Guard(on_delay="hold"))
    assert policy.contract.trained_delay == 1
    promised = np.linspace(0, 1, 32, dtype=np.float32).reshape(8, 4)
    still = policy.act(observation(prefix_actions=promised, delay=3))
    assert still.actions[2:] == pytest.approx(np.tile(still.actions[2], (6, 1)), abs=1e-6)
    assert still.actions[:3] == pytest.approx(promised[:3], abs=1e-3)
    assert "untrained:delay" in still.flags
    moving = policy.act(observation(prefix_actions=promised, delay=1))
    assert "untrained:delay" not in moving.flags
    assert np.abs(np.diff(moving.actions[1:], axis=0)).max() > 1e-3


def test_a_bundle_of_before_keeps_its_id() -> None:
    settings = PolicyConfig(
        family="gwp05", model_dim=6, canvas=CANVAS, window={"chunk": 8, "stride": 2}
    )
    assert "trained_delay" not in settings.model_dump_json()
    told = settings.model_copy(update={"trained_delay": 0})
    assert PolicyConfig.model_validate_json(told.model_dump_json()).trained_delay == 0

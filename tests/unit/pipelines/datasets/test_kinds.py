"""What `inspect` suggests to write under `kinds`, and what it keeps quiet about."""

from math import pi

import numpy as np
import pytest

from pipelines.datasets.grippers import check_grippers
from pipelines.datasets.kinds import RotationGuess
from pipelines.datasets.rows import Feature
from pipelines.datasets.vectors import described
from tests.unit.gwp.data.test_rotations import FORMS, NINE, SIX, WHOLE, matrices

T = np.arange(400)
ARM = np.sin(T / 40)
GRIP = (T % 100 > 60).astype(float)


def advice_of(names: list[str], *columns: np.ndarray) -> list[str]:
    guess = RotationGuess("state", names)
    rows = np.stack(columns, 1)
    for half in np.split(rows, 2):
        guess.add(half)
    found = list(guess.findings())
    assert all(finding.consequence == "ignored" for finding in found)
    return [finding.advice for finding in found]


@pytest.mark.parametrize(
    ("name", "column", "kind"),
    [
        ("base_yaw", 3.1 * ARM, "radians"),
        ("heading", 180 + 178 * ARM, "degrees_positive"),
        ("kLeftWristRoll", 175 * ARM, "degrees"),
        ("theta", pi + 3.1 * ARM, "radians_positive"),
        # No end of a turn is near.
        ("yaw", 1.5 * ARM, ""),
        ("pitch", pi / 2 * ARM, ""),
        ("yaw", 40 * ARM, ""),
        # Nothing says that these are angles.
        ("x", 3.1 * ARM, ""),
        ("strange", 178 * ARM, ""),
        # Without a name, a jump does.
        ("joint_3", (T / 9 + pi) % (2 * pi) - pi, "radians"),
    ],
)
def test_angles_are_known_by_name_and_range_or_by_a_jump(
    name: str, column: np.ndarray, kind: str
) -> None:
    found = advice_of([name], column)
    assert found == ([f"if so: `kinds: {{{name}: {kind}}}` on the robot"] if kind else [])


@pytest.mark.parametrize("form", FORMS)
def test_two_axes_are_known_by_their_numbers(form: str) -> None:
    kind, write_down = FORMS[form]
    six = write_down(matrices(T / 30, tilt=1.0))
    (found,) = advice_of(["x", *SIX, "y"], ARM, *six.T, ARM)
    wanted = "rot6d_interleaved" if form == "interleaved" else kind
    assert found.count(f": {wanted}") == 6
    assert found.startswith("if so: `kinds: {r0: ")
    # The same, but no longer at a right angle.
    six[7, 5] += 0.1
    assert advice_of(["x", *SIX, "y"], ARM, *six.T, ARM) == []


@pytest.mark.parametrize("form", WHOLE)
def test_a_matrix_is_known_by_its_numbers(form: str) -> None:
    nine = WHOLE[form](matrices(T / 30, tilt=1.0))
    (found,) = advice_of(["x", *NINE, "y"], ARM, *nine.T, ARM)
    assert found.count(": matrix") == 9
    # A mirror is none.
    nine[:, 6:] *= -1
    (found,) = advice_of(["x", *NINE, "y"], ARM, *nine.T, ARM)
    assert ": matrix" not in found


def told(
    names: tuple[list[str], list[str]], state: np.ndarray, action: np.ndarray
) -> list[tuple[str, str]]:
    features = Feature("state", names[0]), Feature("action", names[1])
    for feature, rows in zip(features, (state, action), strict=True):
        feature.add(rows)
    found = list(check_grippers(described(*features), *features))
    assert all(finding.consequence == "ignored" for finding in found)
    return [(finding.item, finding.advice) for finding in found]


def test_grippers_are_known_by_name_or_by_their_two_places() -> None:
    state = np.stack([ARM, 0.08 * GRIP], 1)
    action = np.stack([ARM, 0.08 * GRIP], 1)
    for name in ("left_gripper", "jaw.pos", "motor_7"):
        (found,) = told((["x", name], ["x", name]), state, action)
        assert found[0] == "state and action"
        assert f"`kinds: {{{name}: {{range: [0, 0.08], binary: true}}}}`" in found[1]
    # Another unit in the action: one name has one range.
    (found,) = told((["x", "grip"], ["x", "grip"]), state, np.stack([ARM, 2 * GRIP - 1], 1))
    assert "`kinds: {grip: {binary: true}}`" in found[1]
    # Half-open is a place where this one stands.
    slow = np.stack([ARM, 0.04 + 0.04 * ARM], 1)
    (found,) = told((["x", "grip"], ["x", "grip"]), slow, slow)
    assert "`kinds: {grip: {range: [0, 0.08]}}`" in found[1]


def test_a_gripper_whose_state_and_action_run_opposite_is_told() -> None:
    state, action = np.stack([ARM, 1 - GRIP], 1), np.stack([ARM, GRIP], 1)
    found = told((["x", "gripper_width"], ["x", "gripper_cmd"]), state, action)
    assert len(found) == 3
    assert found[2][1].startswith("`kinds: {gripper_width: {invert: true}}`")
    assert told((["x", "grip"], ["x", "grip"]), state, action)[1][1].endswith("no delta of it")
    same = told((["x", "gripper_width"], ["x", "gripper_cmd"]), action, action)
    assert len(same) == 2


def test_no_gripper_is_seen_where_there_is_none() -> None:
    # A hand of many fingers, a pose of a gripper, a dimension that is rarely away from rest.
    rare = (T == 7).astype(float)
    names = [f"finger_{i}" for i in range(6)]
    hand = np.stack([ARM * (i + 1) for i in range(6)], 1)
    assert told((names, names), hand, hand) == []
    others = ["gripper_x", "gripper_yaw", "gripper_velocity", "stop"]
    rows = np.stack([ARM, 2 * ARM, 3 * ARM, rare], 1)
    assert told((others, others), rows, rows) == []
    still = np.stack([ARM, 0 * ARM], 1)
    assert told((["x", "gripper"], ["x", "gripper"]), still, still) == []

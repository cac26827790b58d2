"""The safety envelope: whatever the policy computes, the robot gets something inside its
limits, or nothing.
"""

from typing import Any

import numpy as np
import pytest

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.policy.envelope.safety import PolicyError, apply_limits


def robot(velocity: tuple[float, ...] | None = (0.1, 0.2, 5.0), **more: Any) -> Embodiment:
    limits = Limits(lower=(-1, -1, 0), upper=(1, 2, 1), velocity=velocity)
    fields: dict[str, Any] = {
        "name": "arm",
        "fps": 10,
        "state_names": ("x", "y", "grip", "spare"),
        "action_names": ("x", "y", "grip"),
        "delta_mask": (True, True, False),
        "cameras": {"front": "top"},
        "limits": limits,
        "chunk": 8,
        "replan": 4,
    }
    return Embodiment(**(fields | more))


STATE = np.array([0.5, 0.5, 0.5, 9], np.float32)


def test_a_chunk_inside_the_limits_is_untouched() -> None:
    actions = np.array([[0.55, 0.6, 0.1], [0.6, 0.7, 0.9]], np.float32)
    out, flags = apply_limits(actions, STATE, robot())
    assert np.array_equal(out, actions)
    assert out.dtype == np.float32
    assert flags == ()


def test_position_is_clipped_and_named() -> None:
    actions = np.array([[0.5, 3.0, -0.5]], np.float32)
    out, flags = apply_limits(actions, STATE, robot(velocity=None))
    assert out[0].tolist() == [0.5, 2.0, 0.0]
    assert flags == ("clipped:y", "clipped:grip")


def test_velocity_is_held_between_rows_and_from_the_state() -> None:
    actions = np.full((4, 3), (1.0, 0.5, 1.0), np.float32)
    out, flags = apply_limits(actions, STATE, robot())
    assert out[:, 0] == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert flags == ("slowed:x",)


def test_without_a_state_of_the_same_quantity_the_first_row_is_free() -> None:
    actions = np.full((3, 3), (1.0, 0.5, 1.0), np.float32)
    out, flags = apply_limits(actions, STATE, robot(delta_mask=()))
    assert np.array_equal(out, actions)
    assert flags == ()


def test_the_input_is_not_changed() -> None:
    actions = np.full((2, 3), 9.0, np.float32)
    apply_limits(actions, STATE, robot())
    assert (actions == 9).all()


def test_committed_rows_stay_and_the_next_row_continues_from_them() -> None:
    actions = np.array([[0.9, 0, 0.5], [-0.9, 0, 0.5], [0.9, 0, 0.5]], np.float32)
    out, flags = apply_limits(actions, STATE, robot(), committed=2)
    assert np.array_equal(out[:2], actions[:2])
    assert out[2, 0] == pytest.approx(-0.8)
    assert flags == ("slowed:x",)
    assert np.array_equal(apply_limits(actions, STATE, robot(), committed=3)[0], actions)


def test_a_state_past_its_limit_is_no_way_out() -> None:
    actions = np.full((2, 3), (2.0, 0.5, 0.5), np.float32)
    out, _ = apply_limits(actions, np.array([1.5, 0.5, 0.5, 0], np.float32), robot())
    assert (out[:, 0] <= 1).all()


def test_every_chunk_ends_up_inside_and_a_second_pass_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    embodiment = robot()
    assert embodiment.limits is not None
    lower, upper = (
        np.float32(list(embodiment.limits.lower)),
        np.float32(list(embodiment.limits.upper)),
    )
    velocity = np.array(embodiment.limits.velocity, np.float32)
    for _ in range(200):
        actions = rng.normal(0, rng.choice([0.1, 1, 100]), (8, 3)).astype(np.float32)
        state = rng.normal(0, 2, 4).astype(np.float32)
        out, flags = apply_limits(actions, state, embodiment)
        assert ((out >= lower) & (out <= upper)).all()
        assert (np.abs(np.diff(out, axis=0)) <= velocity + 1e-5).all()
        assert bool(flags) == (not np.array_equal(out, actions))
        again, _ = apply_limits(out, state, embodiment)
        assert again == pytest.approx(out, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("limited", [True, False])
def test_a_value_that_is_not_finite_is_never_sent(bad: float, limited: bool) -> None:
    actions = np.zeros((4, 3), np.float32)
    actions[2, 1] = bad
    with pytest.raises(PolicyError, match="for y;"):
        apply_limits(actions, STATE, robot() if limited else robot(limits=None))


def test_a_number_too_large_for_float32_counts_as_not_finite() -> None:
    with pytest.raises(PolicyError), np.errstate(over="ignore"):
        apply_limits(np.full((1, 3), 1e300), STATE, robot())


def test_without_limits_nothing_is_changed() -> None:
    actions = np.full((2, 3), 1e6, np.float32)
    out, flags = apply_limits(actions, STATE, robot(limits=None))
    assert np.array_equal(out, actions)
    assert flags == ()

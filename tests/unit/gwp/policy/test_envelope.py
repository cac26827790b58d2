"""The envelope over random chunks: acceleration, the last executed action, refusal, and limits
that follow from the training data.
"""

from typing import Any

import numpy as np
import pytest

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Stats
from gwp.errors import PolicyError
from gwp.policy.admission.derived import limits_from
from gwp.policy.envelope.safety import Envelope, apply_limits, hold_from

D, P = 3, 24
LOWER, UPPER = np.array([-1.0, -1, 0]), np.array([1.0, 2, 1])
VELOCITY, ACCELERATION = np.array([0.1, 0.2, 5.0]), np.array([0.02, 0.05, 0.4])
JUMP = np.array([0.05, 0.3, 0.2])
ROUNDING = 1e-5


def robot(**changes: Any) -> Embodiment:
    limits = {
        "lower": tuple(LOWER),
        "upper": tuple(UPPER),
        "velocity": tuple(VELOCITY),
        "acceleration": tuple(ACCELERATION),
        "jump": tuple(JUMP),
    }
    fields: dict[str, Any] = {
        "name": "arm",
        "fps": 10,
        "state_names": ("x", "y", "grip"),
        "action_names": ("x", "y", "grip"),
        "delta_mask": (True, True, False),
        "cameras": {"front": "top"},
        "chunk": P,
        "replan": 4,
    }
    known = fields.keys() | {"kinds", "resample"}
    of_robot = {name: changes.pop(name) for name in list(changes) if name in known}
    return Embodiment(**(fields | of_robot | {"limits": Limits(**(limits | changes))}))


def walk(rng: np.random.Generator, rows: int = P) -> np.ndarray:
    """A chunk of any kind: smooth, jumping, far outside, at rest."""
    kind = rng.integers(4)
    if kind == 0:
        return np.cumsum(rng.normal(0, 0.02, (rows, D)), 0) + rng.uniform(-1, 1, D)
    if kind == 1:
        return rng.normal(0, rng.choice([0.1, 1, 100]), (rows, D))
    if kind == 2:
        return np.where(rng.random((rows, D)) < 0.5, LOWER, UPPER)
    return np.tile(rng.uniform(-2, 2, D), (rows, 1))


def test_a_chunk_keeps_position_velocity_and_acceleration() -> None:
    rng = np.random.default_rng(0)
    arm = robot(jump=None)
    for _ in range(600):
        out, flags = apply_limits(walk(rng).astype(np.float32), rng.uniform(-1, 1, D), arm)
        assert ((out >= LOWER - ROUNDING) & (out <= UPPER + ROUNDING)).all()
        steps = np.diff(out, axis=0)
        assert (np.abs(steps) <= VELOCITY + ROUNDING).all()
        # From the first two rows on the speed is known; it never has to be broken again.
        assert (np.abs(np.diff(steps, axis=0)) <= ACCELERATION + 2 * ROUNDING).all()
        again, _ = apply_limits(out, out[0], robot(jump=None, delta_mask=()))
        assert again == pytest.approx(out, abs=5 * ROUNDING)
        assert {flag.partition(":")[0] for flag in flags} <= {"clipped", "slowed", "eased"}


def test_a_chunk_that_keeps_all_limits_is_untouched_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    arm = robot(jump=None)
    untouched = 0
    for _ in range(300):
        # Slow enough that it could stop anywhere.
        line = np.cumsum(np.cumsum(rng.uniform(-1, 1, (P, D)) * 1e-3, 0), 0) * ACCELERATION * 5
        chunk = (line + 0.3).astype(np.float32)
        out, flags = apply_limits(chunk, chunk[0], arm)
        if not flags:
            untouched += 1
            assert np.array_equal(out, chunk)
    assert untouched > 100


def test_committed_rows_give_the_speed_that_the_next_one_goes_on_from() -> None:
    arm = robot(jump=None)
    committed = np.array([[0.0, 0, 0.5], [0.08, 0, 0.5]])
    wanted = np.concatenate([committed, np.tile([[-1.0, 0, 0.5]], (P - 2, 1))])
    out, flags = apply_limits(wanted.astype(np.float32), np.zeros(3), arm, committed=2)
    assert np.array_equal(out[:2], committed.astype(np.float32))
    # It brakes by 0.02 a step, and turns round.
    assert np.diff(out[:, 0])[:6] == pytest.approx([0.08, 0.06, 0.04, 0.02, 0, -0.02], abs=1e-6)
    assert "eased:x" in flags
    # One committed row and the one that was executed before it are two as well.
    same, _ = apply_limits(wanted[1:].astype(np.float32), np.zeros(3), arm, 1, committed[0])
    assert same == pytest.approx(out[1:], abs=1e-6)


def test_who_comes_too_fast_brakes_and_stays_inside() -> None:
    rng = np.random.default_rng(2)
    arm = robot(jump=None)
    for _ in range(500):
        committed = np.clip(np.cumsum(rng.normal(0, 0.5, (2, D)), 0), LOWER, UPPER)
        chunk = np.concatenate([committed, walk(rng)]).astype(np.float32)
        out, _ = apply_limits(chunk, rng.uniform(-1, 1, D), arm, committed=2)
        free = out[2:]
        assert ((free >= LOWER - ROUNDING) & (free <= UPPER + ROUNDING)).all()
        assert (np.abs(np.diff(out[1:], axis=0)) <= VELOCITY + ROUNDING).all()


def test_the_first_action_is_near_the_one_that_was_executed_last() -> None:
    rng = np.random.default_rng(3)
    arm = robot(velocity=None, acceleration=None)
    for _ in range(1000):
        executed = rng.uniform(LOWER, UPPER).astype(np.float32)
        chunk = walk(rng).astype(np.float32)
        out, flags = apply_limits(chunk, rng.uniform(-1, 1, D), arm, 0, executed)
        assert (np.abs(out[0] - executed) <= JUMP + ROUNDING).all()
        # It catches up row by row, and is as it was from then on.
        inside = np.clip(chunk, LOWER, UPPER).astype(np.float32)
        for dim in range(D):
            behind = out[:, dim] != inside[:, dim]
            caught = int(np.argmin(behind)) if not behind.all() else P
            assert not behind[caught:].any()
            line = np.concatenate([executed[dim : dim + 1], out[:caught, dim]])
            assert (np.abs(np.diff(line)) <= JUMP[dim] + ROUNDING).all()
            assert (f"held:{arm.action_names[dim]}" in flags) == (caught > 0)


def test_without_an_executed_action_nothing_is_held() -> None:
    arm = robot(velocity=None, acceleration=None)
    chunk = np.full((P, D), 0.9, np.float32)
    assert apply_limits(chunk, np.zeros(3), arm)[1] == ()
    assert apply_limits(chunk, np.zeros(3), arm, 0, np.zeros(3))[1]


def test_an_executed_action_says_more_than_a_measured_state() -> None:
    arm = robot(acceleration=None, jump=None)
    chunk = np.tile([[0.5, 0.5, 0.5]], (P, 1)).astype(np.float32)
    state, executed = np.zeros(3), np.array([0.45, 0.45, 0.45])
    assert apply_limits(chunk, state, arm)[1] == ("slowed:x", "slowed:y")
    assert apply_limits(chunk, state, arm, 0, executed)[1] == ()


def test_limits_may_refuse_instead() -> None:
    arm = robot(on_excess="refuse")
    inside = np.full((P, D), 0.5, np.float32)
    at = np.full(3, 0.5)
    assert np.array_equal(apply_limits(inside, at, arm, 0, at)[0], inside)
    outside = inside.copy()
    outside[7, 1] = 9
    with pytest.raises(PolicyError, match=r"clipped:y, slowed:y, .*on_excess: refuse"):
        apply_limits(outside, at, arm, 0, at)


def test_an_angle_goes_the_short_way_under_an_acceleration_limit_too() -> None:
    arm = robot(
        lower=(-4, -1, 0),
        upper=(4, 2, 1),
        jump=None,
        kinds={"x": "radians"},
        delta_mask=(True, False, False),
    )
    chunk = np.tile([[-3.1, 0.5, 0.5]], (P, 1)).astype(np.float32)
    out, _ = apply_limits(chunk, np.array([3.1, 0.5, 0.5]), arm)
    way = (np.diff(np.concatenate([[3.1], out[:, 0]])) + np.pi) % (2 * np.pi) - np.pi
    assert (np.abs(way) <= 0.1 + ROUNDING).all()
    assert out[-1, 0] == pytest.approx(-3.1)


def test_an_angle_that_its_limits_keep_from_a_whole_turn_is_a_number_as_any_other() -> None:
    rng = np.random.default_rng(7)
    plain, angle = robot(jump=None), robot(jump=None, kinds={"x": "radians"})
    for _ in range(100):
        chunk, state = walk(rng).astype(np.float32), rng.uniform(-1, 1, D)
        one, other = apply_limits(chunk, state, plain), apply_limits(chunk, state, angle)
        assert np.array_equal(one[0], other[0])
        assert one[1] == other[1]


def test_a_held_chunk_stands_still() -> None:
    arm = robot(resample=("linear", "sum", "hold"))
    chunk = np.arange(P * D, dtype=np.float32).reshape(P, D)
    out = hold_from(chunk, arm, 3)
    assert np.array_equal(out[:3], chunk[:3])
    assert (out[3:] == [chunk[2, 0], 0, chunk[2, 2]]).all()


def stats(rng: np.random.Generator, arm: Embodiment, rows: np.ndarray) -> Stats:
    """Of a recording whose actions are rows `[n, d]`, and whose state lags behind by one."""
    state = np.concatenate([rows[:1], rows[:-1]])
    relative = np.where(arm.delta, rows - state, rows)

    def of(values: np.ndarray, steps: np.ndarray) -> FeatureStats:
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
        moments = (values.mean(0), values.std(0), values.min(0), values.max(0), q01, q99)
        return FeatureStats(*moments, step=np.abs(np.diff(steps, axis=0)).max(0))

    return Stats(of(state, state), of(relative, rows))


@pytest.mark.parametrize("mask", [(True, True, False), ()])
def test_derived_limits_leave_alone_whatever_training_saw(mask: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(4)
    arm = robot(delta_mask=mask).model_copy(update={"limits": None})
    rows = np.cumsum(rng.normal(0, 0.02, (2000, D)), 0)
    rows[:, 2] = rows[:, 2] > 0
    envelope = Envelope(limits_from(stats(rng, arm, rows), arm), derived=True)
    for start in range(0, len(rows) - P, P):
        chunk = rows[start : start + P].astype(np.float32)
        # As a policy would give it: nearly so.
        chunk = chunk + (0.02 * rng.normal(size=chunk.shape) * [1, 1, 0]).astype(np.float32)
        out, flags = apply_limits(chunk, rows[max(0, start - 1)], arm, 0, None, envelope)
        assert flags == ()
        assert np.array_equal(out, chunk)
    wild = chunk.copy()
    wild[5] = [1e3, -1e3, 40]
    out, flags = apply_limits(wild, rows[start], arm, 0, None, envelope)
    assert {"clipped:x", "clipped:y", "clipped:grip"} <= set(flags)
    assert np.abs(out).max() < 10


def test_derived_limits_never_make_a_robot_move() -> None:
    rng = np.random.default_rng(5)
    arm = robot(delta_mask=(True,) * 3).model_copy(update={"limits": None})
    rows = rng.uniform(-1, 1, (500, D))
    envelope = Envelope(limits_from(stats(rng, arm, rows), arm), derived=True)
    for far in (50.0, -50.0):
        place = np.full(D, far, np.float32)
        stay = np.tile(place, (P, 1))
        assert np.array_equal(apply_limits(stay, place, arm, 0, None, envelope)[0], stay)
        assert np.array_equal(apply_limits(stay, place, arm, 0, place, envelope)[0], stay)


def test_derived_limits_leave_rotations_to_themselves() -> None:
    names = ("yaw", "qx", "qy", "qz", "qw")
    arm = Embodiment(
        name="arm",
        fps=10,
        state_names=names,
        action_names=names,
        kinds={"yaw": "radians"} | dict.fromkeys(names[1:], "quaternion"),
        cameras={"front": "top"},
        chunk=P,
        replan=4,
    )
    rng = np.random.default_rng(6)
    rows = np.column_stack([rng.uniform(-0.1, 0.1, 99), np.tile([0, 0, 0, 1.0], (99, 1))])
    narrow = stats(rng, arm.model_copy(update={"kinds": {}}), rows)
    envelope = Envelope(limits_from(narrow, arm), derived=True)
    for _ in range(200):
        four = rng.normal(size=(P, 4))
        four /= np.linalg.norm(four, axis=1, keepdims=True)
        chunk = np.column_stack([rng.uniform(-np.pi, np.pi, P), four]).astype(np.float32)
        out, flags = apply_limits(chunk, chunk[0], arm, 0, chunk[0], envelope)
        assert flags == ()
        assert np.array_equal(out, chunk)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"velocity": (1.0,)}, "velocity has 1 entries|entries; give one per action"),
        ({"jump": (-1.0, 1, 1)}, "limits.jump is below 0"),
        ({"acceleration": (float("nan"), 1, 1)}, "limits.acceleration holds NaN"),
        ({"lower": (5.0, 0, 0)}, "limits.lower is above limits.upper"),
        ({"on_excess": "ignore"}, "clamp"),
        ({"lower": (0.0,), "upper": (1.0,), "velocity": None}, "entries"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        robot(**changes)


def test_what_is_not_set_is_not_written() -> None:
    """Digests of this JSON name manifests, caches and policies."""
    plain = robot(acceleration=None, jump=None)
    assert plain.model_dump(mode="json")["limits"].keys() == {"lower", "upper", "velocity"}
    assert "state_units" not in plain.model_dump(mode="json")
    whole = robot(on_excess="refuse").model_copy(update={"state_units": ("rad", "rad", "m")})
    written = whole.model_dump(mode="json")
    assert written["limits"]["on_excess"] == "refuse"
    assert written["state_units"] == ["rad", "rad", "m"]
    assert Embodiment.model_validate_json(whole.model_dump_json()) == whole
    assert Embodiment.model_validate_json(plain.model_dump_json()) == plain

"""Angles that wrap, quaternions and grippers: no jump that the robot did not make, in training,
statistics and acting.
"""

import json
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.rates import at_steps, steps_of
from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.data.robot.kinds import Gripper, meaning_of
from gwp.data.source import Source
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Normalizer, Stats, compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from gwp.policy.envelope.safety import apply_limits
from tests.support.sets import FPS, TOP, columns, info, write_v21

WINDOW = Window(chunk=4, stride=1)
TURN = 2 * pi
QUATERNION = ("qx", "qy", "qz", "qw")


def robot(names: tuple[str, ...], **changes: Any) -> Embodiment:
    fields: dict[str, Any] = {
        "name": "arm",
        "fps": FPS,
        "state_names": names,
        "action_names": names,
        "cameras": {"front": TOP},
        "chunk": 4,
        "replan": 2,
    }
    return Embodiment(**(fields | changes))


def write(root: Path, names: tuple[str, ...], state: np.ndarray, action: np.ndarray) -> str:
    """A set of one episode with these rows."""
    about = info("v2.1", (TOP,))["features"]
    for key in ("observation.state", "action"):
        about[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    write_v21(root, (len(state),), features=about)
    table = columns(0, len(state))
    for key, values in (("observation.state", state), ("action", action)):
        table[key] = pa.array(values.tolist(), pa.list_(pa.float64()))
    pq.write_table(pa.table(table), root / "data/chunk-000/episode_000000.parquet")
    return str(root)


def wrapped(angles: np.ndarray, low: float = -pi, period: float = TURN) -> np.ndarray:
    return (angles - low) % period + low


@pytest.mark.parametrize(
    ("kind", "low", "period"),
    [
        ("radians", -pi, TURN),
        ("radians_positive", 0.0, TURN),
        ("degrees", -180.0, 360.0),
        ("degrees_positive", 0.0, 360.0),
    ],
)
@pytest.mark.parametrize("ratio", [1, 2, 0.5])
def test_an_angle_is_relative_the_short_way_and_comes_back_as_it_was_recorded(
    tmp_path: Path, kind: str, low: float, period: float, ratio: float
) -> None:
    # It goes round and round, a fiftieth of a turn per row.
    line = np.arange(80) * period / 50 + low
    state = wrapped(line, low, period)[:, None]
    action = wrapped(line + period / 100, low, period)[:, None]
    uri = write(tmp_path / "set", ("yaw",), state, action)
    arm = robot(("yaw",), kinds={"yaw": kind}, delta_mask=(True,), fps=FPS / ratio)
    source = Source(uri=uri, embodiment="arm", resample=ratio != 1)
    stats = compute_stats([source], arm, WINDOW)
    # From half a row ahead to the last step of a chunk, clamped at the end; nothing near a turn.
    assert stats.action.min[0] > -1e-6 * period
    assert stats.action.max[0] < (0.5 + 3 * ratio) * period / 50 + 1e-6 * period

    manifest = build_manifest(
        [source], embodiments={"arm": arm}, window=WINDOW, clip=ClipWindow(frames=5, fps=5)
    )
    canvas = Canvas(layout="single", width=16, height=16)
    spec = SampleSpec(
        canvas, WINDOW, ClipWindow(frames=5, fps=5), {"arm": arm}, {"arm": stats}, 1, False, 0
    )
    samples, failed = decode_samples(manifest.rows(range(len(manifest))), spec, FileReader())
    assert not failed
    steps = steps_of(80, ratio)
    clean_state, clean_action = (
        at_steps(x[:, None], 0, steps, ratio) for x in (line, line + period / 100)
    )
    normal, meaning = Normalizer(stats, arm), arm.action_meaning
    assert meaning is not None
    for k, sample in enumerate(samples):
        chunk = clean_action[np.minimum(np.arange(k, k + 4), steps - 1)]
        served = normal.inverse_actions(sample["actions"], wrapped(clean_state[k], low, period))
        assert ((served > low - 1e-5 * period) & (served < low + 1.00001 * period)).all()
        off = meaning.shortest(served - wrapped(chunk, low, period))
        np.testing.assert_allclose(off, 0, atol=1e-5 * period)
        way = (chunk - clean_state[k] - stats.action.q01) / (stats.action.q99 - stats.action.q01)
        np.testing.assert_allclose(sample["actions"], 2 * way - 1, atol=1e-4)


def test_what_lies_in_its_range_comes_back_to_the_last_bit() -> None:
    meaning = meaning_of(("yaw", "x"), {"yaw": "radians"})
    assert meaning is not None
    values = np.array([[np.float32(pi), 7], [-pi, -7], [3.0, 0], [0.1, 100]], np.float64)
    np.testing.assert_array_equal(meaning.within(values), values)
    np.testing.assert_allclose(meaning.within(np.array([pi + 0.5, 9.0])), [0.5 - pi, 9.0])
    np.testing.assert_allclose(
        meaning.shortest(np.array([[6.0, 6.0], [-3.2, 0], [3.0, 0]])),
        [[6 - TURN, 6.0], [TURN - 3.2, 0], [3.0, 0]],
    )


def test_steps_between_two_rows_lie_on_the_short_way() -> None:
    meaning = meaning_of(
        ("yaw", *QUATERNION), dict.fromkeys(QUATERNION, "quaternion") | {"yaw": "radians"}
    )
    half = np.sin(0.2), np.cos(0.2)
    rows = np.array([[3.1, 0, 0, 0, 1], [-3.1, 0, 0, -half[0], -half[1]]])
    found = at_steps(rows, 0, 2, 0.5, meaning=meaning)
    assert abs(abs(found[1, 0]) - pi) < 1e-9
    # Half of a turn by 0.4 about z; the other sign is the same rotation.
    np.testing.assert_allclose(found[1, 1:], [0, 0, np.sin(0.1), np.cos(0.1)], atol=1e-12)
    np.testing.assert_array_equal(found[0], rows[0])


@pytest.mark.parametrize("relative", [False, True])
def test_the_sign_of_a_quaternion_means_nothing(tmp_path: Path, relative: bool) -> None:
    rng = np.random.default_rng(0)
    # About a pose with w = 0, as grippers that look down have it.
    state = np.array([1.0, 0, 0, 0]) + 0.2 * rng.normal(size=(60, 4))
    state /= np.linalg.norm(state, axis=1, keepdims=True)
    action = np.roll(state, -1, 0)
    arm = robot(
        QUATERNION, kinds=dict.fromkeys(QUATERNION, "quaternion"), delta_mask=(relative,) * 4
    )
    found = []
    for name in "ab":
        signs = rng.choice([-1, 1], (2, 60, 1))
        uri = write(tmp_path / name, QUATERNION, state * signs[0], action * signs[1])
        stats = compute_stats([Source(uri=uri, embodiment="arm")], arm, WINDOW)
        normal = Normalizer(Stats.from_json(json.loads(json.dumps(stats.to_json()))), arm)
        learnt = normal.actions((action * signs[1])[3:7], (state * signs[0])[3])
        found.append((stats.state.q01, stats.action.q99, normal.state(state * signs[0]), learnt))
        served = normal.inverse_actions(learnt, (state * signs[0])[3])
        np.testing.assert_allclose(np.abs((served * action[3:7]).sum(1)), 1, atol=1e-6)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    # Its main entry is 1 give or take; with free signs it would go from -1 to 1.
    assert stats.state.q99[0] - stats.state.q01[0] < 0.6


def feature(low: float, high: float, least: float, most: float) -> FeatureStats:
    return FeatureStats(*(np.array([v]) for v in (low, high - low, least, most, low, high)))


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("ends", [None, (0.0, 0.08)])
def test_the_ends_of_a_gripper_are_minus_one_and_one(
    invert: bool, ends: tuple[float, float] | None
) -> None:
    # It hardly ever closes: its quantiles say that it does not move.
    rarely = feature(0.07, 0.07, 0.01, 0.075)
    kind = Gripper(range=ends, invert=invert)
    normal = Normalizer(Stats(rarely, rarely), robot(("grip",), kinds={"grip": kind}))
    low, high = ends or (0.01, 0.075)
    sign = -1 if invert else 1
    for value, shown in ((low, -sign), (high, sign), ((low + high) / 2, 0)):
        row = np.array([value])
        np.testing.assert_allclose(normal.state(row), [shown], atol=1e-6)
        np.testing.assert_allclose(normal.actions(row[None], row), [[shown]], atol=1e-6)
        np.testing.assert_allclose(
            normal.inverse_actions(np.array([[shown]]), row), [[value]], atol=1e-6
        )
    binary = robot(("grip",), kinds={"grip": kind.model_copy(update={"binary": True})})
    served = Normalizer(Stats(rarely, rarely), binary).inverse_actions(
        np.array([[-0.2], [0.3], [7.0]]), np.zeros(1)
    )
    np.testing.assert_allclose(served[:, 0], [high, low, low] if invert else [low, high, high])
    assert binary.resampling == ("hold",)


def test_kinds_that_do_not_fit_are_refused() -> None:
    for changes, message in (
        ({"kinds": {"pitch": "radians"}}, "kinds names pitch; the dimensions are grip, yaw"),
        ({"kinds": {"yaw": "quaternion"}}, "four entries one behind the other"),
        ({"kinds": {"yaw": "gradians"}}, "radians"),
        ({"kinds": {"grip": {}}, "delta_mask": (True, True)}, "gripper grip"),
        ({"kinds": {"grip": {"range": (1.0, 0.0)}}}, "lower end comes first"),
    ):
        with pytest.raises(ValidationError, match=message):
            robot(("yaw", "grip"), **changes)


def test_displacements_do_not_wrap() -> None:
    arm = robot(("yaw",), kinds={"yaw": "radians"}, resample=("sum",))
    assert arm.action_meaning is None
    assert arm.state_meaning is not None
    # Rotations of several entries do not add up at all.
    four = dict.fromkeys(QUATERNION, "quaternion")
    with pytest.raises(ValidationError, match=r"qx is part of a rotation .* cannot add up"):
        robot(QUATERNION, kinds=four, resample=("sum",) * 4)


def test_what_has_no_kinds_is_written_as_before() -> None:
    arm = robot(("yaw",))
    assert "kinds" not in arm.model_dump(mode="json")
    assert "kinds" not in json.loads(arm.model_dump_json())
    turning = robot(("yaw", "grip"), kinds={"yaw": "degrees", "grip": {"range": [0, 1]}})
    assert Embodiment.model_validate_json(turning.model_dump_json()) == turning
    assert "colours" not in Source(uri="x").model_dump(mode="json", exclude={"uri"})
    assert Source(uri="x", colours="bgr").model_dump(mode="json")["colours"] == "bgr"


def test_statistics_of_other_kinds_are_refused(tmp_path: Path) -> None:
    angles = wrapped(np.arange(30) / 3)[:, None]
    uri = write(tmp_path / "set", ("yaw",), angles, angles)
    plain, turning = robot(("yaw",)), robot(("yaw",), kinds={"yaw": "radians"})
    source = Source(uri=uri, embodiment="arm")
    for made, used in ((plain, turning), (turning, plain)):
        stats = Stats.from_json(
            json.loads(json.dumps(compute_stats([source], made, WINDOW).to_json()))
        )
        Normalizer(stats, made)
        with pytest.raises(DataError, match="computed with kinds"):
            Normalizer(stats, used)
    # Published statistics state nothing, and angles need nothing of them.
    Normalizer(Stats(feature(-3, 3, -3, 3), feature(-3, 3, -3, 3)), turning)
    degrees = robot(("yaw",), kinds={"yaw": "radians_positive"})
    with pytest.raises(DataError, match=r"yaw goes from -\d.* no angle in radians_positive"):
        compute_stats([source], degrees, WINDOW)


def test_a_speed_limit_counts_the_short_way() -> None:
    limits = Limits(lower=(-pi, -1), upper=(pi, 1), velocity=(0.1, 0.1))
    arm = robot(("yaw", "x"), kinds={"yaw": "radians"}, delta_mask=(True, True), limits=limits)
    state = np.array([3.1, 0], np.float32)
    near = wrapped(3.1 + 0.05 * np.arange(1, 5))
    chunk = np.stack([near, np.zeros(4)], 1).astype(np.float32)
    held, flags = apply_limits(chunk, state, arm)
    np.testing.assert_array_equal(held, chunk)
    assert flags == ()
    far = np.tile(np.array([-2.5, 0], np.float32), (4, 1))
    held, flags = apply_limits(far, state, arm)
    np.testing.assert_allclose(held[:, 0], wrapped(3.1 + 0.1 * np.arange(1, 5)), atol=1e-5)
    assert flags == ("slowed:yaw",)
    # A joint that stops short of a whole turn must not go through its stop.
    stopped = limits.model_copy(update={"lower": (-3.0, -1.0), "upper": (3.0, 1.0)})
    arm = arm.model_copy(update={"limits": stopped})
    held, _ = apply_limits(far, np.array([2.95, 0], np.float32), arm)
    np.testing.assert_allclose(held[:, 0], 2.95 - 0.1 * np.arange(1, 5), atol=1e-5)


def test_a_gripper_in_another_unit_than_its_range_is_refused(tmp_path: Path) -> None:
    state = np.linspace(0, 0.083, 12)[:, None]
    near = write(tmp_path / "near", ("grip",), state, state)
    far = write(tmp_path / "far", ("grip",), state, 9 * state)
    arm = robot(("grip",), kinds={"grip": Gripper(range=(0.0, 0.08))})
    assert compute_stats([Source(uri=near, embodiment="arm")], arm, WINDOW).action.max[0] > 0.08
    with pytest.raises(DataError, match=r"grip goes from 0 to 0\.747, its range .* leave `range`"):
        compute_stats([Source(uri=far, embodiment="arm")], arm, WINDOW)
    own = robot(("grip",), kinds={"grip": Gripper()})
    normal = Normalizer(compute_stats([Source(uri=far, embodiment="arm")], own, WINDOW), own)
    np.testing.assert_allclose(normal.state(state[-1]), [1], atol=1e-6)
    np.testing.assert_allclose(normal.actions(9 * state[-1:], state[-1]), [[1]], atol=1e-6)


def test_a_wild_row_is_no_end_of_a_gripper(tmp_path: Path) -> None:
    t = np.arange(80)
    rows = 0.04 + 0.04 * np.sin(t / 12)[:, None]
    rows[33] = 1e5
    uri = write(tmp_path / "set", ("grip",), rows, np.where(rows > 1, 0.04, rows))
    arm = robot(("grip",), kinds={"grip": Gripper()})
    # Of few rows the quantile itself would be drawn to it, so it is one of several episodes.
    sums = compute_stats([Source(uri=uri, embodiment="arm")], arm, WINDOW)
    wild = replace(sums.state, q99=np.array([0.08]), wild=np.array([True]))
    normal = Normalizer(Stats(wild, sums.action, sums.metadata), arm)
    np.testing.assert_allclose(normal.state(np.array([[0.08], [0.0]])), [[1], [-1]], atol=0.01)

"""Rotations of six entries, and absolute angles that wrap: what training, statistics, acting and
judging make of them.
"""

import json
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.rates import at_steps
from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.data.robot.kinds import meaning_of
from gwp.data.robot.rotations import proper, upright
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, Stats, compute_stats
from gwp.data.window import ClipWindow
from gwp.errors import DataError
from gwp.policy.envelope.safety import apply_limits
from tests.unit.gwp.data.test_kinds import QUATERNION, WINDOW, robot, wrapped, write

SIX = ("r0", "r1", "r2", "r3", "r4", "r5")
NINE = (*SIX, "r6", "r7", "r8")
WHOLE = {
    "row by row": lambda m: m.reshape(*m.shape[:-2], 9),
    "column by column": lambda m: np.swapaxes(m, -1, -2).reshape(*m.shape[:-2], 9),
}
FORMS = {
    "columns": ("rot6d", lambda m: np.concatenate([m[..., 0], m[..., 1]], -1)),
    "rows": ("rot6d", lambda m: np.concatenate([m[..., 0, :], m[..., 1, :]], -1)),
    "interleaved": ("rot6d_interleaved", lambda m: m[..., :2].reshape(*m.shape[:-2], 6)),
}


def matrices(angles: np.ndarray, tilt: float = 0.4) -> np.ndarray:
    """Rotations `[n, 3, 3]` about an axis that leans by `tilt`."""
    x, y, z = np.sin(tilt), 0.0, np.cos(tilt)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    s, c = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.asarray(np.eye(3) + s * cross + (1 - c) * (cross @ cross))


def decoded(source: Source, arm: Embodiment, stats: Stats) -> list[Any]:
    clip = ClipWindow(frames=5, fps=5)
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=clip)
    canvas = Canvas(layout="single", width=16, height=16)
    spec = SampleSpec(canvas, WINDOW, clip, {"arm": arm}, {"arm": stats}, 9, False, 0)
    samples, failed = decode_samples(manifest.rows(range(len(manifest))), spec, FileReader())
    assert not failed
    return samples


def learnt_and_served(uri: str, arm: Embodiment, state: np.ndarray) -> tuple[Stats, Any, Any]:
    """Statistics, the targets of every sample and what comes back of them."""
    source = Source(uri=uri, embodiment="arm")
    stats = compute_stats([source], arm, WINDOW)
    stats = Stats.from_json(json.loads(json.dumps(stats.to_json())))
    samples = decoded(source, arm, stats)
    targets = np.stack([s["actions"][:, : len(arm.action_names)] for s in samples])
    normal = Normalizer(stats, arm)
    return stats, targets, normal.inverse_actions(targets, state)


def chunks_of(rows: np.ndarray) -> np.ndarray:
    at = np.arange(len(rows))[:, None] + np.arange(WINDOW.chunk)
    return np.asarray(rows[np.minimum(at, len(rows) - 1)])


def off(served: np.ndarray, action: np.ndarray, arm: Embodiment) -> np.ndarray:
    """Served chunks less the recorded ones, angles the short way."""
    meaning = arm.action_meaning
    assert meaning is not None
    return meaning.shortest(served - chunks_of(action))


@pytest.mark.parametrize("form", FORMS)
def test_six_entries_are_interpolated_as_the_rotation_that_they_are(form: str) -> None:
    kind, write_down = FORMS[form]
    meaning = meaning_of(SIX, dict.fromkeys(SIX, kind))
    angles = np.array([0.2, 1.7, 1.9, -1.0])
    rows = write_down(matrices(angles))
    found = at_steps(rows, 0, 10, 0.3, meaning=meaning)
    at = np.interp(np.arange(10) * 0.3, np.arange(4), angles)
    np.testing.assert_allclose(found, write_down(matrices(at)), atol=1e-9)
    # Those that fall onto a row are that row.
    np.testing.assert_array_equal(found[0], rows[0])
    bad = rows.copy()
    bad[1, 2] = np.nan
    gone = np.isnan(at_steps(bad, 0, 10, 0.3, meaning=meaning)).all(1)
    assert gone[1:7].all()
    assert not gone[[0, *range(7, 10)]].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("relative", [False, True])
def test_six_entries_come_back_as_they_were_and_others_are_made_sound(
    tmp_path: Path, form: str, relative: bool
) -> None:
    kind, write_down = FORMS[form]
    state = write_down(matrices(np.arange(40) / 9, tilt=1.0))
    action = np.roll(state, -1, 0)
    uri = write(tmp_path / "set", SIX, state, action)
    arm = robot(SIX, kinds=dict.fromkeys(SIX, kind), delta_mask=(relative,) * 6)
    stats, targets, served = learnt_and_served(uri, arm, state)
    np.testing.assert_allclose(served, chunks_of(action), atol=1e-5)
    shown = chunks_of(action) - (state[:, None] if relative else 0)
    np.testing.assert_allclose(shown.reshape(-1, 6).min(0), stats.action.min, atol=1e-6)
    # What a network gives is no rotation.
    noisy = targets + np.random.default_rng(0).normal(size=targets.shape)
    rough = Normalizer(stats, arm).inverse_actions(noisy, state)
    order = [0, 2, 4, 1, 3, 5] if kind == "rot6d_interleaved" else list(range(6))
    first, second = rough[..., order[:3]], rough[..., order[3:]]
    np.testing.assert_allclose(np.linalg.norm(first, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(second, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose((first * second).sum(-1), 0, atol=1e-6)


@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("relative", [False, True])
def test_nine_entries_are_a_rotation_in_every_way(
    tmp_path: Path, form: str, relative: bool
) -> None:
    write_down = WHOLE[form]
    angles = np.arange(40) / 9
    state = write_down(matrices(angles, tilt=1.0))
    action = np.roll(state, -1, 0)
    uri = write(tmp_path / "set", NINE, state, action)
    arm = robot(NINE, kinds=dict.fromkeys(NINE, "matrix"), delta_mask=(relative,) * 9)
    stats, targets, served = learnt_and_served(uri, arm, state)
    np.testing.assert_allclose(served, chunks_of(action), atol=1e-5)
    # What a network gives is no rotation; what is served is one.
    noisy = targets + np.random.default_rng(0).normal(size=targets.shape)
    rough = Normalizer(stats, arm).inverse_actions(noisy, state).reshape(-1, 3, 3)
    np.testing.assert_allclose(
        rough @ np.swapaxes(rough, 1, 2), np.tile(np.eye(3), (len(rough), 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(rough), 1, atol=1e-5)
    # Between two rows it lies on the way from one rotation to the other.
    meaning = arm.action_meaning
    found = at_steps(state, 0, 10, 0.3, meaning=meaning)
    wanted = write_down(matrices(np.interp(np.arange(10) * 0.3, np.arange(40), angles), tilt=1.0))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_a_sound_matrix_keeps_its_bits() -> None:
    sound = WHOLE["row by row"](matrices(np.arange(50) / 7)).astype(np.float32)
    np.testing.assert_array_equal(proper(sound), sound)


def test_nine_entries_lie_together_and_are_relative_together() -> None:
    kinds = dict.fromkeys(NINE, "matrix")
    with pytest.raises(ValidationError, match="matrix is nine entries one behind the other"):
        robot(NINE, kinds=dict.fromkeys(SIX, "matrix"))
    with pytest.raises(ValidationError, match="a part of one rotation"):
        robot(NINE, kinds=kinds, delta_mask=(True,) * 6 + (False,) * 3)


def test_sound_axes_keep_their_bits_and_none_become_axes() -> None:
    sound = FORMS["columns"][1](matrices(np.arange(50) / 7)).astype(np.float32)
    np.testing.assert_array_equal(upright(sound), sound)
    for nothing in (np.zeros(6), np.array([1.0, 0, 0, 2, 0, 0]), np.array([0.0, 0, 0, 1, 0, 0])):
        found = upright(nothing)
        lengths = np.linalg.norm(found.reshape(2, 3), axis=1)
        np.testing.assert_allclose(lengths, 1)
        assert abs(found[:3] @ found[3:]) < 1e-9


@pytest.mark.parametrize(
    ("names", "kind", "row", "message"),
    [
        (SIX, "rot6d", [1, 0, 0, 1, 0, 0], "two axes that are at no right angle"),
        (SIX, "rot6d", [0, 0, 0, 0, 0, 0], "length 0 where 1 belongs to a rot6d"),
        # The first two columns row by row.
        (SIX, "rot6d", [0.6, -0.8, 0.8, 0.6, 0, 0], "begins entries of length 1.28"),
        (QUATERNION, "quaternion", [0, 0, 0, 2], "qx begins entries of length 2 where 1"),
        (NINE, "matrix", [1, 0, 0, 0, 1, 0, 0, 0, -1], "no rotation, or a mirror, as in a matrix"),
        (NINE, "matrix", [1, 0, 0, 0, 1, 0, 0, 0, 0], "length 0 where 1 belongs to a matrix"),
    ],
)
def test_what_is_no_rotation_is_refused(
    tmp_path: Path, names: tuple[str, ...], kind: str, row: list[float], message: str
) -> None:
    rows = np.tile(np.array(row, np.float64), (12, 1))
    uri = write(tmp_path / "set", names, rows, rows)
    arm = robot(names, kinds=dict.fromkeys(names, kind))
    with pytest.raises(DataError, match=message):
        compute_stats([Source(uri=uri, embodiment="arm")], arm, WINDOW)


def test_deltas_of_rotations_are_whole_and_of_the_same_rotation() -> None:
    kinds = dict.fromkeys(SIX, "rot6d")
    for changes, message in (
        ({"delta_mask": (True,) * 3 + (False,) * 3}, "a part of one rotation"),
        ({"state_names": ("a", *SIX[1:], SIX[0]), "delta_mask": (True,) * 6}, "of the state"),
        ({"state_names": tuple("abcdef"), "delta_mask": (True,) * 6}, "entries of the state"),
    ):
        with pytest.raises(ValidationError, match=message):
            robot(SIX, kinds=kinds, **changes)
    with pytest.raises(ValidationError, match="another unit"):
        robot(
            ("yaw",),
            state_names=("heading",),
            kinds={"yaw": "radians", "heading": "degrees"},
            delta_mask=(True,),
        )


@pytest.mark.parametrize("named", [True, False])
def test_an_absolute_angle_does_not_jump_within_a_chunk(tmp_path: Path, named: bool) -> None:
    # It goes round and round; no cut would do.
    line = np.arange(80) * 0.21
    state, action = wrapped(line)[:, None], wrapped(line + 0.1)[:, None]
    uri = write(tmp_path / "set", ("yaw",), state, action)
    arm = robot(("yaw",), kinds={"yaw": "radians"})
    if not named:
        arm = robot(("yaw",), state_names=("other",), kinds={"yaw": "radians"})
        about = json.loads((tmp_path / "set/meta/info.json").read_text())
        about["features"]["observation.state"]["names"] = ["other"]
        (tmp_path / "set/meta/info.json").write_text(json.dumps(about))
    stats, targets, served = learnt_and_served(uri, arm, state)
    assert np.abs(served).max() < pi + 1e-5
    np.testing.assert_allclose(off(served, action, arm), 0, atol=1e-5)
    low, high = stats.action.low_high
    learnt = (targets + 1) / 2 * (high - low) + low
    assert np.abs(np.diff(learnt, axis=1)).max() < 0.22
    normal = Normalizer(stats, arm)
    if named:
        # A robot may send its state in any turn.
        np.testing.assert_allclose(normal.state(state + 2 * pi), normal.state(state), atol=1e-6)
        two = normal.inverse_actions(targets, state + 2 * pi)
        np.testing.assert_allclose(off(two, action, arm), 0, atol=1e-5)
        # From where the state is, also where the action is beyond the end of the range.
        np.testing.assert_allclose(learnt[:-1, 0] - state[:-1], 0.1, atol=1e-5)
        # A promised row is what training would show of it.
        near_end = np.array([[3.1]])
        one, other = (normal.actions(np.array([[[a]]]), near_end) for a in (3.14, -3.14))
        assert 0 < (other - one).item() < 0.01


def test_an_angle_about_the_end_of_its_range_is_cut_elsewhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    # A hand that looks down: its roll is pi, give or take.
    state = wrapped(pi + rng.normal(0, 0.1, (80, 1)))
    action = wrapped(state + 0.02)
    assert state.min() < -3 < 3 < state.max()
    uri = write(tmp_path / "set", ("roll",), state, action)
    arm = robot(("roll",), kinds={"roll": "radians"})
    stats, _, served = learnt_and_served(uri, arm, state)
    assert stats.state.max[0] - stats.state.min[0] < 1
    assert stats.action.max[0] - stats.action.min[0] < 1
    np.testing.assert_allclose(off(served, action, arm), 0, atol=1e-5)
    assert np.abs(served).max() < pi + 1e-5
    shown = Normalizer(stats, arm).state(state)
    assert np.abs(np.diff(shown[:, 0])).max() < 3
    mean = Normalizer(stats, arm).mean_action(state[0])
    assert abs(abs(mean.item()) - pi) < 0.1


def test_what_stays_away_from_the_ends_of_its_range_is_shown_as_it_is(tmp_path: Path) -> None:
    state = np.sin(np.arange(60) / 5)[:, None] * 2.5
    uri = write(tmp_path / "set", ("yaw",), state, state)
    source = Source(uri=uri, embodiment="arm")
    plain = compute_stats([source], robot(("yaw",)), WINDOW)
    turning = compute_stats([source], robot(("yaw",), kinds={"yaw": "radians"}), WINDOW)
    for name in ("q01", "q99", "mean", "min", "max"):
        for of in ("state", "action"):
            np.testing.assert_array_equal(
                getattr(getattr(plain, of), name), getattr(getattr(turning, of), name)
            )


def test_a_displacement_of_the_name_of_an_angle_stays_a_small_number(tmp_path: Path) -> None:
    state = wrapped(np.arange(80) * 0.3)[:, None]
    action = 0.05 * np.sin(np.arange(80))[:, None]
    uri = write(tmp_path / "set", ("yaw",), state, action)
    stats, _, served = learnt_and_served(uri, robot(("yaw",), kinds={"yaw": "radians"}), state)
    assert np.abs(stats.action.max).max() < 0.06
    np.testing.assert_allclose(served, chunks_of(action), atol=1e-6)


def test_statistics_of_before_keep_their_jumps(tmp_path: Path) -> None:
    state = wrapped(np.arange(60) * 0.2)[:, None]
    uri = write(tmp_path / "set", ("yaw",), state, state)
    arm = robot(("yaw",), kinds={"yaw": "radians"})
    stats = compute_stats([Source(uri=uri, embodiment="arm")], arm, WINDOW)
    for key in ("cuts", "follows"):
        del stats.metadata[key]
    chunk = np.array([[3.1], [-3.1]])
    learnt = Normalizer(stats, arm).actions(chunk, np.array([3.0]))
    assert learnt[0, 0] - learnt[1, 0] > 1.5


@pytest.mark.parametrize("kind", ["quaternion", "rot6d", "matrix"])
def test_a_speed_limit_slows_a_rotation_as_one(kind: str) -> None:
    names = {"quaternion": QUATERNION, "rot6d": SIX, "matrix": NINE}[kind]
    width = len(names)
    limits = Limits(lower=(-1,) * width, upper=(1,) * width, velocity=(0.05,) * width)
    arm = robot(names, kinds=dict.fromkeys(names, kind), delta_mask=(True,) * width, limits=limits)
    half = np.array([0.0, 0.5])
    write_down = WHOLE["row by row"] if kind == "matrix" else FORMS["columns"][1]
    poses = write_down(matrices(2 * half, 0.0))
    if kind == "quaternion":
        poses = np.stack([0 * half, 0 * half, np.sin(half), np.cos(half)], 1)
    # The other sign is the same rotation, and no way to go.
    state = (-poses[0] if kind == "quaternion" else poses[0]).astype(np.float32)
    still, flags = apply_limits(np.tile(poses[0], (3, 1)).astype(np.float32), state, arm)
    np.testing.assert_allclose(still, np.tile(poses[0], (3, 1)), atol=1e-6)
    assert flags == ()
    held, flags = apply_limits(np.tile(poses[1], (3, 1)).astype(np.float32), state, arm)
    assert flags
    steps = np.diff(np.concatenate([poses[:1], held]), axis=0)
    assert np.abs(steps).max() <= 0.05 + 1e-6
    assert (np.abs(steps).max(1) > 0.045).all()
    meaning = meaning_of(names, dict.fromkeys(names, kind))
    assert meaning is not None
    np.testing.assert_allclose(meaning.within(held), held, atol=1e-6)

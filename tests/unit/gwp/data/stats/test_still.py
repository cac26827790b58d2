"""What moves is learnt, however small its unit, and what rests is not, however noisy."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.moments import Moments
from gwp.data.stats.still import Motion

T = np.arange(400)
ARM = np.sin(T / 40)


def described(*columns: np.ndarray, kind: str = "float32") -> FeatureStats:
    """kind: of the numbers in the recording"""
    rows = np.stack(columns, 1).astype(kind).astype(np.float64)
    moments, motion = Moments(rows.shape[1]), Motion(rows.shape[1])
    for half in np.split(rows, 2):
        moments.add(half, np.linspace(0, 0.9, len(half)))
        motion.add(half)
        motion.note(half)
    stats = FeatureStats(**moments.result())
    noise = motion.resolution(stats.max - stats.min)
    return FeatureStats(
        *(getattr(stats, n) for n in ("mean", "std", "min", "max", "q01", "q99")), noise
    )


def noise(size: float, seed: int = 0) -> np.ndarray:
    return size * np.random.default_rng(seed).normal(size=len(T))


@pytest.mark.parametrize(
    ("name", "column", "still"),
    [
        ("a stroke of 80 micrometres", 4e-5 * np.sin(T / 30) + 0.3, False),
        ("a slow ramp of 10 micrometres", 1e-5 * T / len(T), False),
        ("ticks of an encoder", np.round(2000 * ARM), False),
        ("a switch", (T % 100 > 50).astype(float), False),
        ("a small switch", 2e-5 * (T % 100 > 50), False),
        ("noise that is a command", noise(0.01), False),
        ("nothing", np.full(len(T), 0.7), True),
        ("zero", np.zeros(len(T)), True),
        ("rounding at a large number", 1000 + noise(3e-5), True),
        ("noise of a part at rest", 0.5 + noise(1e-6), True),
        ("a sensor that flickers between two steps", 0.12 + 1e-3 * (noise(1.0) > 0), True),
    ],
)
def test_what_moves_beside_an_arm(name: str, column: np.ndarray, still: bool) -> None:
    stats = described(ARM, column, 0.5 * np.cos(T / 25))
    assert stats.constant.tolist() == [False, still, False], name


@pytest.mark.parametrize(
    ("name", "column", "kind", "still"),
    [
        ("metres far from 0", 5.4e6 + 1.5 * ARM, "float64", False),
        ("the same with fewer digits", 5.4e6 + 1.5 * ARM, "float32", True),
        ("a part of a metre", 5.4e6 + 0.05 * ARM, "float64", False),
        ("counts far from 0", np.round(5.4e6 + 3 * ARM), "float64", False),
        ("counts behind the digits of float32", np.round(4e8 + 3 * ARM), "float64", False),
        ("a counter that flickers", 5.4e6 + (T % 7 == 0), "float64", True),
        ("rounding", 5.4e6 + np.spacing(5.4e6) * (T > 200), "float64", True),
        ("what rests", np.full(len(T), 5.4e6 + 0.3), "float64", True),
        ("a drift of the solver", 1.57 + 1e-9 * T / len(T), "float64", True),
        ("a stroke of 80 micrometres", 4e-5 * np.sin(T / 30) + 0.3, "float64", False),
    ],
)
def test_a_recording_has_the_resolution_of_its_numbers(
    name: str, column: np.ndarray, kind: str, still: bool
) -> None:
    stats = described(ARM, column, 0.5 * np.cos(T / 25), kind=kind)
    assert stats.constant.tolist() == [False, still, False], name
    if not still:
        low, high = (ends[1] for ends in stats.low_high)
        assert [low, high] == pytest.approx(np.quantile(column, [0.01, 0.99]), abs=1e-8)


def test_a_difference_is_as_coarse_as_what_is_subtracted() -> None:
    actions = (5.4e6 + 1.5 * ARM)[:, None]
    state = actions.astype(np.float32).astype(np.float64)
    for beside, still in ((state, True), (actions + 0.1, False)):
        motion = Motion(1)
        motion.add(actions, beside)
        motion.note(actions, beside)
        assert (motion.resolution(np.array([3.0])) > 3.0).tolist() == [still]


def test_quantiles_of_what_moves_little_far_from_zero_do_not_depend_on_pieces() -> None:
    rows = np.stack([5.4e6 + 0.01 * ARM, ARM], 1)
    keys = np.random.default_rng(0).random(len(rows))
    found = []
    for cuts in ([], [1], [3, 200, 390], list(range(1, len(rows)))):
        moments = Moments(2)
        pieces = zip(np.split(rows, cuts), np.split(keys, cuts), strict=True)
        for some, some_keys in reversed(list(pieces)):
            moments.add(some, some_keys)
        found.append(moments.result())
    exact = np.quantile(rows[:, 0], [0.01, 0.99])
    for result in found:
        assert np.array_equal(result["q01"], found[0]["q01"])
        assert [result["q01"][0], result["q99"][0]] == pytest.approx(exact, abs=1e-9)


def test_units_do_not_matter_where_all_have_the_same() -> None:
    for unit in (1e-6, 1e-3, 1e3):
        assert not described(unit * ARM, unit * noise(0.1)).constant.any()


def test_one_dimension_alone_is_compared_with_its_own_digits() -> None:
    assert described(1e-5 * ARM).constant.tolist() == [False]
    assert described(noise(1e-9) + 1).constant.tolist() == [True]


def test_a_part_that_rests_noisily_and_rarely_moves_keeps_its_whole_way() -> None:
    grip = noise(1e-6)
    grip[200:203] = 1.0
    stats = described(ARM, grip)
    low, high = stats.low_high
    assert high[1] - low[1] > 0.9


def test_files_that_state_no_resolution_keep_their_meaning() -> None:
    values: dict[str, Any] = {"mean": [0, 0], "std": [1, 1], "min": [0, 0], "max": [8e-5, 1]}
    values |= {"q01": [0, 0], "q99": [8e-5, 9e-5], "constant": [0]}
    old = FeatureStats.from_json(values)
    assert old.constant.tolist() == [True, False]
    assert old.low_high[1].tolist() == [8e-5, 1]
    assert old.to_json(2) == values
    new = described(ARM, 4e-5 * ARM)
    again = FeatureStats.from_json(json.loads(json.dumps(new.to_json(8))))
    np.testing.assert_array_equal(again.head(2).constant, new.constant)
    assert not new.constant.any()
    assert again.constant[2:].all()
    with pytest.raises(ValueError, match="above 0"):
        FeatureStats.from_json(values | {"resolution": [0, 0]})


def pooled(*episodes: np.ndarray) -> FeatureStats:
    """Statistics of episodes `[n, d]`, as `compute_stats` makes them of rows."""
    moments, motion = Moments(episodes[0].shape[1]), Motion(episodes[0].shape[1])
    for rows in episodes:
        moments.add(rows, np.linspace(0, 0.9, len(rows)))
        motion.add(rows)
    stats = FeatureStats(**moments.result())
    noise = motion.resolution(stats.max - stats.min, stats.q99 - stats.q01)
    return replace(stats, resolution=noise).without_wild(motion.jumps)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 4e-3])
def test_a_gripper_that_moves_in_one_of_many_episodes_keeps_its_whole_way(size: float) -> None:
    episodes = [np.stack([ARM, 0.5 + noise(size, i)], 1) for i in range(60)]
    episodes[7][200:240, 1] = 0.0
    stats = pooled(*episodes)
    low, high = stats.low_high
    assert high[1] - low[1] > 0.45
    assert not stats.constant.any()


def test_a_sensor_of_one_step_that_rarely_leaves_its_place_keeps_its_whole_way() -> None:
    rng = np.random.default_rng(0)
    episodes = [np.stack([ARM, rng.choice([0.0, 0.002], len(T))], 1) for _ in range(50)]
    episodes[3][100:150, 1] = 1.0
    low, high = pooled(*episodes).low_high
    assert (low[1], high[1]) == (0.0, 1.0)


@pytest.mark.parametrize("far", [400.0, 1e6, 1e9])
def test_single_wild_rows_do_not_make_a_motion_small(far: float) -> None:
    for column in (ARM, noise(0.5)):
        rows = np.stack([ARM, column.copy()], 1)
        rows[[50, 300], 1] = far
        stats = pooled(rows, *[np.stack([ARM, column], 1)] * 5)
        again = FeatureStats.from_json(json.loads(json.dumps(stats.to_json(4))))
        low, high = again.head(2).low_high
        assert 1 < high[1] - low[1] < 3


def test_numbers_of_few_digits_move_and_rest_as_others() -> None:
    rng = np.random.default_rng(2)
    flicker = 0.5 + 4.9e-4 * rng.integers(0, 2, len(T))
    half = np.stack([ARM, 0.3 + 0.05 * ARM, flicker], 1).astype(np.float16).astype(np.float64)
    assert pooled(half, half).constant.tolist() == [False, False, True]
    ticks = np.stack([np.round(2000 * ARM), np.round(1000 + 30 * ARM), 0 * T + 512], 1)
    ticks[:, 2] += rng.integers(0, 2, len(T))
    assert pooled(ticks, ticks).constant.tolist() == [False, False, True]
    # A switch beside ticks.
    ticks[:, 2] = T % 100 > 50
    assert pooled(ticks, ticks).constant.tolist() == [False, False, False]


def test_what_rests_in_one_source_moves_by_the_other() -> None:
    moving, resting = (np.stack([ARM, 0.3 * ARM], 1) for _ in range(2))
    resting[:, 1] = 0.1
    stats = pooled(moving, resting)
    assert not stats.constant.any()
    # However rarely.
    stats = pooled(moving, *[resting] * 200)
    low, high = stats.low_high
    assert high[1] - low[1] > 0.55
    # Two places of rest are told apart, but for what rounding leaves between them.
    for offset, still in ((0.3, False), (1e-6, True)):
        other = resting.copy()
        other[:, 1] += offset
        assert pooled(resting, other).constant.tolist() == [False, still]

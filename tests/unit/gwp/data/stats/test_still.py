"""What moves is learnt, however small its unit, and what rests is not, however noisy."""

import json
from typing import Any

import numpy as np
import pytest

from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.moments import Moments
from gwp.data.stats.still import Motion

T = np.arange(400)
ARM = np.sin(T / 40)


def described(*columns: np.ndarray) -> FeatureStats:
    rows = np.stack(columns, 1).astype(np.float32).astype(np.float64)
    moments, motion = Moments(rows.shape[1]), Motion(rows.shape[1])
    for half in np.split(rows, 2):
        moments.add(half, np.linspace(0, 0.9, len(half)))
        motion.add(half)
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

"""Normalisation: the published rule, its inverse, dimensions that do not move, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Normalizer, Stats, compute_stats
from gwp.data.window import Window
from gwp.errors import DataError
from tests.support.sets import columns, episode_values, write_v21, write_v30

WINDOW = Window(chunk=4, stride=1)


def arm(**changes: Any) -> Embodiment:
    fields: dict[str, Any] = {
        "name": "arm",
        "fps": 10,
        "state_names": ("x", "y", "grip"),
        "action_names": ("dx", "grip"),
        "delta_mask": (True, False),
        "cameras": {"front": "c"},
        "chunk": 4,
        "replan": 2,
    }
    return Embodiment(**(fields | changes))


def compute(*roots: Path, **changes: Any) -> Stats:
    return compute_stats(
        [Source(uri=str(r), embodiment="arm") for r in roots], arm(**changes), WINDOW
    )


def windows(episode: int, rows: int) -> np.ndarray:
    """Every window, as slowly and plainly as can be."""
    state, action = episode_values(episode, rows)
    out = []
    for k in range(rows):
        for i in range(4):
            a = action[min(k + i, rows - 1)].copy()
            a[0] -= state[k, 0]
            out.append(a)
    return np.array(out)


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_every_row_is_a_start_and_the_window_is_clamped(tmp_path: Path, write: Any) -> None:
    stats = compute(write(tmp_path / "set", lengths=(12, 9)))
    want = np.concatenate([windows(0, 12), windows(1, 9)])
    states = np.concatenate([episode_values(0, 12)[0], episode_values(1, 9)[0]])
    for got, x in ((stats.action, want), (stats.state, states)):
        for name, value in (
            ("mean", x.mean(0)),
            ("std", x.std(0)),
            ("min", x.min(0)),
            ("max", x.max(0)),
        ):
            np.testing.assert_allclose(getattr(got, name), value, atol=1e-6)
        np.testing.assert_allclose(
            (got.q01, got.q99), np.quantile(x, [0.01, 0.99], axis=0), atol=1e-6
        )
    assert stats.metadata["num_action_samples"] == 21 * 4
    assert stats.metadata["action_horizon"] == 4


def test_quantiles_go_to_the_ends_nothing_is_clamped_and_the_way_back_is_exact(
    tmp_path: Path,
) -> None:
    stats = compute(write_v21(tmp_path / "set"))
    normalizer = Normalizer(stats, arm())
    state, action = episode_values(0, 12)
    y = normalizer.actions(np.stack([action[:4], action[2:6]]), state[[0, 2]])
    assert (y.shape, y.dtype) == ((2, 4, 2), np.float32)
    np.testing.assert_allclose(
        normalizer.inverse_actions(y, state[[0, 2]]), np.stack([action[:4], action[2:6]]), atol=1e-5
    )
    np.testing.assert_allclose(normalizer.state(stats.state.q99), 1, atol=1e-6)
    np.testing.assert_allclose(normalizer.state(stats.state.q01), -1, atol=1e-6)
    assert normalizer.state(stats.state.q99 + 10).min() > 2
    assert normalizer.actions(action[None, :2], state[None, 0]).shape == (1, 2, 2)


def feature(
    low: list[float], high: list[float], least: list[float], most: list[float]
) -> FeatureStats:
    a = [np.array(v, np.float64) for v in (low, high, least, most)]
    return FeatureStats((a[0] + a[1]) / 2, a[1] - a[0], a[2], a[3], a[0], a[1])


def test_a_part_that_does_not_move_is_zero_and_comes_back_as_its_mean() -> None:
    still = feature([0.5, 0, 0], [0.5, 1, 0], [0.5, -1, 0], [0.50001, 2, 1])
    stats = Stats(still, still.head(2))
    normalizer = Normalizer(stats, arm(delta_mask=()))
    # Noise of a constant part does not explode, and a grip that is rare keeps its whole way.
    assert normalizer.state(np.array([0.6, 0.5, 1.0])).tolist() == [0, 0, 1]
    assert normalizer.state(np.array([0.5, 1.5, 0.0])).tolist() == [0, 2, -1]
    assert normalizer.inverse_actions(np.array([[[3.0, 0.0]]]), np.zeros((1, 3)))[
        0, 0
    ].tolist() == [0.5, 0.5]
    assert stats.to_json()["norm_stats"]["observation.state"]["constant"] == [0]


def test_a_constant_action_that_is_relative_follows_the_state() -> None:
    still = feature([0.25, 0], [0.25, 1], [0.25, 0], [0.25, 1])
    normalizer = Normalizer(Stats(feature([0] * 3, [1] * 3, [0] * 3, [1] * 3), still), arm())
    assert normalizer.inverse_actions(np.zeros((1, 1, 2)), np.array([[2.0, 0, 0]]))[
        0, 0
    ].tolist() == [2.25, 0.5]


def test_the_published_form_round_trips_and_padded_files_are_cut(tmp_path: Path) -> None:
    stats = compute(write_v21(tmp_path / "set"))
    raw = json.loads(json.dumps(stats.to_json()))
    assert set(raw) == {"norm_stats", "metadata"}
    assert set(raw["norm_stats"]) == {"observation.state", "action"}
    again = Stats.from_json(raw)
    np.testing.assert_array_equal(again.action.q99, stats.action.q99)
    again.check(arm(), WINDOW)
    padded = {
        key: {n: [*s[n], *[0.0] * (32 - len(s[n]))] for n in ("mean", "std", "q01", "q99")}
        for key, s in raw["norm_stats"].items()
    }
    published = Normalizer(Stats.from_json({"norm_stats": padded}), arm())
    state, action = episode_values(0, 12)
    np.testing.assert_array_equal(
        published.actions(action[None], state[:1]),
        Normalizer(stats, arm()).actions(action[None], state[:1]),
    )


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"norm_stats": {}},
        {"norm_stats": {"observation.state": {"mean": [0]}, "action": {}}},
        {"norm_stats": 3},
    ],
)
def test_what_is_no_statistics(raw: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="not statistics"):
        Stats.from_json(raw)


def test_quantiles_the_wrong_way_round_are_no_statistics() -> None:
    good = {"mean": [0.0], "std": [1.0], "q01": [-1.0], "q99": [1.0]}
    for wrong in ({"q01": [2.0]}, {"std": [-1.0]}, {"mean": [float("nan")]}, {"mean": [0.0, 0.0]}):
        with pytest.raises(DataError, match="not statistics"):
            Stats.from_json({"norm_stats": {"observation.state": good, "action": good | wrong}})


def test_statistics_of_another_rule_are_refused(tmp_path: Path) -> None:
    stats = compute(write_v21(tmp_path / "set"))
    with pytest.raises(
        DataError, match="action_horizon 4, embodiment arm needs 8; run `gwp data stats` again"
    ):
        stats.check(arm(), Window(chunk=8, stride=2))
    for changes, message in (
        ({"chunk": 8}, "action_horizon"),
        ({"delta_mask": ()}, "delta_mask"),
        ({"fps": 20}, "fps"),
        ({"action_names": ("dy", "grip")}, "action_names"),
    ):
        with pytest.raises(DataError, match=message):
            Normalizer(stats, arm(**changes))
    with pytest.raises(DataError, match="3 state dimensions, embodiment arm has 4"):
        Normalizer(Stats(stats.state, stats.action), arm(state_names=("x", "y", "grip", "z")))


def test_what_the_loader_skips_does_not_count(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(12, 9))
    file = root / "data/chunk-000/episode_000001.parquet"
    table = columns(1, 9)
    action = episode_values(1, 9)[1]
    action[5, 1] = np.nan
    table["action"] = pa.array(action.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table(table), file)
    stats = compute(root)
    # Row 5 is in the windows that start at rows 2 to 5.
    assert stats.metadata["num_windows_left_out"] == 4
    assert stats.metadata["num_state_samples"] == 17
    assert np.isfinite(stats.action.q99).all()


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    (root / "data/chunk-000/episode_000000.parquet").unlink()
    with pytest.raises(DataError, match=r"no usable rows.*is missing"):
        compute(root)


def test_rows_of_another_width_are_said(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    table = columns(0, 5) | {"action": pa.array([[0.0, 1.0, 2.0]] * 5)}
    pq.write_table(pa.table(table), root / "data/chunk-000/episode_000000.parquet")
    with pytest.raises(DataError, match="action are 3 and 3 wide, arm has 3 and 2"):
        compute(root)


def test_sets_are_pooled_and_named_by_fingerprint(tmp_path: Path) -> None:
    a, b = write_v21(tmp_path / "a", lengths=(12,)), write_v30(tmp_path / "b", lengths=(12, 9))
    stats = compute(a, b)
    assert stats.metadata["num_state_samples"] == 33
    assert len({d["fingerprint"] for d in stats.metadata["datasets"]}) == 2
    assert str(tmp_path) not in json.dumps(stats.to_json())

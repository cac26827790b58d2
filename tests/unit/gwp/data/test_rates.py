"""Sets of another rate, and robots that lack a camera, in the stream of a policy."""

import numpy as np
import pytest

from gwp.data.canvas import Canvas, compose
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.rates import at_steps, row_span, steps_of
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.sets import (
    FPS,
    TOP,
    WRIST,
    episode_values,
    frame_number,
    infer_embodiment,
    number,
    write_v21,
)

VALUES = np.stack([np.arange(12.0), np.arange(12.0) % 3, np.ones(12)], 1)
RULES = ("linear", "hold", "sum")
WINDOW = Window(chunk=4, stride=1)


def test_slower_steps_interpolate_hold_and_add_up() -> None:
    found = at_steps(VALUES, 0, 4, 2.5, RULES)
    assert found[:, 0].tolist() == [0, 2.5, 5, 7.5]
    assert found[:, 1].tolist() == [0, 2, 2, 1]
    # Nothing that was moved is lost: four steps cover ten rows of one each.
    assert found[:, 2].tolist() == [2.5] * 4


def test_faster_steps_share_what_a_row_moved() -> None:
    found = at_steps(VALUES, 4, 4, 0.5, RULES)
    assert found[:, 0].tolist() == [2, 2.5, 3, 3.5]
    assert found[:, 1].tolist() == [2, 2, 0, 0]
    assert found[:, 2].tolist() == [0.5] * 4


@pytest.mark.parametrize("ratio", [1, 2, 0.5, 1.5, 5 / 3, 3.2])
def test_a_window_on_its_own_equals_its_part_of_the_episode(ratio: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(37, 3))
    steps = steps_of(37, ratio)
    assert (steps - 1) * ratio <= 36 + 1e-6 < steps * ratio
    whole = at_steps(values, 0, steps, ratio, RULES)
    for first in range(steps):
        n = min(5, steps - first)
        begin, end = row_span(first, n, ratio, 37)
        part = at_steps(values[begin:end], first, n, ratio, RULES, begin=begin)
        # What stands behind the last row of the episode adds nothing. To the last bit: training
        # takes windows, statistics and evaluation whole episodes.
        np.testing.assert_array_equal(part, whole[first : first + n])


@pytest.mark.parametrize("ratio", [2, 0.5, 1.5, 3.2])
def test_what_is_no_number_stays_in_the_steps_that_read_it(ratio: float) -> None:
    values = np.random.default_rng(0).normal(size=(37, 3))
    steps = steps_of(37, ratio)
    clean = at_steps(values, 0, steps, ratio, RULES)
    for row in (0, 11, 36):
        broken = values.copy()
        broken[row] = np.nan
        found = at_steps(broken, 0, steps, ratio, RULES)
        untouched = np.isfinite(found)
        np.testing.assert_array_equal(found[untouched], clean[untouched])
        # A step reads a row at its start, one behind it, and what lies up to the next step.
        near = np.abs(np.arange(steps) * ratio - row) < max(1, ratio) + 1e-9
        assert untouched[~near].all()
        assert not untouched.all()


def test_a_set_of_twice_the_rate_in_the_stream_of_a_policy(tmp_path) -> None:
    uri = str(write_v21(tmp_path / "set", lengths=(12, 9)))
    robot = infer_embodiment(uri, "tester", 4, 4).model_copy(
        update={"fps": FPS / 2, "resample": ("linear", "hold")}
    )
    source = Source(uri=uri, embodiment="tester")
    with pytest.raises(DataError, match="set `resample: true` on this source"):
        build_manifest(
            [source], embodiments={"tester": robot}, window=WINDOW, clip=ClipWindow(frames=5, fps=5)
        )
    source = source.model_copy(update={"resample": True})
    found = build_manifest(
        [source], embodiments={"tester": robot}, window=WINDOW, clip=ClipWindow(frames=5, fps=5)
    )
    assert found.table["length"].to_pylist() == [6] * 6 + [5] * 5
    stats = compute_stats([source], robot, WINDOW)
    spec = SampleSpec(
        canvas=Canvas(layout="single", width=64, height=48),
        window=WINDOW,
        clip=ClipWindow(frames=5, fps=5),
        embodiments={"tester": robot},
        stats={"tester": stats},
        model_dim=4,
        augment=False,
        seed=0,
    )
    samples, failed = decode_samples(found.table.to_pylist(), spec, FileReader())
    assert not failed
    state, action = episode_values(0, 12)
    third = samples[2]
    assert [frame_number(f) for f in third["frames"]] == [
        number(TOP, 0, k) for k in (4, 6, 8, 10, 10)
    ]
    normal = Normalizer(stats, robot)
    np.testing.assert_allclose(
        third["state"][:3], normal.state(state[4].astype(np.float32)), atol=1e-5
    )
    np.testing.assert_allclose(
        third["actions"][:, :2],
        normal.actions(action[[4, 6, 8, 10]].astype(np.float32), state[4]),
        atol=1e-5,
    )
    # The statistics are those of the samples themselves.
    seen = np.concatenate(
        [normal.inverse_actions(s["actions"][:, :2], np.zeros(3)) for s in samples]
    )
    np.testing.assert_allclose(seen.mean(0), stats.action.mean, atol=1e-5)
    np.testing.assert_allclose(np.quantile(seen, 0.99, axis=0), stats.action.q99, atol=1e-5)
    with pytest.raises(DataError, match="fps"):
        stats.check(robot.model_copy(update={"fps": float(FPS)}))
    with pytest.raises(DataError, match="resample"):
        stats.check(robot.model_copy(update={"resample": ("linear", "linear")}))


def test_a_missing_view_is_grey_and_flagged(tmp_path) -> None:
    uri = str(write_v21(tmp_path / "set", cameras=(TOP, WRIST)))
    robot = infer_embodiment(uri, "tester", 4, 4, cameras={"front": TOP, "right": WRIST})
    canvas = Canvas(layout="t", width=64, height=96, missing="grey")
    found = build_manifest(
        [Source(uri=uri, embodiment="tester")],
        embodiments={"tester": robot},
        window=WINDOW,
        clip=ClipWindow(frames=5, fps=5),
    )
    stats = compute_stats([Source(uri=uri, embodiment="tester")], robot, WINDOW)
    both = {
        "embodiments": {"tester": robot},
        "stats": {"tester": stats},
        "window": WINDOW,
        "clip": ClipWindow(frames=5, fps=5),
    }
    spec = SampleSpec(canvas=canvas, **both, model_dim=4, augment=False, seed=0)
    (sample,), _ = decode_samples(found.table.to_pylist()[:1], spec, FileReader())
    assert sample["view_valid"].tolist() == [True, False, True]
    assert (sample["frames"][:, 48:, :32] == 128).all()
    assert [frame_number(f[48:, 32:]) for f in sample["frames"]] == [
        number(WRIST, 0, k) for k in range(5)
    ]
    # A served robot sees the same canvas.
    views = {
        "front": np.full((1, 48, 64, 3), 7, np.uint8),
        "right": np.full((1, 48, 64, 3), 9, np.uint8),
    }
    assert np.unique(compose(views, canvas, None)).tolist() == [7, 9, 128]
    with pytest.raises(DataError, match="`missing: grey` takes any"):
        SampleSpec(
            canvas=canvas.model_copy(update={"missing": "refuse"}),
            **both,
            model_dim=4,
            augment=False,
            seed=0,
        )

"""Random looks of training samples: zoom and light."""

import numpy as np
import pytest

from gwp.data.canvas import SLOTS, fit_view
from gwp.data.look import PLAIN, Look, draw_looks


def looks(seed: int, **kwargs: float) -> list[Look]:
    return list(draw_looks(SLOTS, np.random.default_rng(seed), **kwargs).values())


def test_without_a_generator_the_look_is_plain() -> None:
    assert set(draw_looks(SLOTS, None, 1.5, 0.5).values()) == {PLAIN}


def test_zoom_and_light_leave_the_crops_as_they_are() -> None:
    for seed in range(5):
        crops = [look.at for look in looks(seed)]
        assert [look.at for look in looks(seed, zoom=1.3)] == crops
        assert [look.at for look in looks(seed, light=0.3)] == crops
        zoomed = [look.zoom for look in looks(seed, zoom=1.3)]
        assert [look.zoom for look in looks(seed, zoom=1.3, light=0.3)] == zoomed


def test_zoom_is_between_one_and_its_most() -> None:
    zooms = [look.zoom for seed in range(50) for look in looks(seed, zoom=1.3)]
    assert min(zooms) < 1.03 < 1.27 < max(zooms) <= 1.3
    assert {look.zoom for look in looks(0, light=0.5)} == {1.0}


def test_a_zoomed_view_shows_the_part_in_its_middle() -> None:
    # Columns tell where they are: twice as large, half as many of them are left.
    ramp = np.broadcast_to(
        np.arange(0, 256, 4, dtype=np.uint8)[None, None, :, None], (1, 64, 64, 3)
    )
    out = fit_view(np.ascontiguousarray(ramp), 64, 64, Look(zoom=2.0))[0, 32, :, 0].astype(int)
    assert out[0] == pytest.approx(16 * 4, abs=4)
    assert out[-1] == pytest.approx(47 * 4, abs=4)
    assert (np.diff(out) >= 0).all()


def test_light_is_the_same_for_all_frames_and_another_for_each_sample() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    seen = set()
    for seed in range(20):
        look = Look(light=looks(seed, light=0.3)[0].light)
        out = fit_view(np.repeat(picture, 3, 0), 8, 8, look)
        assert (out == out[:1]).all()
        seen.add(out.tobytes())
    assert len(seen) == 20


def test_light_keeps_the_order_of_values_and_stays_near() -> None:
    for seed in range(20):
        table = looks(seed, light=0.2)[0].light
        assert table is not None
        assert (np.diff(table.astype(int), axis=0) >= 0).all()
        # At most a fifth of half the range, then at most a fifth of the whole.
        assert abs(table[128].astype(int) - 128).max() <= 0.2 * 128 + 0.2 * 1.2 * 128 + 1
    assert looks(0)[0].light is None


def test_each_value_of_each_colour_becomes_what_the_table_says() -> None:
    # A part of a canvas, as views are.
    canvas = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = canvas.copy()
    look = looks(1, light=0.3)[0]
    table = look.light
    assert table is not None
    look.lit(canvas[4:12, 5:25])
    expected = np.stack([table[before[..., c], c] for c in range(3)], -1)
    assert (canvas[4:12, 5:25] == expected[4:12, 5:25]).all()
    outside = np.ones((20, 30), bool)
    outside[4:12, 5:25] = False
    assert (canvas[outside] == before[outside]).all()


def test_a_view_without_light_is_not_touched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    before = picture.copy()
    PLAIN.lit(picture)
    assert (picture == before).all()

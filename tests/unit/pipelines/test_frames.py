"""How near frames are: figures that are known by hand, the same whoever adds them up."""

import numpy as np
import pytest

from pipelines.frames import error_sums, ssim, strip, told


def frames(n: int = 2, seed: int = 0) -> np.ndarray:
    """A still picture in which a bright square moves."""
    draw = np.random.default_rng(seed)
    still = draw.integers(60, 120, (n, 1, 16, 24, 3), np.uint8)
    real = np.repeat(still, 5, 1)
    for t in range(5):
        real[:, t, 4:8, 4 * t : 4 * t + 4] = 220
    return real


def test_noise_of_a_known_size_is_told_in_db() -> None:
    real = frames()
    sign = np.random.default_rng(1).choice([-5, 5], real.shape)
    found = told(error_sums(real, (real.astype(int) + sign).astype(np.uint8)))
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 25))
    assert found["psnr_moving"] == pytest.approx(found["psnr"])
    assert 0 < found["ssim"] < 1


def test_copying_the_first_frame_fails_where_something_moves() -> None:
    real = frames()
    found = told(error_sums(real, np.broadcast_to(real[:, :1], real.shape)))
    # 32 of 384 pixels of each frame differ; all of the error is there.
    moving = (np.abs(real[:, 1:].astype(int) - real[:, :1]).max(-1) >= 12).mean()
    assert found["psnr_moving"] == pytest.approx(found["psnr"] + 10 * np.log10(moving), abs=1e-6)
    assert moving == pytest.approx(32 / 384)


def test_what_is_equal_is_as_good_as_can_be() -> None:
    real = frames()
    found = told(error_sums(real, real.copy()))
    assert found["ssim"] == pytest.approx(1)
    assert found["psnr"] > 60


def test_sums_of_parts_are_those_of_the_whole() -> None:
    real, guess = frames(6), frames(6, seed=3)
    parts = [np.array(error_sums(real[a:b], guess[a:b])) for a, b in ((0, 1), (1, 6), (6, 6))]
    assert np.sum(parts, 0) == pytest.approx(np.array(error_sums(real, guess)))


def test_structure_is_told_from_brightness() -> None:
    """By the formula: of two flat pictures the luminance alone differs."""
    a, b = (np.full((1, 1, 9, 9, 3), value, np.uint8) for value in (100, 120))
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    real = frames()
    upside_down = 255 - real
    assert ssim(real, upside_down).max() < 0.2
    assert ssim(real[:, :, :6], upside_down[:, :, :6]).size == 0


def test_where_nothing_moves_nothing_is_told_of_motion() -> None:
    still = np.repeat(frames()[:, :1], 5, 1)
    assert "psnr_moving" not in told(error_sums(still, still.copy()))
    assert told([0.0] * 6) == {}


def test_a_picture_has_real_frames_above_imagined_ones() -> None:
    real = np.full((2, 9, 20, 30, 3), 10, np.uint8)
    picture = strip(real, np.full_like(real, 200))
    assert picture.shape[:2] == (2 * (20 + 20 + 2) + 6, 5 * 30 + 4 * 2)
    assert (picture[:20, :30] == 10).all()
    assert (picture[22:42, :30] == 200).all()
    wide = np.zeros((1, 5, 90, 700, 3), np.uint8)
    assert strip(wide, wide).shape[1] <= 5 * 162

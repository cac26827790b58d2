"""Views on one canvas: geometry, crops, refusals."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from gwp.data.canvas import Canvas, compose, fit_view
from gwp.data.look import Look
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError


def flat(value: int, h: int = 48, w: int = 64, frames: int = 2) -> np.ndarray:
    return np.full((frames, h, w, 3), value, np.uint8)


def test_t_layout_has_the_released_boxes() -> None:
    assert Canvas(layout="t", width=320, height=384).boxes() == {
        "front": (0, 0, 320, 192),
        "left": (0, 192, 160, 192),
        "right": (160, 192, 160, 192),
    }


@pytest.mark.parametrize(
    "canvas",
    [Canvas(layout="t", width=33, height=31), Canvas(layout="horizontal", width=100, height=20)],
)
def test_boxes_tile_the_canvas(canvas: Canvas) -> None:
    covered = np.zeros((canvas.height, canvas.width), int)
    for x, y, w, h in canvas.boxes().values():
        covered[y : y + h, x : x + w] += 1
    assert (covered == 1).all()


def test_views_land_in_their_boxes() -> None:
    views = {"right": flat(30), "front": flat(10), "left": flat(20, 100, 30)}
    out = compose(views, Canvas(layout="t", width=64, height=64), np.random.default_rng(0))
    assert out.shape == (2, 64, 64, 3)
    assert (out[:, :32] == 10).all()
    assert (out[:, 32:, :32] == 20).all()
    assert (out[:, 32:, 32:] == 30).all()


@pytest.mark.parametrize("layout", ["t", "horizontal", "single"])
def test_a_lone_front_view_fills_every_canvas(layout: str) -> None:
    assert (
        compose({"front": flat(9)}, Canvas(layout=layout, width=32, height=48), None) == 9
    ).all()


def test_two_views_share_a_horizontal_canvas() -> None:
    out = compose(
        {"front": flat(1), "left": flat(2)}, Canvas(layout="horizontal", width=64, height=32), None
    )
    assert (out[:, :, :32] == 1).all()
    assert (out[:, :, 32:] == 2).all()


@pytest.mark.parametrize(
    ("layout", "slots"), [("t", ["front", "left"]), ("single", ["front", "left"]), ("t", [])]
)
def test_views_without_a_place_are_refused(layout: str, slots: list[str]) -> None:
    with pytest.raises(DataError, match="choose another layout"):
        compose({s: flat(0) for s in slots}, Canvas(layout=layout, width=32, height=32), None)


def test_views_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="equally many"):
        compose(
            {"front": flat(0, frames=2), "left": flat(0, frames=3)},
            Canvas(layout="horizontal", width=64, height=32),
            None,
        )


def test_the_crop_covers_and_keeps_proportions() -> None:
    # A horizontal ramp: 640 wide covers 320x192 at half size, so nothing is lost at the sides
    # and 48 rows of slack are split.
    ramp = np.broadcast_to(
        np.linspace(0, 255, 640).astype(np.uint8)[None, None, :, None], (1, 480, 640, 3)
    )
    out = fit_view(np.ascontiguousarray(ramp), 320, 192)
    assert out.shape == (1, 192, 320, 3)
    assert out[0, 0, 0, 0] <= 1
    assert out[0, 0, -1, 0] >= 254
    rows = np.broadcast_to(np.arange(240, dtype=np.uint8)[None, :, None, None], (1, 240, 320, 3))
    centre = fit_view(np.ascontiguousarray(rows), 320, 192)
    assert centre[0, :, 0, 0].tolist() == list(range(24, 216))


def test_one_crop_for_all_frames_of_a_view_and_another_per_sample() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3), dtype=np.uint8)
    canvas = Canvas(layout="single", width=64, height=64)
    same = compose({"front": np.repeat(picture, 3, 0)}, canvas, np.random.default_rng(5))
    assert (same == same[:1]).all()
    offsets = set()
    for seed in range(40):
        out = compose({"front": picture}, canvas, np.random.default_rng(seed))[0]
        offsets.add(next(y for y in range(33) if (picture[0, y : y + 64] == out).all()))
    assert len(offsets) > 10
    assert compose({"front": picture}, canvas, None)[0].tolist() == picture[0, 16:80].tolist()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8"):
        fit_view(bad, 2, 2)


def test_windows_give_4n_plus_1_frames() -> None:
    assert Window(chunk=48, stride=12).offsets == (0, 12, 24, 36, 48)
    assert Window(chunk=48, stride=4).frames == 13
    with pytest.raises(ValidationError, match="strides that fit: 1, 2, 3, 4, 6, 12"):
        Window(chunk=48, stride=24)
    with pytest.raises(ValidationError, match="strides that fit: 1, 3"):
        Window(chunk=12, stride=5)
    with pytest.raises(ValidationError, match="4n\\+1"):
        ClipWindow(frames=6, fps=5)
    assert ClipWindow(frames=9, fps=2).offsets_s(5) == (0, 0.5, 1, 1.5, 2)


def test_cropping_first_is_cropping_last() -> None:
    picture = np.kron(
        np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8),
        np.ones((10, 10, 1), np.uint8),
    )
    whole = np.asarray(
        Image.fromarray(picture).resize((128, 96), Image.Resampling.BILINEAR)
    ).astype(int)
    cut = fit_view(picture[None], 100, 96, Look((0.25, 0.9)))[0].astype(int)
    # Columns 7 to 106 of the whole; at the seam the filter has fewer pixels to weigh.
    assert abs(cut - whole[:, 7:107])[:, 1:-1].max() <= 1

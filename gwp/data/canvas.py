"""From camera views to the one picture that the model sees."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gwp.data.look import PLAIN, Look, draw_looks
from gwp.data.robot.embodiment import Slot
from gwp.errors import DataError
from gwp.scale import scale_part
from gwp.yuv import Picture

SLOTS: tuple[Slot, ...] = get_args(Slot)
"""Slots in canonical order: it is the order of drawing crops and of columns."""

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels; the origin is the upper left corner."""


class Canvas(BaseModel):
    """How the views of one moment are composed.

    `t`: front over the whole width on the upper half, left and right below, side by side.
    `horizontal`: the views side by side.
    `single`: one view. In every layout a sample that has the front view alone (a plain video, a
    robot with one camera) fills the canvas with it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    layout: Literal["t", "horizontal", "single"]
    """Arrangement of the views."""
    width: int = Field(gt=0)
    """Width of the whole canvas, pixels."""
    height: int = Field(gt=0)
    """Height of the whole canvas, pixels."""
    missing: Literal["refuse", "grey"] = "refuse"
    """What a `t` does with a robot that lacks a view (and has more than the front alone):
    refuse it, or leave that part an even grey.
    """

    def boxes(self, views: Iterable[Slot] | None = None) -> dict[Slot, Box]:
        """Where each view goes. `views`: the slots that a sample has; None: all that the layout
        can hold.

        DataError when the layout has no place for these views.
        """
        w, h = self.width, self.height
        every: tuple[Slot, ...] = ("front",) if self.layout == "single" else SLOTS
        wanted_slots = set(every if views is None else views)
        # In canonical order, whatever order the views came in.
        given = tuple(s for s in SLOTS if s in wanted_slots)
        # In every layout, so plain videos and robots share a canvas.
        if given == ("front",):
            return {"front": (0, 0, w, h)}
        incomplete = self.layout == "t" and given != SLOTS and self.missing == "refuse"
        if not given or self.layout == "single" or incomplete:
            wanted = {
                "single": "front",
                "horizontal": "at least one view",
                "t": "front, left and right, or front alone (`missing: grey` takes any)",
            }
            raise DataError(
                f"canvas layout '{self.layout}' takes {wanted[self.layout]}; the cameras given "
                f"are {', '.join(given) or 'none'}. "
                "Name other `cameras`, or choose another layout"
            )
        if self.layout == "t":
            # Of odd sides the lower and the right part get the pixel more. With `missing:
            # grey`, views keep the boxes that they have in a whole `t`.
            top, left = h // 2, w // 2
            every_box = {
                "front": (0, 0, w, top),
                "left": (0, top, left, h - top),
                "right": (left, top, w - left, h - top),
            }
            return {slot: every_box[slot] for slot in given}
        # Edges are rounded and not widths, so that no column is left between two views.
        edges = [i * w // len(given) for i in range(len(given) + 1)]
        return {
            slot: (x, 0, end - x, h) for slot, (x, end) in zip(given, pairwise(edges), strict=True)
        }

    def empty(self, frames: int) -> np.ndarray:
        """Canvases uint8 `[frames, height, width, 3]` to be filled with views."""
        return np.full((frames, self.height, self.width, 3), self.grey, np.uint8)

    def filled_by(self, views: Iterable[Slot]) -> bool:
        """Whether these views leave nothing empty. Raises as `boxes`."""
        # Boxes never overlap, so equal areas mean that all is covered.
        return sum(w * h for _, _, w, h in self.boxes(views).values()) == self.width * self.height

    @property
    def grey(self) -> int:
        """Level of what is empty: the middle of the range, which codecs see as 0."""
        return 128


def fit_view(frames: np.ndarray, width: int, height: int, look: Look = PLAIN) -> np.ndarray:
    """Scale uint8 `[T, H, W, 3]` until it covers width x height, then crop: uint8 `[T, height,
    width, 3]`. Bilinear, anti-aliased.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise DataError(
            f"camera frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}"
        )
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, place in zip(frames, out, strict=True):
        fit_into(place, frame, look)
    return out


def fit_into(out: np.ndarray, frame: Picture, look: Look = PLAIN) -> None:
    """`fit_view` of one frame `[H, W, 3]`, written into `out` `[height, width, 3]`."""
    (height, width), (h, w) = out.shape[:2], frame.shape[:2]
    scale = max(width / w, height / h) * look.zoom
    at = look.at
    # Rounding must not leave the box uncovered.
    new_w, new_h = max(width, round(w * scale)), max(height, round(h * scale))
    # Every offset from 0 to the slack is equally likely; `min`, for a share just below 1 may
    # round up.
    x = min(int(at[0] * (new_w - width + 1)), new_w - width)
    y = min(int(at[1] * (new_h - height + 1)), new_h - height)
    # Serving and evaluation: the middle rounded down; the lines above round it up where slack
    # is odd.
    if at == (0.5, 0.5):
        x, y = (new_w - width) // 2, (new_h - height) // 2
    if (new_w, new_h) == (w, h):
        out[:] = np.asarray(frame)[y : y + height, x : x + width]
    else:
        scale_part(frame, (new_w, new_h), (x, y, width, height), out)
    look.lit(out)


def compose(
    views: dict[Slot, np.ndarray], canvas: Canvas, rng: np.random.Generator | None
) -> np.ndarray:
    """Canvases uint8 `[T, height, width, 3]` from views uint8 `[T, H, W, 3]` of any sizes.

    `rng` draws one crop offset per view, shared by its frames; None crops the centre (serving,
    evaluation). DataError when the layout has no place for these views or their lengths differ.
    """
    looks = draw_looks(SLOTS, rng)
    # First, since it also refuses no views at all.
    boxes = canvas.boxes(views)
    lengths = {len(v) for v in views.values()}
    if len(lengths) != 1:
        raise DataError(
            f"views of one sample have {sorted(lengths)} frames; they must have equally many"
        )
    out = canvas.empty(lengths.pop())
    for slot, (x, y, w, h) in boxes.items():
        out[:, y : y + h, x : x + w] = fit_view(views[slot], w, h, looks[slot])
    return out

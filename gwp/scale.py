"""Scaling pictures: torch's kernel, which gives Pillow's numbers (at most a grey level or two off) in a quarter of its time."""

from functools import lru_cache
from math import ceil, floor, gcd

import numpy as np
import torch
from torch.nn.functional import interpolate


def scale_part(picture: np.ndarray, size: tuple[int, int], part: tuple[int, int, int, int], out: np.ndarray) -> None:
    """Write a part of a scaled picture: uint8 `[H, W, 3]` into `out` `[height, width, 3]`. Bilinear, anti-aliased.

    `size`: width and height of the whole when scaled; `part`: x, y, width and height inside it. Little more than the part is computed.
    """
    x, y, width, height = part
    left, right, x0, x1 = _needed(picture.shape[1], size[0], x, width)
    top, bottom, y0, y1 = _needed(picture.shape[0], size[1], y, height)
    # A dense copy: torch takes neither read-only nor mirrored memory, and would make its own with OpenMP's help. Whoever scales may be a
    # robot's thread, and workers of its own would slow the one that computes (`gwp.threads`).
    pixels = torch.from_numpy(np.array(picture[top:bottom, left:right]))[None].permute(0, 3, 1, 2)
    found = interpolate(pixels, size=(y1 - y0, x1 - x0), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    out[:] = found[y - y0 : y - y0 + height, x - x0 : x - x0 + width].numpy()


@lru_cache(maxsize=1024)
def _needed(length: int, scaled: int, first: int, count: int) -> tuple[int, int, int, int]:
    """Along one side: what to scale, and what it becomes, so that `count` pixels from `first` are as if all had been scaled.

    A part can be scaled alone where its edges fall between pixels both before and after.
    """
    parts = gcd(length, scaled)
    step, scaled_step = length // parts, scaled // parts
    # How far a weight reaches, in pixels before scaling.
    reach = max(1.0, step / scaled_step) + 1
    begin = max(0, floor((first / scaled_step) - reach / step))
    end = min(parts, ceil((first + count) / scaled_step + reach / step))
    return begin * step, end * step, begin * scaled_step, end * scaled_step

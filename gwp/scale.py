"""Scaling pictures: the same numbers for training and serving, from planes and from RGB,
compiled and not.

They are Pillow's (at most a grey level or two off) and, to the bit, those of torch's kernel for
bytes where it uses AVX2.
"""

import ctypes
import threading
from ctypes import POINTER, Structure, byref, c_float, c_int16, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, gcd
from typing import Any

import numpy as np

from gwp.native.build import library
from gwp.yuv import Picture, YuvFrame

Part = tuple[int, int, int, int]
"""x, y, width and height, pixels."""


def scale_part(picture: Picture, size: tuple[int, int], part: Part, out: np.ndarray) -> None:
    """Write a part of a scaled picture: uint8 `[H, W, 3]` into `out` `[height, width, 3]`.
    Bilinear, anti-aliased.

    `size`: width and height of the whole when scaled; `part`: inside it. Little more than the
    part is computed.
    """
    compiled = library("pictures")
    if compiled is not None and out.strides[1:] == (3, 1):
        _by_compiled(compiled, picture, size, part, out)
    else:
        _by_torch(np.asarray(picture), size, part, out)


class _Taps(Structure):
    """What each value of a scaled side is made of; as `gwp/native/pictures.cpp` has it.

    count: values; most: weights of each at most; bits: behind the point of a weight; first:
    of the values that each begins at, int32 `[count]`; weights: `[count, most]`
    """

    _fields_ = [
        ("count", c_int64),
        ("most", c_int64),
        ("bits", c_int64),
        ("first", POINTER(c_int32)),
        ("weights", POINTER(c_float)),
    ]


class _Picture(Structure):
    """Planes, or RGB in place of `luma` with the others null; as `gwp/native/pictures.cpp` has
    it. Steps: bytes from row to row.
    """

    _fields_ = [
        *((name, c_void_p) for name in ("luma", "u", "v")),
        *((name, c_int64) for name in ("luma_step", "chroma_step", "width", "height")),
        *(
            (name, c_int16)
            for name in ("black", "luma_gain", "red_v", "green_u", "green_v", "blue_u")
        ),
    ]


@dataclass(frozen=True)
class _Side:
    """What makes up a part of a scaled side: values `begin` to `end` (even `begin`), and `taps`
    counted from there.

    memory: what the taps point to, kept alive
    """

    begin: int
    end: int
    taps: _Taps
    memory: tuple[Any, ...]


@lru_cache(maxsize=1024)
def _side(length: int, scaled: int, first: int, count: int) -> _Side:
    """For `count` places from `first` on of a side of `length` values that becomes `scaled`
    long.
    """
    # A triangle around each centre, as wide as the scale: torch's own formulas, in their order,
    # so that roundings are the same.
    scale = length / scaled
    reach = max(scale, 1.0)
    centres = scale * (np.arange(scaled) + 0.5)
    low = np.maximum((centres - reach + 0.5).astype(int), 0)
    high = np.minimum((centres + reach + 0.5).astype(int), length)
    most = int((high - low).max())
    positions = low[:, None] + np.arange(most)
    triangle = np.maximum(0.0, 1.0 - np.abs(positions - centres[:, None] + 0.5) / reach)
    shares = triangle * (positions < high[:, None])
    shares /= shares.sum(1, keepdims=True)
    # As many bits as leave the largest share a positive number of 16.
    bits = next(
        b for b in range(22) if b == 21 or int(0.5 + shares.max() * (1 << (b + 1))) >= 1 << 15
    )
    weights = np.floor(0.5 + shares * (1 << bits))[first : first + count]
    # Nothing behind the end is looked at: weights that begin earlier are 0 there.
    start = np.minimum(low, length - most)[first : first + count]
    shifts = low[first : first + count] - start
    moved = np.zeros((count, most), np.float32)
    for row, (shift, row_weights) in enumerate(zip(shifts, weights, strict=True)):
        moved[row, shift:] = row_weights[: most - shift]
    # Colour has half as many values, so what is looked at begins with an even one.
    begin = int(start.min()) // 2 * 2
    starts = (start - begin).astype(np.int32)
    taps = _Taps(
        count,
        most,
        bits,
        starts.ctypes.data_as(POINTER(c_int32)),
        moved.ctypes.data_as(POINTER(c_float)),
    )
    return _Side(begin, int(start.max()) + most, taps, (starts, moved))


class _Workspace(threading.local):
    """Memory of each thread, for robots' threads scale side by side."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)

    def of(self, size: int) -> int:
        """Address of `size` bytes."""
        if size > len(self.memory):
            self.memory = np.empty(size, np.uint8)
        return int(self.memory.ctypes.data)


_workspace = _Workspace()


def _by_compiled(
    compiled: ctypes.CDLL, picture: Picture, size: tuple[int, int], part: Part, out: np.ndarray
) -> None:
    x, y, width, height = part
    across = _side(picture.shape[1], size[0], x, width)
    down = _side(picture.shape[0], size[1], y, height)
    seen = (across.end - across.begin, down.end - down.begin)

    # Addresses of what is looked at: the rest of the picture is not touched.
    if isinstance(picture, YuvFrame):
        luma, u, v = picture.address
        luma_step, chroma_step = picture.step
        luma_start = down.begin * luma_step + across.begin
        chroma_start = down.begin // 2 * chroma_step + across.begin // 2
        planes = (luma + luma_start, u + chroma_start, v + chroma_start)
        source = _Picture(*planes, luma_step, chroma_step, *seen, *picture.colours)
    else:
        if picture.dtype != np.uint8 or picture.strides[1:] != (3, 1) or picture.strides[0] < 0:
            picture = np.ascontiguousarray(picture, np.uint8)
        start = picture.ctypes.data + down.begin * picture.strides[0] + 3 * across.begin
        source = _Picture(start, None, None, picture.strides[0], 0, *seen)

    # ctypes takes a result for an int of 32 bits unless told otherwise.
    compiled.gwp_picture_workspace_size.restype = c_int64
    arguments = (byref(source), byref(across.taps), byref(down.taps))
    memory = _workspace.of(compiled.gwp_picture_workspace_size(*arguments))
    compiled.gwp_picture(
        *arguments, c_void_p(out.ctypes.data), c_int64(out.strides[0]), c_void_p(memory)
    )


def _by_torch(picture: np.ndarray, size: tuple[int, int], part: Part, out: np.ndarray) -> None:
    import torch
    from torch.nn.functional import interpolate

    x, y, width, height = part
    left, right, x0, x1 = _needed(picture.shape[1], size[0], x, width)
    top, bottom, y0, y1 = _needed(picture.shape[0], size[1], y, height)
    # A dense copy: torch takes neither read-only nor mirrored memory, and would make its own
    # with OpenMP's help. Whoever scales may be a robot's thread, and workers of its own would
    # slow the one that computes (`gwp.threads`).
    pixels = torch.from_numpy(np.array(picture[top:bottom, left:right]))[None].permute(0, 3, 1, 2)
    size_scaled = (y1 - y0, x1 - x0)
    scaled = interpolate(pixels, size=size_scaled, mode="bilinear", antialias=True)[0]
    scaled = scaled.permute(1, 2, 0)
    out[:] = scaled[y - y0 : y - y0 + height, x - x0 : x - x0 + width].numpy()


@lru_cache(maxsize=1024)
def _needed(length: int, scaled: int, first: int, count: int) -> tuple[int, int, int, int]:
    """Along one side: what to scale, and what it becomes, so that `count` pixels from `first`
    are as if all had been scaled.

    A part can be scaled alone where its edges fall between pixels both before and after.
    """
    parts = gcd(length, scaled)
    step, scaled_step = length // parts, scaled // parts
    # How far a weight reaches, in pixels before scaling.
    reach = max(1.0, step / scaled_step) + 1
    begin = max(0, floor((first / scaled_step) - reach / step))
    end = min(parts, ceil((first + count) / scaled_step + reach / step))
    return begin * step, end * step, begin * scaled_step, end * scaled_step

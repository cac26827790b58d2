"""Frames as video decoders give them: a plane of brightness and two of colour at half its width
and height.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter

_PRIMARIES = {
    0: (0.299, 0.114),
    1: (0.2126, 0.0722),
    2: (0.299, 0.114),
    4: (0.3, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Shares of red and blue in brightness by the number that streams name their colour space with
(ITU-T H.273, table 4); 0 and 2 say that it is not known, and swscale takes BT.601 then. Those
that are no such matrix are left out.
"""
_FULL = 2
"""Of `color_range`: brightness from 0 to 255, not from 16 to 235."""
_FORMATS = {"yuv420p": None, "yuvj420p": True}
"""Pixel formats that are such planes of 8 bits; whether brightness has the full range, None:
the frame says it.
"""


class Colours(NamedTuple):
    """From planes to RGB, as swscale does it on x86. All but `black` in units of 2^-13, for
    differences in units of 1/8.

    red = (8 (y - black) luma_gain >> 16) + (8 (v - 128) red_v >> 16), cut to 0..255; blue with
    u; green with both.
    """

    black: int
    luma_gain: int
    red_v: int
    green_u: int
    green_v: int
    blue_u: int


@lru_cache(maxsize=32)
def colours_of(space: int, full: bool) -> Colours | None:
    """None for colour spaces that are not turned into RGB by a matrix of two shares."""
    if space not in _PRIMARIES:
        return None
    red, blue = _PRIMARIES[space]
    green = 1 - red - blue
    # Of 16 bits behind the point, for colour from 16 to 240. swscale rounds there first, then
    # cuts and shifts; in another order single levels would differ.
    unit = 65536 * 255 / 224
    shares = [
        2 * (1 - red) * unit,
        -2 * (1 - blue) * blue / green * unit,
        -2 * (1 - red) * red / green * unit,
        2 * (1 - blue) * unit,
    ]
    whole = [round(share) for share in shares]
    gain = 65536 if full else 65536 * 255 // 219
    if full:
        whole = [int(share * 224 / 255) for share in whole]
    return Colours(0 if full else 16, *((share + 4) >> 3 for share in (gain, *whole)))


@dataclass(frozen=True)
class YuvFrame:
    """Decoded planes; to numpy an array uint8 `[H, W, 3]`, RGB, converted whenever it is asked
    for.

    address: of the first value of the three planes; step: bytes from row to row of brightness
    and of colour.
    """

    frame: Any
    convert: "VideoReformatter"
    colours: Colours
    address: tuple[int, int, int]
    step: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frame.height, self.frame.width, 3

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return rgb(self.frame, self.convert).astype(dtype or np.uint8, copy=False)


Picture = np.ndarray | YuvFrame
"""uint8 `[H, W, 3]`, RGB, for numpy."""


def rgb(frame: Any, convert: "VideoReformatter") -> np.ndarray:
    """A decoded frame as uint8 `[H, W, 3]`."""
    return np.asarray(convert.reformat(frame, format="rgb24").to_ndarray())


def quarter_turns(frame: Any) -> int:
    """How often a decoded frame is turned counterclockwise by 90 degrees before it is shown;
    telephones film that way.
    """
    return round(frame.rotation / 90) % 4


def _mirror_of(frame: Any) -> tuple[int, int, int, int] | None:
    """Where x and y of a decoded frame go, where it is mirrored before it is shown: cameras at the
    front of telephones film that way. None where it is turned at most.

    The angle of FFmpeg does not tell.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return (a, b, c, d) if a * d - b * c < 0 else None


def _mirrored(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Picture `[H, W, 3]`, or turned, as it is shown. matrix: x goes to `a x + c y`, y to `b x + d
    y`, along the axes.
    """
    a, b, c, d = matrix
    if abs(a) < abs(b):
        picture = picture.transpose(1, 0, 2)
        a, d = c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def picture_of(frame: Any, convert: "VideoReformatter") -> Picture:
    """A decoded frame, upright: its planes where that is what it has, else RGB. swscale
    converts odd sizes in another way.
    """
    kind = frame.format.name
    if (matrix := _mirror_of(frame)) is not None:
        return _mirrored(rgb(frame, convert), matrix)
    if turns := quarter_turns(frame):
        return np.rot90(rgb(frame, convert), turns)
    if kind not in _FORMATS or frame.width % 2 or frame.height % 2:
        return rgb(frame, convert)
    colours = colours_of(int(frame.colorspace), _FORMATS[kind] or int(frame.color_range) == _FULL)
    if colours is None:
        return rgb(frame, convert)
    y, u, v = frame.planes
    if u.line_size != v.line_size or min(y.line_size, u.line_size) < 0:
        return rgb(frame, convert)
    return YuvFrame(
        frame,
        convert,
        colours,
        (y.buffer_ptr, u.buffer_ptr, v.buffer_ptr),
        (y.line_size, u.line_size),
    )

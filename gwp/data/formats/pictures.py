"""Frames by time, whatever holds them: a video, a part of a file that is one, or pictures one
by one.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from gwp.data.formats.format import FilePart
from gwp.data.formats.reader import FileReader
from gwp.data.formats.table import ROBOTS
from gwp.data.video.decode import frames_at, open_video
from gwp.errors import DataError
from gwp.yuv import Picture

Frames = Callable[[Sequence[float]], Iterator[tuple[float, Picture]]]


@contextmanager
def open_frames(
    format: str,  # noqa: A002
    part: FilePart,
    key: str,
    rate: float,
    reader: FileReader,
    tolerance: float | None = None,
) -> Iterator[Frames]:
    """A function that gives the frames nearest to times (seconds, ascending, distinct), as
    `frames_at` does, of one view.

    A view is a video or, where there is a `key`, pictures at `rate` Hz, the k-th of row k, in a
    data file of `format`. `tolerance` is for videos.
    """
    # The handle stays open between calls, so whoever reads may go on behind a damaged place.
    if not key:
        with open_video(part.uri, part.size, part.offset) as handle:
            yield lambda times: frames_at(handle, times, tolerance)
    else:
        yield lambda times: _pictures_at(format, part, key, rate, reader, times)


def _pictures_at(
    format: str,  # noqa: A002
    part: FilePart,
    key: str,
    rate: float,
    reader: FileReader,
    times: Sequence[float],
) -> Iterator[tuple[float, np.ndarray]]:
    # Opened at the first picture: a file that cannot be read is an error of that time.
    with ROBOTS[format].open_pictures(part, key, reader) as (count, get):
        for t in times:
            # Half-way the earlier one, as in a video.
            i = ceil(t * rate - 0.5 - 1e-4)
            if not 0 <= i < count:
                raise DataError(f"{part.uri}: no picture {i} of {key}; there are {count}")
            yield t, _decoded(get(i), f"{part.uri}: picture {i} of {key}")


def _decoded(raw: Any, name: str) -> np.ndarray:
    """uint8 `[H, W, 3]`, RGB as the encoded picture says."""
    if isinstance(raw, np.ndarray):
        return raw
    if not raw:
        raise DataError(f"{name} is not there (no bytes)")
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            # Grey, palettes and alpha become RGB. Pictures that OpenCV encoded from RGB
            # arrays come out with red and blue exchanged: nothing in the file tells.
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); it is damaged") from error

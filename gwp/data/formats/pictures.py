"""Frames by time, whatever holds them: a video, a part of a file that is one, or pictures one
by one.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import FilePart, Usable
from gwp.data.formats.robot_set import RobotSet, VideoSpan
from gwp.data.formats.table import ROBOTS
from gwp.data.video.decode import frames_at, open_video
from gwp.errors import DataError
from gwp.yuv import Picture

_CHANNELS = (1, 3, 4)
"""Of grey pictures, RGB and RGBA."""
_NO_COLOUR = "as depth has, not uint8 colours; name another camera"
_DEEP = re.compile(r"(?!BGR)[A-Za-z]+;(12|16|32)")
"""How samples of so many bits lie, as Pillow calls it; `BGR;16` are 16 bits of all three."""
_ORIENTATION = 0x0112
"""Tag of EXIF: which way up."""
_TRIED = 65536
"""Pictures of which it stays whether they could be read."""

Frames = Callable[[Sequence[float]], Iterator[tuple[float, Picture]]]


@contextmanager
def open_frames(
    format: str,  # noqa: A002
    part: FilePart,
    key: str,
    rate: float,
    reader: FileReader,
    tolerance: float | None = None,
    bgr: bool = False,
) -> Iterator[Frames]:
    """A function that gives the frames nearest to times (seconds, ascending, distinct), as
    `frames_at` does, of one view.

    A view is a video or, where there is a `key`, pictures at `rate` Hz, the k-th of row k, in a
    data file of `format`. `tolerance` is for videos. `bgr`: red and blue were exchanged when
    they were written, and are set right.
    """

    def in_rgb(found: Iterator[tuple[float, Picture]]) -> Iterator[tuple[float, Picture]]:
        return ((t, np.asarray(picture)[..., ::-1]) for t, picture in found) if bgr else found

    # The handle stays open between calls, so whoever reads may go on behind a damaged place.
    if not key:
        with open_video(part.uri, part.size, part.offset) as handle:
            yield lambda times: in_rgb(frames_at(handle, times, tolerance))
    else:
        yield lambda times: in_rgb(_pictures_at(format, part, key, rate, reader, times))


def with_pictures(
    data: RobotSet, usable: Usable, cameras: Sequence[str], reader: FileReader
) -> Usable:
    """`usable` without the episodes of a set of which no picture of one of the cameras can be
    read. Of each camera pictures are tried until one can.

    Single pictures that are damaged cost the samples that need them, no more.
    """
    good, bad = usable
    for camera in cameras:
        spans = [episode.videos.get(camera) for episode, _ in good]
        reasons: list[str] = []
        for span in spans:
            # Videos are looked at by whoever knows what a set says of them.
            reason = _unreadable(data, span, reader) if span and span.key else ""
            if not reason:
                break
            reasons.append(reason)
        if good and len(reasons) == len(good):
            bad = [*bad, *((episode, why) for (episode, _), why in zip(good, reasons, strict=True))]
            good = []
    return good, sorted(bad, key=lambda entry: entry[0].index)


def _unreadable(data: RobotSet, span: VideoSpan, reader: FileReader) -> str:
    """Why the first picture of an episode cannot be read; nothing where it can."""
    size = data.files.get(span.file) if span.bytes is None else span.bytes
    part = FilePart(storage.join(data.uri, span.file), span.offset, size)
    return reader.once(_TRIED, _problem, reader, data.format, part, span.key, data.fps, span.start)


def _problem(
    reader: FileReader,
    format: str,  # noqa: A002
    part: FilePart,
    key: str,
    rate: float,
    start: float,
) -> str:
    try:
        with open_frames(format, part, key, rate, reader) as frames:
            next(frames([start]))
    except DataError as error:
        return str(error)
    return ""


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
            yield t, as_rgb(get(i), f"{part.uri}: picture {i} of {key}")


def as_rgb(raw: Any, name: str) -> np.ndarray:
    """uint8 `[H, W, 3]` of an array or an encoded picture, RGB as that says. Grey, palettes and
    alpha become RGB, channels that come first go last.

    DataError for what is no picture of 8 bits: depth, numbers that may mean 0..1 or 0..255.
    """
    if isinstance(raw, np.ndarray):
        return _array_as_rgb(raw, name)
    if not raw:
        raise DataError(f"{name} is not there (no bytes)")
    if not isinstance(raw, bytes):
        raise DataError(f"{name} is no picture; its column holds something else")
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            # What 16 bits mean (mostly millimetres) no conversion could know. Pillow cuts those of
            # several channels to 8 without a word.
            if picture.mode.startswith(("I", "F")) or _is_deep_png(raw) or _is_deep(picture):
                raise DataError(f"{name} has more than 8 bits a channel, {_NO_COLOUR}")
            # Pictures that OpenCV encoded from RGB arrays come out with red and blue
            # exchanged: nothing in the file tells (`colours` of the source does).
            return np.asarray(_upright(picture).convert("RGB"))
    except UnidentifiedImageError as error:
        # Its own words name an object of Python.
        raise DataError(f"{name} is of no kind that is read, or damaged") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); it is damaged") from error


def _is_deep_png(raw: bytes) -> bool:
    # Behind the signature, the head of the first chunk, width and height: bits of a channel.
    return raw.startswith(b"\x89PNG") and raw[24:25] == b"\x10"


def _is_deep(picture: Image.Image) -> bool:
    """Whether what is stored has more than 8 bits a channel, as TIFF and PPM may."""
    for codec, _, _, about in getattr(picture, "tile", ()):
        lies, *more = about if isinstance(about, tuple) else (about,)
        # How the samples lie, as `RGB;16L`; in PPM the largest of them stands behind.
        if _DEEP.match(str(lies)) or (codec.startswith("ppm") and max(more, default=0) > 255):
            return True
    return False


def _upright(picture: Image.Image) -> Image.Image:
    """As its EXIF says that it is shown."""
    try:
        turned = picture.getexif().get(_ORIENTATION, 1) != 1
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, struct.error):
        # What is damaged there says nothing.
        return picture
    return ImageOps.exif_transpose(picture) if turned else picture


def _array_as_rgb(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.uint8:
        raise DataError(f"{name} is {array.dtype}, {_NO_COLOUR}")
    if array.ndim == 2:
        array = array[..., None]
    # Where both could be meant, channels come last.
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in _CHANNELS:
        raise DataError(
            f"{name} has shape {list(array.shape)}; it is no picture of 1, 3 or 4 channels"
        )
    if array.shape[-1] == 1:
        return np.repeat(array, 3, -1)
    return array[..., :3]

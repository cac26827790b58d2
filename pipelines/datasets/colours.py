"""Whether the pictures of a camera look as if red and blue were exchanged. Nothing is changed:
the user decides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Finding
from gwp.data.formats.format import FilePart
from gwp.data.formats.pictures import open_frames
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.errors import DataError

_LOOKED_AT = 4
"""Pictures of a camera, from as many episodes."""
_COLOURED = 30
"""Levels between red and blue from which on a pixel is warm or cold, and between the highest and
the lowest from which on it has a colour.
"""
_SHARE = 0.05
"""Share of such pixels below which nothing is said."""
_TIMES = 4.0
"""Cold pixels to warm ones from which on a scene looks exchanged: rooms, skin, wood and cardboard
are warm, and what is cold is mostly one object.
"""
_HUES, _DEPTHS = 18, 4
"""Parts of the circle of hues, and of saturation, in which coloured pixels are counted."""
_COMPARED = 0.02
"""Share of pixels with a colour from which on cameras are compared."""
_ALIKE, _MORE = 0.4, 2.5
"""Overlap of the colours of two cameras, once one is exchanged, and how many times that as they
are, from which on one of them looks exchanged.
"""


_HOW_SURE = {
    1: "one sign of two, so it may be so; a blue table or light gives it, too",
    2: "both signs, so it is likely",
}


@dataclass(frozen=True)
class Seen:
    """Colours of a camera. warm, cold: shares of its pixels in which red is well above blue with
    green between them, and the other way round; coloured: share of those with a colour. counts:
    of those by hue and saturation, together 1, as they are and exchanged
    """

    warm: float
    cold: float
    coloured: float
    counts: np.ndarray
    exchanged: np.ndarray


def check_colours(
    data: RobotSet,
    episodes: Sequence[Episode],
    cameras: Sequence[str],
    is_bgr: Callable[[str], bool],
    reader: FileReader,
) -> list[Finding]:
    """A finding for each camera whose pictures or videos look exchanged, as those that OpenCV
    encodes from RGB arrays are: for themselves, or beside another camera of the set. is_bgr: what
    the source says of a camera.

    A blue table looks so too: the finding says by how many signs it looks so.
    """
    found: dict[str, Seen] = {}
    for camera in cameras:
        pictures = _pictures(data, episodes, camera, is_bgr(camera), reader)
        if pictures:
            found[camera] = seen(pictures)
    return suspected(found, {camera: "rgb" if is_bgr(camera) else "bgr" for camera in found})


def suspected(cameras: Mapping[str, Seen], other: Mapping[str, str]) -> list[Finding]:
    """The findings of `check_colours`. other: what `colours` would exchange each."""
    signs: dict[str, list[str]] = {}
    for camera, colours in cameras.items():
        if colours.cold >= _SHARE and colours.cold >= _TIMES * colours.warm:
            sign = f"{colours.cold:.0%} of the pixels are bluish, {colours.warm:.0%} reddish"
            signs.setdefault(camera, []).append(sign)
    # Which of two is right the scene alone would tell; the colder one is the odd one.
    beside: set[str] = set()
    for pair in combinations(cameras, 2):
        if not _contrary(*(cameras[camera] for camera in pair)):
            continue
        odd, right = sorted(pair, key=lambda camera: cameras[camera].warm - cameras[camera].cold)
        if odd in beside:
            continue
        beside.add(odd)
        signs.setdefault(odd, []).append(f"its colours are those of {right} the other way round")
    # Where all look so, one word is enough.
    every = len(signs) == len(cameras) and not beside
    return [
        Finding(
            camera,
            f"looks as if red and blue were exchanged ({' and '.join(said)}: {_HOW_SURE[len(said)]})",
            "ignored",
            "compare with the real scene; on the source `colours: "
            + (other[camera] if every else f"{{{camera}: {other[camera]}}}")
            + "` exchanges them",
        )
        for camera, said in signs.items()
    ]


def _contrary(one: Seen, other: Seen) -> bool:
    """Whether two cameras show the same colours only when one of them is exchanged."""
    if min(one.coloured, other.coloured) < _COMPARED:
        return False
    as_they_are = np.minimum(one.counts, other.counts).sum()
    exchanged = np.minimum(one.counts, other.exchanged).sum()
    return bool(exchanged >= _ALIKE and exchanged >= _MORE * as_they_are)


def seen(pictures: Sequence[np.ndarray]) -> Seen:
    """pictures: uint8 `[H, W, 3]`"""
    # Every fourth pixel each way is enough for shares.
    some = np.concatenate([picture[::4, ::4].reshape(-1, 3) for picture in pictures])
    red, green, blue = some.astype(np.int16).T
    warm = (red - blue > _COLOURED) & (green < red) & (green > blue)
    cold = (blue - red > _COLOURED) & (green < blue) & (green > red)
    coloured = np.ptp(some.astype(np.int16), axis=1) > _COLOURED
    as_it_is, exchanged = _counts(some[coloured]), _counts(some[coloured][:, ::-1])
    of_warm, of_cold, of_any = (float(part.mean()) for part in (warm, cold, coloured))
    return Seen(of_warm, of_cold, of_any, as_it_is, exchanged)


def _counts(pixels: np.ndarray) -> np.ndarray:
    """Shares of coloured pixels uint8 `[n, 3]` by hue and saturation, `[hues, depths]`."""
    red, green, blue = pixels.astype(np.float64).T
    high, low = pixels.max(1, initial=0), pixels.min(1, initial=255)
    way = np.maximum(high.astype(np.float64) - low, 1.0)
    sixths = np.select(
        [red == high, green == high],
        [(green - blue) / way % 6, (blue - red) / way + 2],
        (red - green) / way + 4,
    )
    hue = (sixths / 6 * _HUES).astype(np.int64) % _HUES
    depth = np.minimum((way / np.maximum(high, 1) * _DEPTHS).astype(np.int64), _DEPTHS - 1)
    counts = np.zeros((_HUES, _DEPTHS))
    np.add.at(counts, (hue, depth), 1.0)
    # Two cameras see one thing in neighbouring hues: their white balance differs.
    counts = counts / 2 + (np.roll(counts, 1, 0) + np.roll(counts, -1, 0)) / 4
    return counts / max(counts.sum(), 1.0)


def _pictures(
    data: RobotSet, episodes: Sequence[Episode], camera: str, bgr: bool, reader: FileReader
) -> list[np.ndarray]:
    """Some pictures of a camera, uint8 `[H, W, 3]`; none where none can be read."""
    spans = [e.videos[camera] for e in episodes if camera in e.videos]
    pictures = []
    for span in spans[:: max(1, len(spans) // _LOOKED_AT)][:_LOOKED_AT]:
        size = data.files.get(span.file) if span.bytes is None else span.bytes
        part = FilePart(storage.join(data.uri, span.file), span.offset, size)
        try:
            with open_frames(data.format, part, span.key, data.fps, reader, bgr=bgr) as frames:
                pictures += [np.asarray(picture) for _, picture in frames([span.start])]
        except DataError:
            # Told where the pictures are looked at for themselves.
            continue
    return pictures

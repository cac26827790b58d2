"""Whether the pictures of a camera look as if red and blue were exchanged. Nothing is changed:
the user decides.
"""

from collections.abc import Sequence

import numpy as np

from gwp import storage
from gwp.data.formats.finding import Finding
from gwp.data.formats.format import FilePart
from gwp.data.formats.pictures import open_frames
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.errors import DataError

_LOOKED_AT = 4
"""Pictures of a camera, from as many episodes."""
_COLOURED = 30
"""Levels between red and blue from which on a pixel is warm or cold."""
_SHARE = 0.05
"""Share of such pixels below which nothing is said."""
_TIMES = 4.0
"""Cold pixels to warm ones from which on a scene looks exchanged: rooms, skin, wood and cardboard
are warm, and what is cold is mostly one object.
"""


def check_colours(
    data: RobotSet,
    episodes: Sequence[Episode],
    cameras: Sequence[str],
    bgr: bool,
    reader: FileReader,
) -> list[Finding]:
    """A finding for each camera whose single pictures look exchanged, as those that OpenCV
    encodes from RGB arrays are. bgr: what the source says of them.

    A blue table looks so too: the finding says "looks as if".
    """
    findings = []
    other = "rgb" if bgr else "bgr"
    for camera in cameras:
        warm, cold = _warm_and_cold(data, episodes, camera, bgr, reader)
        if cold >= _SHARE and cold >= _TIMES * warm:
            what = (
                f"looks as if red and blue were exchanged ({cold:.0%} of the pixels are bluish, "
                f"{warm:.0%} reddish)"
            )
            advice = f"compare with the real scene; `colours: {other}` on the source exchanges them"
            findings.append(Finding(camera, what, "ignored", advice))
    return findings


def _warm_and_cold(
    data: RobotSet, episodes: Sequence[Episode], camera: str, bgr: bool, reader: FileReader
) -> tuple[float, float]:
    """Shares of pixels in which red is well above blue with green between them, and the other
    way round; 0 where no picture can be read.
    """
    spans = [e.videos[camera] for e in episodes if camera in e.videos and e.videos[camera].key]
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
    if not pictures:
        return 0.0, 0.0
    # Every fourth pixel each way is enough for shares.
    some = [picture[::4, ::4].reshape(-1, 3).astype(np.int16) for picture in pictures]
    red, green, blue = np.concatenate(some).T
    warm = (red - blue > _COLOURED) & (green < red) & (green > blue)
    cold = (blue - red > _COLOURED) & (green < blue) & (green > red)
    return float(warm.mean()), float(cold.mean())

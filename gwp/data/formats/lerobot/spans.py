"""Frames that are said to be of two episodes, or of two cameras."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from gwp.data.formats.robot_set import Episode
from gwp.data.video.probe import VideoInfo


def frame_of(start_s: float, fps: float, own: float) -> int:
    """Number of the frame at a start, which is in seconds of the rows or of the file: whichever
    gives a whole number more nearly.
    """
    return min(
        (round(start_s * rate) for rate in (fps, own)),
        key=lambda n: min(abs(start_s * rate - n) for rate in (fps, own)),
    )


def shared_spans(
    every: Sequence[Episode],
    chosen: Sequence[Episode],
    cameras: Iterable[str],
    fps: float,
    video: Callable[[str], VideoInfo | str],
) -> dict[int, str]:
    """Episode -> why its frames are not known to be its own: others are said to have the same.

    every: all episodes of the set, with their places as they are going to be read. Only files
    that a chosen one lies in are looked at.
    """
    cameras = list(cameras)
    looked_at = {e.videos[c].file for e in chosen for c in cameras if c in e.videos}
    # File -> first frame, end, episode and camera of what is said to lie in it.
    spans: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
    for episode in every:
        for camera in cameras:
            span = episode.videos.get(camera)
            # Pictures in data files are found with the rows.
            if span is None or span.key or span.file not in looked_at or episode.length <= 0:
                continue
            info = video(span.file)
            # What cannot be read is told as that.
            if isinstance(info, VideoInfo):
                first = frame_of(span.start, fps, info.fps)
                end = first + episode.length
                spans[span.file].append((first, end, episode.index, camera))
    found: dict[int, str] = {}
    for file, there in spans.items():
        there.sort()
        # The span that reaches furthest of those before.
        last = there[0]
        for entry in there[1:]:
            if entry[0] < last[1]:
                _tell(found, file, last, entry)
                _tell(found, file, entry, last)
            last = max(last, entry, key=lambda s: s[1])
    return found


def _tell(
    found: dict[int, str],
    file: str,
    mine: tuple[int, int, int, str],
    other: tuple[int, int, int, str],
) -> None:
    whose = f"camera {other[3]}" if mine[2] == other[2] else f"episode {other[2]}"
    found.setdefault(
        mine[2],
        f"{mine[3]} has frames {mine[0]} to {mine[1] - 1} of {file}, of which {whose} is said to "
        f"have {other[0]} to {other[1] - 1}: whose they are cannot be told",
    )

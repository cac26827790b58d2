"""What is wrong in many LeRobot sets and can be set right without a guess."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from gwp.data.formats.robot_set import Episode, VideoSpan
from gwp.data.video.probe import VideoInfo

_OFF = 0.25
"""Share of a frame by which a start may differ from a whole number of frames before it is taken
for wrong.
"""


_SHORT = 0.5
"""Frames by which the length of a span may differ from that of its episode before it is taken for
wrong.
"""


def mend_paths(episodes: Iterable[Episode], files: dict[str, int]) -> list[Episode]:
    """Videos in a folder of another name than info.json says (`video/` for `videos/`): what
    lies below it decides.
    """
    below = defaultdict(list)
    for name in files:
        # Name behind the first folder -> files that end so.
        below[name.partition("/")[2]].append(name)

    def found(span: VideoSpan) -> VideoSpan:
        # One only: of two, either would be a guess.
        others = below[span.file.partition("/")[2]] if span.file not in files else []
        return replace(span, file=others[0]) if len(others) == 1 else span

    return [
        replace(e, videos={camera: found(span) for camera, span in e.videos.items()})
        for e in episodes
    ]


def absent_cameras(
    episodes: Sequence[Episode], cameras: Iterable[str], files: dict[str, int]
) -> tuple[str, ...]:
    """Cameras that are declared, but of which there is no file at all, where others have some."""
    # Where no camera has a file, the videos of the set are lost; then each episode says so.
    have = {c: any(e.videos[c].file in files for e in episodes if c in e.videos) for c in cameras}
    return tuple(c for c, there in have.items() if not there) if any(have.values()) else ()


def start_frames(episodes: Sequence[Episode], camera: str) -> dict[int, tuple[str, int]]:
    """Episode -> video file and frame of it where the episode starts, if episodes lie in it one
    after another without gaps.
    """
    by_file: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        if camera in episode.videos:
            by_file[episode.videos[camera].file].append(episode)
    starts = {}
    for file, held in by_file.items():
        at = 0
        # By their recorded starts: those are off a little, but hardly out of order.
        for episode in sorted(held, key=lambda e: (e.videos[camera].start, e.index)):
            starts[episode.index] = file, at
            at += episode.length
    return starts


def mend_spans(
    every: Sequence[Episode],
    chosen: Sequence[Episode],
    cameras: Iterable[str],
    fps: float,
    video: Callable[[str], VideoInfo | str],
) -> list[Episode]:
    """Every episode of v3 files. Those whose `from_timestamp` has drifted or is wrong, or whose
    `to_timestamp` names another end, have the place that counting rows gives.

    Only in files that hold exactly as many frames as their episodes have rows, so that there is
    no other reading of them, and that a chosen episode lies in.
    """
    mended = {e.index: e for e in every}
    for camera in cameras:
        starts = start_frames(every, camera)
        looked_at = {e.videos[camera].file for e in chosen if camera in e.videos}
        # File -> rows of all episodes in it.
        rows: dict[str, int] = defaultdict(int)
        for episode in every:
            if camera in episode.videos:
                rows[starts[episode.index][0]] += episode.length
        for episode in every:
            span = episode.videos.get(camera)
            if span is None or span.key or span.file not in looked_at:
                continue
            info = video(span.file)
            if isinstance(info, str) or info.frames != rows[span.file]:
                continue
            place = _counted(span, starts[episode.index][1], episode.length, fps)
            if place is not span:
                videos = mended[episode.index].videos | {camera: place}
                mended[episode.index] = replace(mended[episode.index], videos=videos)
    return list(mended.values())


def _counted(span: VideoSpan, frame: int, length: int, fps: float) -> VideoSpan:
    """The span itself where it is where counting puts it, at `frame`; else that place."""
    off = abs(span.start * fps - frame) > _OFF
    # Some name the last frame of an episode instead of its end.
    short = span.end is not None and abs((span.end - span.start) * fps - length) > _SHORT
    if not off and not short:
        return span
    start = frame / fps if off else span.start
    return replace(span, start=start, end=None if span.end is None else start + length / fps)

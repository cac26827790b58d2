"""What is wrong in a robot set of any format: streams that differ, starts that were corrected.

What only one format can get wrong is told by its file in `gwp.data.formats`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from gwp import storage
from gwp.data.canvas import SLOTS
from gwp.data.formats.cameras import colour_cameras
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.files.texts import REPLACED
from gwp.data.formats.finding import Finding
from gwp.data.formats.format import FilePart
from gwp.data.formats.pictures import open_frames
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan
from gwp.data.formats.videos import video_facts
from gwp.data.source import Source
from gwp.data.video.probe import VideoInfo
from gwp.errors import DataError
from gwp.storage.names import shown_all

_RATE_TOLERANCE = 1e-5
"""Relative difference up to which two rates are the same."""
_BESIDE = 0.5
"""Frames by which a start lies at another one."""
_SEEK_COSTS = 60
"""Frames between key frames from which on reading a window is slow."""


def of_cameras(data: RobotSet, source: Source) -> RobotSet:
    """The set with those cameras alone that a source names. DataError when it lacks one."""
    if not source.cameras:
        return data
    named = data.slots(source.cameras).values()
    return replace(data, cameras={camera: data.cameras[camera] for camera in named})


def check_metadata(data: RobotSet, used: Sequence[Episode]) -> Iterator[Finding]:
    """What the metadata of a set lack, or say wrongly. Nothing here costs an episode. used:
    episodes as they are used, whose rows may say more
    """
    episodes = ({e.index: e for e in data.episodes} | {e.index: e for e in used}).values()
    if (count := len(colour_cameras(data.cameras))) > len(SLOTS):
        advice = "a canvas holds three: choose them with `cameras`"
        yield Finding("the set", f"{count} cameras", "ignored", advice)
    if silent := sum(not (e.text or e.texts or e.problem) for e in episodes):
        what = f"{silent} of {len(data.episodes)} episodes have no instruction"
        advice = "they are learnt without a text; `task` on the source gives one"
        yield Finding("the set", what, "ignored", advice)
    for camera in data.absent:
        what = "declared, but there is no file of it"
        yield Finding(camera, what, "ignored", "remove it from the metadata")


def unreadable_texts(episodes: Sequence[Episode]) -> Iterator[Finding]:
    """Instructions of which something is no character. episodes: as they are used"""
    replaced = [
        str(e.index)
        for e in episodes
        if any(REPLACED in text for text in (e.text, *(text for _, text in e.texts)))
    ]
    if replaced:
        what = f"has what is no character, in episodes {shown_all(replaced)}"
        yield Finding("instruction", what, "ignored", "it is read as U+FFFD; write it again")


def _was_moved(stated: float, span: VideoSpan, fps: float) -> bool:
    """Whether a start is at another frame than it is said to be; seconds of a file may be those of
    its own clock.
    """
    if span.rate is None:
        return span.start != stated
    frame = span.start * span.rate
    return min(abs(stated * rate - frame) for rate in (fps, span.rate)) >= _BESIDE


def corrected_starts(data: RobotSet, episodes: Sequence[Episode]) -> Iterator[Finding]:
    """Starts of videos that were corrected by counting frames. episodes: as they are used."""
    # As the metadata have them; `episodes` are as they are going to be read.
    recorded = {episode.index: episode for episode in data.episodes}
    for episode in episodes:
        for camera, span in episode.videos.items():
            before = recorded[episode.index].videos.get(camera)
            if before and not span.key and _was_moved(before.start, span, data.fps):
                what = (
                    f"{camera} starts at {span.start:.3f} s of {span.file} by count, "
                    f"the metadata say {before.start:.3f} s"
                )
                yield Finding(f"episode {episode.index}", what, "repaired", "the count is used")


def stream_infos(
    data: RobotSet, episodes: Sequence[Episode], camera: str, reader: FileReader
) -> list[VideoInfo] | str:
    """Facts of all videos of a camera that can be read, or of its pictures, or why there are
    none.

    episodes: those that are used
    """
    spans = [
        episode.videos[camera] for episode in episodes or data.episodes if camera in episode.videos
    ]
    if not spans:
        return "no file"
    # Pictures in data files have no stream: the first one stands for all.
    if spans[0].key:
        return _picture_info(data, spans[0], reader)
    # Many episodes may lie in one file, which is looked at once.
    files = dict.fromkeys(span.file for span in spans)
    infos = [video_facts(data, file, reader) for file in files]
    readable = [info for info in infos if isinstance(info, VideoInfo)]
    return readable or next(str(info) for info in infos)


def _picture_info(data: RobotSet, span: VideoSpan, reader: FileReader) -> list[VideoInfo] | str:
    """Pictures described as a video of which every frame is a key frame."""
    size = data.files.get(span.file) if span.bytes is None else span.bytes
    part = FilePart(storage.join(data.uri, span.file), span.offset, size)
    try:
        with open_frames(data.format, part, span.key, data.fps, reader) as frames:
            _, picture = next(frames([span.start]))
    except DataError as error:
        return str(error)
    height, width = picture.shape[:2]
    return [VideoInfo(width, height, data.fps, 1, "pictures", 1, size or 0)]


def check_streams(data: RobotSet, camera: str, infos: Sequence[VideoInfo]) -> Iterator[Finding]:
    """What is unusual in the videos of a camera. infos: of all of them, at least one."""
    if others := max(info.others for info in infos):
        what = f"{others} more streams in the file (sound, a second picture)"
        yield Finding(camera, what, "ignored", "the first picture is read")
    sizes = Counter(f"{info.width}x{info.height}" for info in infos)
    codecs = Counter(info.codec for info in infos)
    # Neither hurts, because files are read one by one.
    for name, kinds in (("sizes", sizes), ("codecs", codecs)):
        if len(kinds) > 1:
            counts = ", ".join(f"{kind} in {count} files" for kind, count in kinds.most_common())
            advice = "each file is read as it is, and scaled to the canvas"
            yield Finding(camera, f"different {name}: {counts}", "ignored", advice)
    if any(abs(info.fps - data.fps) > _RATE_TOLERANCE * data.fps for info in infos):
        rates = ", ".join(f"{rate:g}" for rate in sorted({round(info.fps, 4) for info in infos}))
        what = f"runs at {rates} Hz, the set at {data.fps:g} Hz"
        yield Finding(camera, what, "repaired", "frames are found by position")
    yield from _check_shape(camera, data.cameras[camera].get("shape"), infos[0])
    gop = max(info.gop for info in infos)
    if gop > _SEEK_COSTS:
        what = f"key frames are {gop} frames apart: reading a window decodes many frames"
        yield Finding(camera, what, "ignored", "encode with a key frame every 2 frames for speed")


def _check_shape(camera: str, shape: Any, info: VideoInfo) -> Iterator[Finding]:
    """The declared shape of a camera against its stream. shape: as the metadata have it."""
    # Metadata are anything that JSON can hold.
    is_shape = isinstance(shape, (list, tuple)) and len(shape) == 3
    if not is_shape or not all(isinstance(n, int) for n in shape):
        return
    declared = "x".join(map(str, shape))
    # In any order: sets put height before width or behind, and channels at either end.
    if sorted(shape) != sorted([info.height, info.width, 3]):
        what = f"declared as {declared}, the stream is {info.width}x{info.height}"
        yield Finding(camera, what, "ignored", "the stream counts")
    elif shape[0] == 3:
        what = f"declared channels first ({declared})"
        yield Finding(camera, what, "ignored", "the stream counts")

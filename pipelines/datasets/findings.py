"""What is wrong in a robot set.

Metadata that disagree with the files, streams and columns that differ, clocks that drift.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gwp import storage
from gwp.data.formats.lerobot.check import EpisodeCheck
from gwp.data.formats.lerobot.read import INFO
from gwp.data.formats.pictures import open_frames
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan
from gwp.data.formats.vectors import read_vectors
from gwp.data.video.decode import VideoInfo
from gwp.errors import DataError

Consequence = Literal["fatal", "left out", "repaired", "ignored"]
"""What follows from a finding.

fatal: the set cannot be used; left out: an episode, a video or some rows are not; repaired: set
right without a guess; ignored: nothing depends on it
"""
_CLOCK_TOLERANCE_S = 1e-3
"""How far a recorded time may be off; float32 holds no better in long episodes."""
_RATE_TOLERANCE = 1e-5
"""Relative difference up to which two rates are the same."""
_SEEK_COSTS = 60
"""Frames between key frames from which on reading a window is slow."""
_UNUSED = ("timestamp", "frame_index", "index", "task_index")
"""Columns of the format that nothing here depends on."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, what follows from it, and what to do."""

    item: str
    what: str
    consequence: Consequence
    advice: str = ""


def check_metadata(data: RobotSet) -> Iterator[Finding]:
    """What the metadata of a set lack, or say wrongly. Nothing here costs an episode."""
    if (data.state_names or data.action_names) and not data.named and data.format == "lerobot":
        what = "dimensions have no names, or not as many as there are"
        yield Finding(INFO, what, "ignored", "they are named by position")
    if len(data.cameras) > 3:
        advice = "a canvas holds three: choose them with `cameras`"
        yield Finding("the set", f"{len(data.cameras)} cameras", "ignored", advice)
    if silent := sum(not episode.text for episode in data.episodes):
        what = f"{silent} of {len(data.episodes)} episodes have no instruction"
        advice = "they are learnt without a text; `task` on the source gives one"
        yield Finding("the set", what, "ignored", advice)
    for camera in data.absent:
        what = "declared, but there is no file of it"
        yield Finding(camera, what, "ignored", "remove it from the metadata")
    if data.format == "lerobot":
        info = json.loads(storage.read_bytes(storage.join(data.uri, INFO)))
        yield from _check_counts(data, info)
        yield from _check_features(data, info)


def _check_counts(data: RobotSet, info: dict[str, Any]) -> Iterator[Finding]:
    """Counts of info.json that are not those of the set. info: its content."""
    chunks = {name.rsplit("/", 1)[0] for name in data.files if name.startswith("data/")}
    counts = {
        "total_episodes": len(data.episodes),
        "total_frames": sum(episode.length for episode in data.episodes),
        "total_chunks": len(chunks),
        "total_videos": sum(name.startswith("video") for name in data.files),
    }
    for key, count in counts.items():
        if key in info and info[key] != count:
            what = f"{key} is {info[key]}, the set has {count}"
            yield Finding(INFO, what, "ignored", "correct it for other readers")
    splits = info.get("splits")
    for name, span in (splits if isinstance(splits, dict) else {}).items():
        end = str(span).rpartition(":")[2]
        if end.isdigit() and int(end) > len(data.episodes):
            what = f"split '{name}' goes to {end}, the set has {len(data.episodes)} episodes"
            yield Finding(INFO, what, "ignored", "correct it")


def _check_features(data: RobotSet, info: dict[str, Any]) -> Iterator[Finding]:
    """Cameras of info.json that are not read, or lie elsewhere. info: its content."""
    folder = str(info.get("video_path") or "").partition("/")[0]
    if folder and data.cameras and not any(name.startswith(f"{folder}/") for name in data.files):
        what = f"videos do not lie in '{folder}/'"
        yield Finding(INFO, what, "repaired", "they are found by what follows")
    known = {*data.cameras, *data.absent}
    for key, feature in info["features"].items():
        if feature.get("dtype") in ("video", "image") and key not in known:
            yield Finding(key, "depth pictures", "ignored", "only colour is read")


def corrected_starts(data: RobotSet, episodes: Sequence[Episode]) -> Iterator[Finding]:
    """Starts of videos that were corrected by counting frames. episodes: as they are used."""
    recorded = {episode.index: episode for episode in data.episodes}
    for episode in episodes:
        for camera, span in episode.videos.items():
            before = recorded[episode.index].videos.get(camera)
            if before and not span.key and span.rate is None and span.start != before.start:
                what = (
                    f"{camera} starts at {span.start:.3f} s of {span.file} by count, "
                    f"the metadata say {before.start:.3f} s"
                )
                yield Finding(f"episode {episode.index}", what, "repaired", "the count is used")


def stream_infos(
    data: RobotSet, episodes: Sequence[Episode], camera: str, check: EpisodeCheck | None
) -> list[VideoInfo] | str:
    """Facts of all videos of a camera that can be read, or of its pictures, or why there are
    none.

    episodes: those that are used; check: of a LeRobot set, which holds videos
    """
    spans = [
        episode.videos[camera] for episode in episodes or data.episodes if camera in episode.videos
    ]
    if not spans:
        return "no file"
    if spans[0].key:
        return _picture_info(data, spans[0])
    assert check is not None
    infos = [check.video(file) for file in dict.fromkeys(span.file for span in spans)]
    readable = [info for info in infos if isinstance(info, VideoInfo)]
    return readable or next(str(info) for info in infos)


def _picture_info(data: RobotSet, span: VideoSpan) -> list[VideoInfo] | str:
    """Pictures described as a video of which every frame is a key frame."""
    size = data.files.get(span.file) if span.bytes is None else span.bytes
    uri = storage.join(data.uri, span.file)
    try:
        with open_frames(uri, size, span.offset, span.key, data.format, data.fps) as frames:
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
    is_shape = isinstance(shape, (list, tuple)) and len(shape) == 3
    if not is_shape or not all(isinstance(n, int) for n in shape):
        return
    declared = "x".join(map(str, shape))
    if sorted(shape) != sorted([info.height, info.width, 3]):
        what = f"declared as {declared}, the stream is {info.width}x{info.height}"
        yield Finding(camera, what, "ignored", "the stream counts")
    elif shape[0] == 3:
        what = f"declared channels first ({declared})"
        yield Finding(camera, what, "ignored", "the stream counts")


def check_columns(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], check: EpisodeCheck
) -> Iterator[Finding]:
    """Columns that the format asks for and the files lack or hold in another type, and clocks.

    episodes: those that are used, each with its first row in its file
    """
    columns = {episode.data_file: check.columns(episode.data_file) for episode, _ in episodes}
    for name in (*_UNUSED, "episode_index"):
        lacking = sum(name not in types for types in columns.values())
        if lacking:
            what = f"no column {name} in {lacking} of {len(columns)} files"
            if name == "episode_index" and data.version.startswith("v3."):
                yield Finding("data", what, "repaired", "rows are counted")
            else:
                yield Finding("data", what, "ignored", "nothing depends on it")
    for name in (*data.state_keys, *data.action_keys):
        wide = sum("double" in str(types.get(name, "")) for types in columns.values())
        if wide:
            what = f"stored with 64 bits in {wide} of {len(columns)} files"
            yield Finding(name, what, "ignored", "more precise than the format asks")
    clocked = [entry for entry in episodes if "timestamp" in columns[entry[0].data_file]]
    yield from _check_clocks(data, clocked, len(episodes))


def _check_clocks(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], total: int
) -> Iterator[Finding]:
    """Recorded times that are not row / fps.

    episodes: those that have such times, each with its first row; total: episodes that are used
    """
    late, drifting = 0, 0
    worst = 0.0
    key = ("timestamp",)
    for episode, first_row in episodes:
        uri = storage.join(data.uri, episode.data_file)
        times, _ = read_vectors(uri, first_row, episode.length, state=key, action=key)
        clock = times[:, 0]
        late += bool(abs(clock[0]) > _CLOCK_TOLERANCE_S)
        expected = np.arange(episode.length) / data.fps
        drift = float(np.abs(clock - clock[0] - expected).max())
        drifting += drift > _CLOCK_TOLERANCE_S
        worst = max(worst, drift)
    advice = "frames are found by position"
    if late:
        what = f"does not start at 0 in {late} of {total} episodes"
        yield Finding("timestamp", what, "ignored", advice)
    if drifting:
        what = f"off by up to {worst:.3f} s from row / fps in {drifting} of {total} episodes"
        yield Finding("timestamp", what, "ignored", advice)

"""What is wrong in a robot set: metadata that disagree with the files, streams that differ, numbers that are none."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gwp import storage
from gwp.data.lerobot import INFO
from gwp.data.lerobot_check import EpisodeCheck
from gwp.data.pictures import open_frames
from gwp.data.robot_set import Episode, RobotSet, VideoSpan
from gwp.data.vectors import episode_vectors, read_vectors
from gwp.data.video import VideoInfo
from gwp.errors import DataError

Consequence = Literal["fatal", "left out", "repaired", "ignored"]
_STILL = 1e-4
_BINARY_SHARE = 0.9
"""Share of rows at one of the two ends from which on a dimension is called near-binary."""
_CLOCK = 1e-3
"""Seconds by which a recorded time may be off; float32 holds no better in long episodes."""
_SEEK_COSTS = 60
_UNUSED = ("timestamp", "frame_index", "index", "task_index")
"""Columns of the format that nothing here depends on."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, what follows from it, and what to do."""

    item: str
    what: str
    consequence: Consequence
    advice: str = ""


@dataclass(frozen=True)
class Vectors:
    """Findings and, per dimension, what its numbers look like."""

    findings: list[Finding]
    dimensions: list[dict[str, Any]]


def set_findings(data: RobotSet) -> Iterator[Finding]:
    """What the metadata of a set lack, or say wrongly. Nothing here costs an episode."""
    if (data.state_names or data.action_names) and not data.named and data.format == "lerobot":
        yield Finding(INFO, "dimensions have no names, or not as many as there are", "ignored", "they are named by position")
    if len(data.cameras) > 3:
        yield Finding("the set", f"{len(data.cameras)} cameras", "ignored", "a canvas holds three: choose them with `cameras`")
    if silent := sum(not e.text for e in data.episodes):
        yield Finding("the set", f"{silent} of {len(data.episodes)} episodes have no instruction", "ignored",
                      "they are learnt without a text; `task` on the source gives one")
    yield from (Finding(c, "declared, but there is no file of it", "ignored", "remove it from the metadata") for c in data.absent)
    if data.format == "lerobot":
        yield from _of_info(data)


def _of_info(data: RobotSet) -> Iterator[Finding]:
    """Counts of info.json that are not those of the set, and cameras that are not read."""
    info = json.loads(storage.read_bytes(storage.join(data.uri, INFO)))
    real = {
        "total_episodes": len(data.episodes), "total_frames": sum(e.length for e in data.episodes),
        "total_chunks": len({name.rsplit("/", 1)[0] for name in data.files if name.startswith("data/")}),
        "total_videos": sum(name.startswith("video") for name in data.files),
    }
    for key, value in real.items():
        if key in info and info[key] != value:
            yield Finding(INFO, f"{key} is {info[key]}, the set has {value}", "ignored", "correct it for other readers")
    for name, span in (info["splits"] if isinstance(info.get("splits"), dict) else {}).items():
        end = str(span).rpartition(":")[2]
        if end.isdigit() and int(end) > len(data.episodes):
            yield Finding(INFO, f"split '{name}' goes to {end}, the set has {len(data.episodes)} episodes", "ignored", "correct it")
    declared = str(info.get("video_path") or "").partition("/")[0]
    if declared and data.cameras and not any(name.startswith(f"{declared}/") for name in data.files):
        yield Finding(INFO, f"videos do not lie in '{declared}/'", "repaired", "they are found by what follows")
    known = {*data.cameras, *data.absent}
    for key, feature in info["features"].items():
        if feature.get("dtype") in ("video", "image") and key not in known:
            yield Finding(key, "depth pictures", "ignored", "only colour is read")


def moved(data: RobotSet, good: Sequence[Episode]) -> Iterator[Finding]:
    """Starts of videos that were corrected by counting frames."""
    before = {e.index: e for e in data.episodes}
    for episode in good:
        for camera, span in episode.videos.items():
            told = before[episode.index].videos.get(camera)
            if told and not span.key and span.rate is None and span.start != told.start:
                yield Finding(
                    f"episode {episode.index}", f"{camera} starts at {span.start:.3f} s of {span.file} by count, the metadata say "
                    f"{told.start:.3f} s", "repaired", "the count is used",
                )


def streams(data: RobotSet, good: Sequence[Episode], camera: str, check: EpisodeCheck | None) -> list[VideoInfo] | str:
    """Facts of all videos of a camera that can be read, those of its pictures where it has no videos, or why there are none."""
    spans = [e.videos[camera] for e in (good or data.episodes) if camera in e.videos]
    if not spans:
        return "no file"
    if spans[0].key:
        return _still(data, spans[0])
    assert check is not None
    found = [check.video(file) for file in dict.fromkeys(s.file for s in spans)]
    return [info for info in found if isinstance(info, VideoInfo)] or next(str(info) for info in found)


def _still(data: RobotSet, span: VideoSpan) -> list[VideoInfo] | str:
    size = data.files.get(span.file) if span.bytes is None else span.bytes
    try:
        with open_frames(storage.join(data.uri, span.file), size, span.offset, span.key, data.format, data.fps) as frames:
            _, picture = next(frames([span.start]))
    except DataError as error:
        return str(error)
    return [VideoInfo(picture.shape[1], picture.shape[0], data.fps, 1, "pictures", 1, size or 0)]


def stream_findings(data: RobotSet, camera: str, found: list[VideoInfo] | str) -> Iterator[Finding]:
    """What is unusual in the videos of a camera."""
    if isinstance(found, str):
        return
    first = found[0]
    if more := max(info.others for info in found):
        yield Finding(camera, f"{more} more streams in the file (sound, a second picture)", "ignored", "the first picture is read")
    for what, kinds in (
        ("sizes", Counter(f"{i.width}x{i.height}" for i in found)), ("codecs", Counter(i.codec for i in found)),
    ):
        if len(kinds) > 1:
            told = ", ".join(f"{kind} in {n} files" for kind, n in kinds.most_common())
            yield Finding(camera, f"different {what}: {told}", "ignored", "each file is read as it is, and scaled to the canvas")
    if any(abs(info.fps - data.fps) > 1e-5 * data.fps for info in found):
        rates = ", ".join(f"{rate:g}" for rate in sorted({round(info.fps, 4) for info in found}))
        yield Finding(camera, f"runs at {rates} Hz, the set at {data.fps:g} Hz", "repaired", "frames are found by position")
    shape = data.cameras[camera].get("shape")
    if isinstance(shape, (list, tuple)) and len(shape) == 3 and all(isinstance(n, int) for n in shape):
        declared = "x".join(map(str, shape))
        if sorted(shape) != sorted([first.height, first.width, 3]):
            yield Finding(camera, f"declared as {declared}, the stream is {first.width}x{first.height}", "ignored", "the stream counts")
        elif shape[0] == 3:
            yield Finding(camera, f"declared channels first ({declared})", "ignored", "the stream counts")
    gop = max(info.gop for info in found)
    if gop > _SEEK_COSTS:
        yield Finding(camera, f"key frames are {gop} frames apart: reading a window decodes many frames", "ignored",
                      "encode with a key frame every 2 frames for speed")


def column_findings(data: RobotSet, good: Sequence[tuple[Episode, int]], check: EpisodeCheck) -> Iterator[Finding]:
    """Columns that the format asks for and the files lack or hold in another type, and clocks that are not row / fps."""
    kinds = {e.data_file: check.columns(e.data_file) for e, _ in good}
    for name in (*_UNUSED, "episode_index"):
        lack = sum(name not in columns for columns in kinds.values())
        if lack:
            counted = name == "episode_index" and data.version.startswith("v3.")
            what = f"no column {name} in {lack} of {len(kinds)} files"
            yield Finding("data", what, "repaired" if counted else "ignored", "rows are counted" if counted else "nothing depends on it")
    for name in (*data.state_keys, *data.action_keys):
        wide = sum("double" in str(columns.get(name, "")) for columns in kinds.values())
        if wide:
            yield Finding(name, f"stored with 64 bits in {wide} of {len(kinds)} files", "ignored", "more precise than the format asks")
    late, drift, worst = 0, 0, 0.0
    for episode, first in good:
        if "timestamp" in kinds[episode.data_file]:
            uri = storage.join(data.uri, episode.data_file)
            clock = read_vectors(uri, first, episode.length, state=("timestamp",), action=("timestamp",))[0][:, 0]
            late += bool(abs(clock[0]) > _CLOCK)
            off = float(np.abs(clock - clock[0] - np.arange(episode.length) / data.fps).max())
            drift, worst = drift + bool(off > _CLOCK), max(worst, off)
    if late:
        yield Finding("timestamp", f"does not start at 0 in {late} of {len(good)} episodes", "ignored", "frames are found by position")
    if drift:
        yield Finding("timestamp", f"off by up to {worst:.3f} s from row / fps in {drift} of {len(good)} episodes", "ignored",
                      "frames are found by position")


def vectors_of(data: RobotSet, good: Sequence[tuple[Episode, int]]) -> Vectors:
    """What the numbers of all usable episodes look like, and which rows are not numbers."""
    findings, states, actions = [], [], []
    for episode, first in good:
        try:
            state, action = episode_vectors(data, episode, first)
        except DataError as error:
            findings.append(Finding(f"episode {episode.index}", str(error), "left out", "write it again"))
            continue
        wide, named = (state.shape[1], action.shape[1]), (len(data.state_names), len(data.action_names))
        if wide != named:
            what = f"state and action are {wide[0]} and {wide[1]} wide, the set says {named[0]} and {named[1]}"
            findings.append(Finding(f"episode {episode.index}", what, "fatal", "correct the metadata, or leave it out with `episodes`"))
            continue
        bad = ~(np.isfinite(state).all(1) & np.isfinite(action).all(1))
        if bad.any():
            what = f"NaN or Inf in {int(bad.sum())} rows, first in row {int(bad.argmax())}"
            findings.append(Finding(f"episode {episode.index}", what, "left out", "samples that need these rows are skipped"))
        states.append(state[~bad])
        actions.append(action[~bad])
    if not sum(map(len, states)):
        return Vectors(findings, [])
    state, action = np.concatenate(states), np.concatenate(actions)
    dimensions = _dimensions("state", data.state_names, state) + _dimensions("action", data.action_names, action)
    findings += [
        Finding(f"{row['of']} {row['name']}", "never moves", "ignored", "normalised it is 0, and comes back as its mean")
        for row in dimensions if row["note"] == "constant"
    ]
    for i, row in enumerate(r for r in dimensions if r["of"] == "action"):
        if i < state.shape[1] and row["note"] != "constant":
            row["off_state"] = float(np.abs(action[:, i] - state[:, i]).mean() / max(np.ptp(action[:, i]), 1e-9))
    return Vectors(findings, dimensions)


def _dimensions(of: str, names: tuple[str, ...], values: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for name, column in zip(names, values.T, strict=True):
        low, high = float(column.min()), float(column.max())
        reach = max(high - low, 1e-12)
        ends = float(((column < low + 0.05 * reach) | (column > high - 0.05 * reach)).mean())
        note = "constant" if high - low < _STILL else "near-binary" if ends > _BINARY_SHARE else ""
        rows.append({"of": of, "name": name, "min": low, "max": high, "mean": float(column.mean()), "note": note})
    return rows

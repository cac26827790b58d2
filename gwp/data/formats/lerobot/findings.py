"""What is wrong in a LeRobot set: metadata that disagree with the files, columns that differ,
clocks that drift.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.finding import Finding
from gwp.data.formats.format import FilePart
from gwp.data.formats.lerobot.check import EpisodeCheck
from gwp.data.formats.lerobot.read import INFO
from gwp.data.formats.parquet import read_rows
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import Episode, RobotSet

_CLOCK_TOLERANCE_S = 1e-3
"""How far a recorded time may be off; float32 holds no better in long episodes."""
_UNUSED = ("timestamp", "frame_index", "index", "task_index")
"""Columns of the format that nothing here depends on."""


def findings(
    data: RobotSet, usable: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[Finding]:
    """Nothing of it costs an episode. usable: each with its first row in its file"""
    if (data.state_names or data.action_names) and not data.named:
        what = "dimensions have no names, or not as many as there are"
        yield Finding(INFO, what, "ignored", "they are named by position")
    info = json.loads(storage.read_bytes(storage.join(data.uri, INFO)))
    yield from _check_counts(data, info)
    yield from _check_features(data, info)
    if data.state_names and data.action_names:
        yield from _check_columns(data, usable, reader)


def _check_counts(data: RobotSet, info: dict[str, Any]) -> Iterator[Finding]:
    """Counts of info.json that are not those of the set. info: its content."""
    # Folders that hold rows. v3 has no `total_chunks` and no `total_videos`: what info.json
    # does not state is not compared.
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
        # "0:90": end excluded.
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
        # `read_set` leaves out depth alone, so what is neither read nor absent is that.
        if feature.get("dtype") in ("video", "image") and key not in known:
            yield Finding(key, "depth pictures", "ignored", "only colour is read")


def _check_columns(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[Finding]:
    """Columns that the format asks for and the files lack or hold in another type, and clocks.

    episodes: those that are used, each with its first row in its file
    """
    check = EpisodeCheck(data, reader)
    # Data file -> its columns and types; what the check of the episodes read is not read
    # again.
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
        # Of lists too: their type is written with that of their items.
        wide = sum("double" in str(types.get(name, "")) for types in columns.values())
        if wide:
            what = f"stored with 64 bits in {wide} of {len(columns)} files"
            yield Finding(name, what, "ignored", "more precise than the format asks")
    clocked = [entry for entry in episodes if "timestamp" in columns[entry[0].data_file]]
    yield from _check_clocks(data, clocked, len(episodes), reader)


def _check_clocks(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], total: int, reader: FileReader
) -> Iterator[Finding]:
    """Recorded times that are not row / fps.

    episodes: those that have such times, each with its first row; total: episodes that are used
    """
    late, drifting = 0, 0
    worst = 0.0
    for episode, first_row in episodes:
        part = FilePart(storage.join(data.uri, episode.data_file))
        rows = read_rows(part, first_row, episode.length, ("timestamp",), reader)
        # [T], seconds. Where it starts and how it runs are two findings.
        clock = rows["timestamp"][:, 0]
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

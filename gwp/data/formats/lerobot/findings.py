"""What is wrong in a LeRobot set: metadata that disagree with the files, columns that differ,
clocks that drift.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from gwp.data.formats.cameras import colour_cameras
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Consequence, Finding
from gwp.data.formats.lerobot.check import EpisodeCheck
from gwp.data.formats.lerobot.order import TIME
from gwp.data.formats.lerobot.read import INFO
from gwp.data.formats.plain.clips import EXTENSIONS as VIDEOS
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.storage.names import shown_all

_CLOCK_TOLERANCE_S = 1e-3
"""How far a recorded time may be off; float32 holds no better in long episodes."""
_TRUST = "that of the metadata is used; `instruction: task_index` takes that of the rows"
_UNUSED = ("timestamp", "index", "task_index")
"""Columns of the format that nothing here depends on, where the others are there."""


def findings(
    data: RobotSet, usable: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[Finding]:
    """Nothing of it costs an episode. usable: each with its first row in its file"""
    yield from data.own.findings
    if (data.state_names or data.action_names) and not data.named:
        what = "dimensions have no names, or not as many as there are"
        yield Finding(INFO, what, "ignored", "they are named by position")
    info = data.own.info
    yield from _check_counts(data, info)
    yield from _check_features(data, info)
    yield from _check_videos(data)
    yield from _check_frames(data, EpisodeCheck(data, reader))
    yield from _check_ends(data, [episode for episode, _ in usable])
    if data.state_names and data.action_names:
        yield from _check_rows(data, usable, reader)
        yield from _check_columns(data, usable, reader)


def _check_counts(data: RobotSet, info: dict[str, Any]) -> Iterator[Finding]:
    """Counts of info.json that are not those of the set. info: its content."""
    # Folders that hold rows. v3 has no `total_chunks` and no `total_videos`: what info.json
    # does not state is not compared.
    chunks = {name.rsplit("/", 1)[0] for name in data.files if name.startswith("data/")}
    every = [*data.episodes, *data.own.others]
    counts = {
        "total_episodes": len(every),
        "total_frames": sum(episode.length for episode in every),
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
        if re.fullmatch(r"[0-9]{1,9}", end) and int(end) > len(every):
            what = f"split '{name}' goes to {end}, the set has {len(every)} episodes"
            yield Finding(INFO, what, "ignored", "correct it")


def _check_features(data: RobotSet, info: dict[str, Any]) -> Iterator[Finding]:
    """Cameras of info.json that are not read. info: its content."""
    known = {*data.cameras, *data.absent}
    for key, feature in info["features"].items():
        # `read_set` leaves out depth alone, so what is neither read nor absent is that.
        # What is no description is told where it is read.
        kind = feature.get("dtype") if isinstance(feature, dict) else None
        if kind in ("video", "image") and key not in known:
            yield Finding(key, "depth pictures", "ignored", "only colour is read")


def _check_videos(data: RobotSet) -> Iterator[Finding]:
    """Videos that no episode names, and such as several episodes have whole."""
    named: Counter[str] = Counter()
    for episode in (*data.episodes, *data.own.others):
        named.update(span.file for span in episode.videos.values() if not span.key)
    unnamed = [
        name
        for name in data.files
        if name.startswith("video") and name.lower().endswith(VIDEOS) and name not in named
    ]
    if unnamed:
        what = f"{len(unnamed)} videos are of no episode: {shown_all(unnamed)}"
        yield Finding("videos", what, "ignored", "remove them, or list their episodes")
    twice = [file for file, count in named.items() if count > 1]
    if twice and not data.version.startswith("v3."):
        what = f"{len(twice)} videos are named more than once: {shown_all(twice)}"
        yield Finding("videos", what, "ignored", "give each episode and camera one of its own")


def _check_frames(data: RobotSet, check: EpisodeCheck) -> Iterator[Finding]:
    """Frames of v3 files that are of no episode; in v2 a file is one episode's, whole."""
    if not data.version.startswith("v3."):
        return
    # Camera and file -> rows of each episode that has its frames there.
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    others: Counter[str] = Counter()
    for episode in (*data.episodes, *data.own.others):
        for camera in colour_cameras(data.cameras):
            span = episode.videos.get(camera)
            if span is not None and not span.key:
                rows[camera, span.file].append(episode.length)
                others[span.file] += episode.length
    # Camera and whether a whole episode may be among them -> files, and frames of each.
    found: dict[tuple[str, bool], dict[str, int]] = defaultdict(dict)
    for (camera, file), lengths in rows.items():
        info = check.video(file)
        # What cannot be read is told of its episodes.
        left = 0 if isinstance(info, str) else info.frames - others[file]
        if left > 0:
            found[camera, left >= min(lengths)][file] = left
    for (camera, whole), files in found.items():
        what = f"{sum(files.values())} frames of {shown_all(files)} are of no episode"
        consequence: Consequence = "left out" if whole else "ignored"
        advice = "as many as an episode has: is one not listed, or are files exchanged?"
        yield Finding(camera, what, consequence, advice if whole else "they are not read")


def _check_ends(data: RobotSet, episodes: Sequence[Episode]) -> Iterator[Finding]:
    """Ends of videos that were corrected by counting. episodes: as they are used"""
    recorded = {episode.index: episode for episode in data.episodes}
    moved: Counter[str] = Counter()
    for episode in episodes:
        for camera, span in episode.videos.items():
            before = recorded[episode.index].videos.get(camera)
            # Corrected starts are told with their places.
            if before and not span.key and span.rate is None and span.start == before.start:
                moved[camera] += span.end != before.end
    for camera, count in moved.items():
        if count:
            what = f"to_timestamp of {count} episodes is not where their rows end"
            yield Finding(camera, what, "repaired", "frames and rows of the whole file agree")


def _check_rows(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[Finding]:
    """Rows that lie elsewhere than the metadata say, or in another order, and tasks that the two
    do not agree on.

    episodes: those that are used, each with its first row in its file
    """
    check = EpisodeCheck(data, reader)
    recorded = {episode.index: episode for episode in data.episodes}
    moved, numbered, contradicted = [], [], []
    # Column -> episodes whose rows are read in its order.
    unsorted: dict[str, list[str]] = defaultdict(list)
    thinned: dict[int, list[str]] = defaultdict(list)
    for episode, _ in episodes:
        before = recorded[episode.index]
        file, held = check.files.place(before)
        number = str(episode.index)
        table = check.files.table(file)
        if file != before.data_file:
            moved.append(number)
        elif not isinstance(table, str) and (table.held or {}).get(episode.index) != held:
            numbered.append(number)
        if held.step > 1:
            thinned[held.step].append(number)
        if episode.prefix:
            unsorted[held.order].append(number)
        if not data.own.chosen and check.contradicted(before, held):
            contradicted.append(number)
    told: tuple[tuple[list[str], Consequence, str, str], ...] = (
        (moved, "repaired", "lie in another file than the metadata say", "episode_index tells"),
        (numbered, "repaired", "have the episode_index of others", "the files' names tell"),
        *(
            (some, "repaired", f"do not lie in the order of {column}", "they are read in it")
            for column, some in unsorted.items()
        ),
        *(
            (some, "ignored", f"are {step} frames apart, by what they count", _rate(data, step))
            for step, some in thinned.items()
        ),
        (contradicted, "ignored", "name another task than the metadata", _TRUST),
    )
    for numbers, consequence, what, advice in told:
        if numbers:
            yield Finding("data", f"rows of episodes {_few(numbers)} {what}", consequence, advice)
    silent = [
        str(episode.index)
        for episode, _ in episodes
        if data.own.chosen and check.is_silent(recorded[episode.index])
    ]
    if silent:
        what = f"rows without a text in episodes {_few(silent)}"
        yield Finding(data.own.told_by, what, "ignored", "the episode's own task stands there")


def _rate(data: RobotSet, step: int) -> str:
    return (
        f"they are used as rows at {data.fps:g} Hz; if they are at {data.fps / step:g} Hz, correct "
        f"fps in {INFO}, and the videos"
    )


def _few(numbers: Sequence[str], most: int = 5) -> str:
    """The first of some, and how many more there are."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(numbers[:most]) + more


def _check_columns(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], reader: FileReader
) -> Iterator[Finding]:
    """Columns that the format asks for and the files lack or hold in another type, and clocks.

    episodes: those that are used, each with its first row in its file
    """
    check = EpisodeCheck(data, reader)
    # Data file -> its columns and types; what the check of the episodes read is not read
    # again.
    columns = {episode.data_file: check.files.types(episode.data_file) for episode, _ in episodes}
    told: dict[str, tuple[Consequence, str]] = {}
    told |= dict.fromkeys(_UNUSED, ("ignored", "nothing depends on it"))
    told["frame_index"] = (
        "ignored",
        "`index` orders rows, or `timestamp`; else they lie as they belong",
    )
    told["episode_index"] = "ignored", "the file tells whose they are"
    if data.version.startswith("v3."):
        told["episode_index"] = "repaired", "rows are counted"
    for name, (consequence, advice) in told.items():
        lacking = sum(name not in types for types in columns.values())
        if lacking:
            what = f"no column {name} in {lacking} of {len(columns)} files"
            yield Finding("data", what, consequence, advice)
    for name in (*data.state_keys, *data.action_keys):
        # Of lists too: their type is written with that of their items.
        wide = sum("double" in str(types.get(name, "")) for types in columns.values())
        if wide:
            what = f"stored with 64 bits in {wide} of {len(columns)} files"
            yield Finding(name, what, "ignored", "more precise than the format asks")
    yield from _check_clocks(data, episodes, check)


def _check_clocks(
    data: RobotSet, episodes: Sequence[tuple[Episode, int]], check: EpisodeCheck
) -> Iterator[Finding]:
    """Recorded times that are not row / fps. episodes: those that are used"""
    recorded = {episode.index: episode for episode in data.episodes}
    held = [check.files.place(recorded[episode.index])[1] for episode, _ in episodes]
    clocks = [one.clock for one in held if one.clock is not None]
    recording = [TIME in check.files.types(episode.data_file) for episode, _ in episodes]
    unread = sum(recording) - len(clocks)
    # Where it starts and how it runs are two findings.
    late = sum(abs(start) > _CLOCK_TOLERANCE_S for start, _ in clocks)
    drifts = [drift for _, drift in clocks if drift > _CLOCK_TOLERANCE_S]
    advice = "frames are found by position"
    if unread:
        what = f"is no time in {unread} of {len(episodes)} episodes"
        yield Finding(TIME, what, "ignored", advice)
    if late:
        what = f"does not start at 0 in {late} of {len(episodes)} episodes"
        yield Finding(TIME, what, "ignored", advice)
    if drifts:
        what = (
            f"off by up to {max(drifts):.3f} s from row / fps in {len(drifts)} of "
            f"{len(episodes)} episodes"
        )
        yield Finding(TIME, what, "ignored", advice)

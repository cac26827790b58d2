"""What `gwp data inspect` tells of a data set.

What is there, and everything that is wrong with it, with the consequence.
"""

from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

from gwp.data.formats.cameras import colour_cameras, default_slots
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.find import set_at, usable_episodes
from gwp.data.formats.finding import Finding
from gwp.data.formats.plain.clip_set import Clip, ClipSet
from gwp.data.formats.robot_set import RobotSet
from gwp.data.formats.table import ROBOTS, VIDEOS
from gwp.data.source import Source
from gwp.data.video.probe import Kinds, VideoInfo, open_to_probe, probe
from gwp.errors import DataError
from pipelines.console import table
from pipelines.datasets.colours import check_colours
from pipelines.datasets.findings import (
    check_metadata,
    check_streams,
    corrected_starts,
    of_cameras,
    stream_infos,
    unreadable_texts,
)
from pipelines.datasets.shown import at_most, graver_first, grouped
from pipelines.datasets.vectors import check_vectors

_MAX_ROWS = 20
"""Entries of a list that people are shown; --json has all."""


def describe(source: Source, reader: FileReader | None = None) -> dict[str, Any]:
    """Facts of a data set as plain JSON values.

    `findings`: as in `Finding`; `usable`: episodes or videos that are left. reader: keeps what
    is read of files; None: one for this call
    """
    reader = reader or FileReader()
    data = set_at(source, reader)
    facts = (
        _describe_robots(data, source, reader)
        if isinstance(data, RobotSet)
        else _describe_clips(data)
    )
    if not facts["usable"]:
        # First, because it is what the others come to.
        nothing = Finding("the set", "nothing in it can be used", "fatal", "see the reasons below")
        facts["findings"].insert(0, asdict(nothing))
    facts["findings"] = graver_first(facts["findings"])
    return facts


def exit_code(facts: dict[str, Any]) -> int:
    """0: nothing is lost; 1: something is left out; 2: nothing can be used."""
    consequences = {finding["consequence"] for finding in facts["findings"]}
    return 2 if "fatal" in consequences else 1 if "left out" in consequences else 0


def _describe_robots(data: RobotSet, source: Source, reader: FileReader) -> dict[str, Any]:
    whole, data = data, of_cameras(data, source)
    labelled = bool(data.state_names and data.action_names)
    cameras = colour_cameras(data.cameras)
    # Any name will do: it says only that episodes without numbers are not usable.
    as_any = source.model_copy(update={"embodiment": "any" if labelled else None})
    usable, unusable = usable_episodes(data, as_any, cameras, reader)
    # Which episodes are left, and what is wrong with the set as a whole.
    episodes = [episode for episode, _ in usable]
    findings = [
        Finding(f"episode {episode.index}", reason, "left out", "mend or remove it")
        for episode, reason in unusable
    ]
    findings += [*data.remarks, *corrected_starts(data, episodes), *check_metadata(data, episodes)]
    findings += unreadable_texts(episodes)
    if source.only is not None:
        chosen = source.select([episode.index for episode in data.episodes])
        ended = len(chosen) - len(usable) - len(unusable)
        what = f"{source.only} is false at the end of {ended} of {len(chosen)} episodes"
        findings.append(Finding("the set", what, "ignored", "`only` leaves them out"))
    findings += [
        Finding(camera, "depth pictures", "ignored", "only colour is read")
        for camera in data.cameras
        if camera not in cameras
    ]
    colours = check_colours(data, episodes, cameras, source.is_bgr, reader)
    findings += colours
    # The videos of each camera; where there are none, `infos` is the reason.
    streams = {camera: stream_infos(data, episodes, camera, reader) for camera in cameras}
    for camera, infos in streams.items():
        if not isinstance(infos, str):
            findings += check_streams(data, camera, infos)
    # What only this format can get wrong, then the numbers.
    findings += ROBOTS[data.format].findings(whole, usable, reader)
    dimensions: list[dict[str, Any]] = []
    if labelled:
        vectors = check_vectors(data, usable, reader)
        findings += vectors.findings
        dimensions = vectors.dimensions
    else:
        advice = "usable as video only; --state and --action name columns"
        findings.append(Finding("the set", "no state or no action", "ignored", advice))
    lengths = [episode.length for episode in data.episodes]
    # As they are used: their rows may say more than the metadata.
    told = {episode.index: episode for episode in [*data.episodes, *episodes]}
    tasks: Counter[str] = Counter()
    for episode in told.values():
        tasks.update({text for _, text in episode.texts} or {episode.text})
    return {
        "uri": data.uri,
        "format": f"{ROBOTS[data.format].title} {data.version}".rstrip(),
        "robot": data.robot_type,
        "fps": data.fps,
        "fingerprint": data.fingerprint,
        "episodes": len(data.episodes),
        "usable": len(usable),
        "frames": sum(lengths),
        "hours": sum(lengths) / data.fps / 3600,
        "shortest": min(lengths),
        "longest": max(lengths),
        "cameras": [{"camera": camera} | _camera_facts(infos) for camera, infos in streams.items()],
        "slots": default_slots(data.cameras),
        "exchanged": [finding.item for finding in colours],
        "state": list(data.state_names),
        "action": list(data.action_names),
        "dimensions": dimensions,
        "tasks": dict(tasks.most_common()),
        "findings": [asdict(finding) for finding in findings],
    }


def _video_facts(info: VideoInfo) -> dict[str, Any]:
    """Size in pixels, rate in Hz, codec and the largest distance of key frames in frames."""
    return {
        "width": info.width,
        "height": info.height,
        "fps": round(info.fps, 3),
        "codec": info.codec,
        "gop": info.gop,
    }


def _camera_facts(infos: list[VideoInfo] | str) -> dict[str, Any]:
    """Those of most of a camera's videos, and the largest distance of key frames in any.

    infos: of its videos, or why there are none
    """
    if isinstance(infos, str):
        return {"problem": infos}
    # Files of a set may differ; `check_streams` tells where they do.
    kinds = Counter((info.width, info.height, round(info.fps, 3), info.codec) for info in infos)
    width, height, fps, codec = kinds.most_common(1)[0][0]
    gop = max(info.gop for info in infos)
    facts = {"width": width, "height": height, "fps": fps, "codec": codec, "gop": gop}
    return facts | {"files": len(infos)}


def _describe_clips(clip_set: ClipSet) -> dict[str, Any]:
    advice = "correct it; the video is used as it is"
    findings = [Finding(item, what, "ignored", advice) for item, what in clip_set.remarks]
    # Shards that break off: what lies behind the break is lost.
    findings += [
        Finding(name, reason, "left out", "write the shard again")
        for name, reason in clip_set.broken
    ]
    videos = []
    seconds, frames = 0.0, 0
    # Each file is opened, but only its first frame decoded.
    look = partial(_probe, {})
    for clip, info in zip(clip_set.clips, several(clip_set.uri, look, clip_set.clips), strict=True):
        if isinstance(info, DataError):
            findings.append(Finding(clip.name, str(info), "left out", "mend or remove it"))
            continue
        findings += _clip_findings(clip, info)
        seconds += info.duration_s
        frames += info.frames
        duration = {"seconds": round(info.duration_s, 2)}
        facts = {"video": clip.name} | _video_facts(info) | duration | {"caption": clip.caption}
        videos.append(facts)
    return {
        "uri": clip_set.uri,
        "format": VIDEOS[clip_set.format].title,
        "fingerprint": clip_set.fingerprint,
        "episodes": len(clip_set.clips),
        "usable": len(videos),
        "frames": frames,
        "hours": seconds / 3600,
        "videos": videos,
        "captions": sum(bool(clip.caption) for clip in clip_set.clips),
        "findings": [asdict(finding) for finding in findings],
    }


def _probe(kinds: Kinds, clip: Clip) -> VideoInfo | DataError:
    try:
        clip.check()
        with open_to_probe(clip.uri, clip.size, clip.offset) as handle:
            return probe(handle, kinds)
    except DataError as error:
        return error


def _clip_findings(clip: Clip, info: VideoInfo) -> list[Finding]:
    findings = []
    if info.others:
        what = f"{info.others} more streams in the file"
        findings.append(Finding(clip.name, what, "ignored", "the first picture is read"))
    if not clip.caption:
        advice = "learnt without a text; metadata.jsonl takes one"
        findings.append(Finding(clip.name, "no caption", "ignored", advice))
    return findings


def as_text(facts: dict[str, Any]) -> str:
    """`describe`'s facts as text for people."""
    hours = f"{facts['frames']} frames, {facts['hours']:.3g} h"
    usable = f"{facts['usable']} of {facts['episodes']}"
    # Only `_describe_robots` sets this key.
    if "robot" in facts:
        lengths = f"episodes of {facts['shortest']} to {facts['longest']} rows"
        lines = [
            f"{facts['uri']}: {facts['format']}, robot {facts['robot']}, {facts['fps']:g} Hz",
            f"{usable} episodes usable, {hours}, {lengths}",
            *_robot_lines(facts),
        ]
    else:
        lines = [
            f"{facts['uri']}: {facts['format']}",
            f"{usable} videos usable, {hours}",
            f"{facts['captions']} with a caption",
            *_table_lines(facts["videos"]),
        ]
    groups = grouped(facts["findings"])
    findings = [
        {
            "what follows": group["consequence"],
            "where": group["item"],
            "what": group["what"],
            "advice": group["advice"],
        }
        for group in groups
    ]
    # What costs something is told whole.
    most = len(at_most(groups, _MAX_ROWS))
    lines += _table_lines(findings, most) if findings else ["", "nothing wrong was found"]
    return "\n".join(lines)


def _robot_lines(facts: dict[str, Any]) -> list[str]:
    """Names of the dimensions, then tables of cameras and tasks."""
    # A camera that could not be read has none of them but its name.
    keys = ("camera", "width", "height", "fps", "codec", "gop", "files")
    cameras = [{key: camera.get(key, "?") for key in keys} for camera in facts["cameras"]]
    slots = ", ".join(f"{slot} = {camera}" for slot, camera in facts["slots"].items())
    noted = [row for row in facts["dimensions"] if row["note"]]
    notes = [f"{row['of']} {row['name']}: {row['note']}" for row in noted]
    tasks = [{"episodes": n, "task": text or "(none)"} for text, n in facts["tasks"].items()]
    return [
        *(f"{of:<7} {len(facts[of])}: {', '.join(facts[of])}" for of in ("state", "action")),
        "",
        table(cameras),
        *(["slots, unless `cameras` names others: " + slots] if slots else []),
        *(["", "; ".join(notes)] if notes else []),
        *_table_lines(tasks),
    ]


def _table_lines(rows: list[dict[str, Any]], most: int = _MAX_ROWS) -> list[str]:
    """A blank line, the first rows, and how many more there are."""
    more = len(rows) - most
    lines = ["", table(rows[:most])]
    return [*lines, f"... and {more} more (--json lists all)"] if more > 0 else lines

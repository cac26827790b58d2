"""What `gwp data inspect` finds in a data set: what is there, and everything that is wrong with it, with the consequence."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from gwp.data.clips import read_clips
from gwp.data.lerobot_check import EpisodeCheck
from gwp.data.robot_set import RobotSet
from gwp.data.robots import robots_at, usable_episodes
from gwp.data.source import Source
from gwp.data.video import VideoInfo, open_video, probe
from gwp.errors import DataError
from pipelines.console import table
from pipelines.inspect_robots import Finding, column_findings, moved, set_findings, stream_findings, streams, vectors_of

_LINES = 20
"""Entries of a list that people are shown; --json has all."""


def describe(source: Source) -> dict[str, Any]:
    """Facts of a data set as plain JSON values; `findings` as in `Finding`; `usable`: episodes or videos that are left."""
    data = robots_at(source)
    found = _describe_clips(source) if data is None else _describe_robots(data, source)
    if not found["usable"]:
        found["findings"].insert(0, asdict(Finding("the set", "nothing in it can be used", "fatal", "see the reasons below")))
    return found


def exit_code(found: dict[str, Any]) -> int:
    """0: nothing is lost; 1: something is left out; 2: nothing can be used."""
    told = {f["consequence"] for f in found["findings"]}
    return 2 if "fatal" in told else 1 if "left out" in told else 0


def _describe_robots(data: RobotSet, source: Source) -> dict[str, Any]:
    labelled = bool(data.state_names and data.action_names)
    cameras = list(data.cameras)
    check = EpisodeCheck(data) if data.format == "lerobot" else None
    good, bad = usable_episodes(data, source.model_copy(update={"embodiment": "any" if labelled else None}), cameras, check)
    episodes = [e for e, _ in good]
    findings = [Finding(f"episode {e.index}", reason, "left out", "mend or remove it") for e, reason in bad]
    findings += [*moved(data, episodes), *set_findings(data)]
    seen = {c: streams(data, episodes, c, check) for c in cameras}
    findings += [f for c, found in seen.items() for f in stream_findings(data, c, found)]
    if labelled and check:
        findings += column_findings(data, good, check)
    vectors = vectors_of(data, good) if labelled else None
    if vectors is not None:
        findings += vectors.findings
    else:
        findings.append(Finding("the set", "no state or no action", "ignored", "usable as video only; --state and --action name columns"))
    lengths = [e.length for e in data.episodes]
    return {
        "uri": data.uri, "format": _format(data), "robot": data.robot_type, "fps": data.fps, "fingerprint": data.fingerprint,
        "episodes": len(data.episodes), "usable": len(good), "frames": sum(lengths), "hours": sum(lengths) / data.fps / 3600,
        "shortest": min(lengths), "longest": max(lengths),
        "cameras": [{"camera": c} | (_camera_facts(v) if isinstance(v, list) else {"problem": v}) for c, v in seen.items()],
        "state": list(data.state_names), "action": list(data.action_names),
        "dimensions": vectors.dimensions if vectors else [], "tasks": dict(Counter(e.text for e in data.episodes).most_common()),
        "findings": [asdict(f) for f in findings],
    }


def _format(data: RobotSet) -> str:
    return {"lerobot": "LeRobot", "rlds": "RLDS", "hdf5": "HDF5"}[data.format] + (f" {data.version}" if data.version else "")


def _video_facts(info: VideoInfo) -> dict[str, Any]:
    return {"width": info.width, "height": info.height, "fps": round(info.fps, 3), "codec": info.codec, "gop": info.gop}


def _camera_facts(found: list[VideoInfo]) -> dict[str, Any]:
    """Those of most of its videos, and the largest distance of key frames."""
    width, height, fps, codec = Counter((i.width, i.height, round(i.fps, 3), i.codec) for i in found).most_common(1)[0][0]
    return {"width": width, "height": height, "fps": fps, "codec": codec, "gop": max(i.gop for i in found), "files": len(found)}


def _describe_clips(source: Source) -> dict[str, Any]:
    found = read_clips(source.uri, source.format)
    gone = "named in metadata.jsonl, but there is no such video"
    findings = [Finding(name, gone, "ignored", "correct the entry") for name in found.missing]
    findings += [Finding(name, reason, "left out", "write the shard again") for name, reason in found.broken]
    videos, seconds, frames = [], 0.0, 0
    for clip in found.clips:
        try:
            with open_video(clip.uri, clip.size, clip.offset) as handle:
                info = probe(handle)
        except DataError as error:
            findings.append(Finding(clip.name, str(error), "left out", "mend or remove it"))
            continue
        if info.others:
            findings.append(Finding(clip.name, f"{info.others} more streams in the file", "ignored", "the first picture is read"))
        if not clip.caption:
            findings.append(Finding(clip.name, "no caption", "ignored", "learnt without a text; metadata.jsonl takes one"))
        seconds, frames = seconds + info.duration_s, frames + info.frames
        videos.append({"video": clip.name} | _video_facts(info) | {"seconds": round(info.duration_s, 2), "caption": clip.caption})
    return {
        "uri": source.uri, "format": "videos in shards" if _sharded(found.clips) else "plain videos", "fingerprint": found.fingerprint,
        "episodes": len(found.clips), "usable": len(videos), "frames": frames, "hours": seconds / 3600, "videos": videos,
        "captions": sum(bool(c.caption) for c in found.clips), "findings": [asdict(f) for f in findings],
    }


def _sharded(clips: Any) -> bool:
    return any(clip.offset for clip in clips)


def shown(found: dict[str, Any]) -> str:
    """`describe`'s facts as text for people."""
    robot = f", robot {found['robot']}, {found['fps']:g} Hz" if "robot" in found else ""
    noun = "episodes" if "robot" in found else "videos"
    lines = [
        f"{found['uri']}: {found['format']}{robot}",
        f"{found['usable']} of {found['episodes']} {noun} usable, {found['frames']} frames, {found['hours']:.3g} h",
    ]
    if "robot" in found:
        lines[1] += f", episodes of {found['shortest']} to {found['longest']} rows"
        lines += [f"{what:<7} {len(found[what])}: {', '.join(found[what])}" for what in ("state", "action")]
        keys = ("camera", "width", "height", "fps", "codec", "gop", "files")
        lines += ["", table([{key: camera.get(key, "?") for key in keys} for camera in found["cameras"]])]
        notes = [f"{row['of']} {row['name']}: {row['note']}" for row in found["dimensions"] if row["note"]]
        lines += ["", "; ".join(notes)] if notes else []
        tasks = [{"episodes": n, "task": text or "(none)"} for text, n in found["tasks"].items()]
        lines += ["", table(tasks[:_LINES]), *_more(len(tasks))]
    else:
        lines += [f"{found['captions']} with a caption", "", table(found["videos"][:_LINES]), *_more(len(found["videos"]))]
    rows = [{"what follows": f["consequence"], "where": f["item"], "what": f["what"], "advice": f["advice"]} for f in found["findings"]]
    lines += ["", table(rows[:_LINES]), *_more(len(rows))] if rows else ["", "nothing wrong was found"]
    return "\n".join(lines)


def _more(count: int) -> list[str]:
    return [f"... and {count - _LINES} more (--json lists all)"] if count > _LINES else []

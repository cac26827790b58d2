"""What `gwp data inspect` finds in a data set: what is there, and everything that is wrong with it, with the consequence."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from gwp import storage
from gwp.data.clips import read_clips
from gwp.data.lerobot import INFO
from gwp.data.robot_set import Episode, RobotSet
from gwp.data.robots import robots_at, usable_episodes
from gwp.data.source import Source
from gwp.data.vectors import read_vectors
from gwp.data.video import VideoInfo, open_video, probe
from gwp.errors import DataError, GwpError
from pipelines.console import table

Consequence = Literal["fatal", "left out", "repaired", "ignored"]
_LINES = 20
"""Entries of a list that people are shown; --json has all."""
_STILL = 1e-4
_BINARY_SHARE = 0.9
"""Share of rows at one of the two ends from which on a dimension is called near-binary."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, what follows from it, and what to do."""

    item: str
    what: str
    consequence: Consequence
    advice: str = ""


def describe(source: Source) -> dict[str, Any]:
    """Facts of a data set as plain JSON values; `findings` as in `Finding`; `usable`: episodes or videos that are left."""
    data = robots_at(source)
    found = _describe_clips(source.uri) if data is None else _describe_robots(data, source)
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
    good, bad = usable_episodes(data, source.model_copy(update={"embodiment": "any" if labelled else None}), cameras)
    findings = [Finding(f"episode {e.index}", reason, "left out", "mend or remove it") for e, reason in bad]
    findings += _moved(data, [e for e, _ in good])
    findings += [Finding(c, "declared, but there is no file of it", "ignored", "remove it from the metadata") for c in data.absent]
    findings += _of_metadata(data)
    streams = {c: _stream(data, c) for c in cameras}
    for camera, info in streams.items():
        findings += _of_stream(data, camera, info)
    vectors = _vectors(data, good) if labelled else None
    if vectors is not None:
        findings += vectors.findings
    elif not labelled:
        findings.append(Finding("the set", "no state or no action", "ignored", "usable as video only"))
    frames = sum(e.length for e in data.episodes)
    return {
        "uri": data.uri, "format": _format(data), "robot": data.robot_type, "fps": data.fps, "fingerprint": data.fingerprint,
        "episodes": len(data.episodes), "usable": len(good), "frames": frames, "hours": frames / data.fps / 3600,
        "cameras": [{"camera": c} | (_video_facts(v) if isinstance(v, VideoInfo) else {"problem": v}) for c, v in streams.items()],
        "state": list(data.state_names), "action": list(data.action_names),
        "dimensions": vectors.dimensions if vectors else [], "tasks": dict(Counter(e.text for e in data.episodes).most_common()),
        "findings": [asdict(f) for f in findings],
    }


def _format(data: RobotSet) -> str:
    return f"LeRobot {data.version}" if data.format == "lerobot" else data.version or data.format


def _stream(data: RobotSet, camera: str) -> VideoInfo | str:
    """Facts of a camera's first video file, or why there are none."""
    span = next((e.videos[camera] for e in data.episodes if camera in e.videos), None)
    if span is None or span.file not in data.files:
        return "no file"
    if span.key:
        return f"pictures in {span.file}"
    try:
        with open_video(storage.join(data.uri, span.file), data.files[span.file]) as handle:
            return probe(handle)
    except GwpError as error:
        return str(error)


def _moved(data: RobotSet, good: list[Episode]) -> Iterator[Finding]:
    before = {e.index: e for e in data.episodes}
    for episode in good:
        for camera, span in episode.videos.items():
            told = before[episode.index].videos.get(camera)
            if told and not span.key and span.start != told.start:
                yield Finding(
                    f"episode {episode.index}", f"{camera} starts at {span.start:.3f} s of {span.file} by count, the metadata say "
                    f"{told.start:.3f} s", "repaired", "the count is used",
                )


def _of_metadata(data: RobotSet) -> Iterator[Finding]:
    """Counts of info.json that are not those of the set. Nothing here depends on them."""
    if data.format != "lerobot":
        return
    info = json.loads(storage.read_bytes(storage.join(data.uri, INFO)))
    real = {
        "total_episodes": len(data.episodes), "total_frames": sum(e.length for e in data.episodes),
        "total_chunks": len({name.rsplit("/", 1)[0] for name in data.files if name.startswith("data/")}),
    }
    for key, value in real.items():
        if key in info and info[key] != value:
            yield Finding(INFO, f"{key} is {info[key]}, the set has {value}", "ignored", "correct it for other readers")
    for name, span in (info.get("splits") or {}).items():
        end = str(span).rpartition(":")[2]
        if end.isdigit() and int(end) > len(data.episodes):
            yield Finding(INFO, f"split '{name}' goes to {end}, the set has {len(data.episodes)} episodes", "ignored", "correct it")
    declared = str(info.get("video_path") or "").partition("/")[0]
    if declared and data.cameras and not any(name.startswith(f"{declared}/") for name in data.files):
        yield Finding(INFO, f"videos do not lie in '{declared}/'", "repaired", "they are found by what follows")


def _of_stream(data: RobotSet, camera: str, info: VideoInfo | str) -> Iterator[Finding]:
    if isinstance(info, str):
        return
    if info.others:
        yield Finding(camera, f"{info.others} more streams in the file (sound, a second picture)", "ignored", "the first picture is read")
    shape = data.cameras[camera].get("shape") or []
    if len(shape) == 3 and sorted(shape) != sorted([info.height, info.width, 3]):
        declared = "x".join(map(str, shape))
        yield Finding(camera, f"declared as {declared}, the stream is {info.width}x{info.height}", "ignored", "the stream counts")
    elif len(shape) == 3 and shape[0] == 3:
        yield Finding(camera, f"declared channels first ({'x'.join(map(str, shape))})", "ignored", "the stream counts")
    if info.gop > 60:
        yield Finding(camera, f"key frames are {info.gop} frames apart: reading a window decodes many frames", "ignored",
                      "encode with a key frame every 2 frames for speed")


@dataclass(frozen=True)
class _Vectors:
    findings: list[Finding]
    dimensions: list[dict[str, Any]]


def _vectors(data: RobotSet, good: list[tuple[Episode, int]]) -> _Vectors:
    """What the numbers of all usable episodes look like, and which rows are not numbers."""
    findings, states, actions = [], [], []
    for episode, first in good:
        try:
            state, action = read_episode(data, episode, first)
        except DataError as error:
            findings.append(Finding(f"episode {episode.index}", str(error), "left out", "write it again"))
            continue
        bad = ~(np.isfinite(state).all(1) & np.isfinite(action).all(1))
        if bad.any():
            what = f"NaN or Inf in {int(bad.sum())} rows, first in row {int(bad.argmax())}"
            findings.append(Finding(f"episode {episode.index}", what, "left out", "samples that need these rows are skipped"))
        states.append(state[~bad])
        actions.append(action[~bad])
    if not states:
        return _Vectors(findings, [])
    state, action = np.concatenate(states), np.concatenate(actions)
    dimensions = _dimensions("state", data.state_names, state) + _dimensions("action", data.action_names, action)
    findings += [
        Finding(f"{row['of']} {row['name']}", "never moves", "ignored", "normalised it is 0, and comes back as its mean")
        for row in dimensions if row["note"] == "constant"
    ]
    for i, row in enumerate(r for r in dimensions if r["of"] == "action"):
        if i < state.shape[1] and row["note"] != "constant":
            row["off_state"] = float(np.abs(action[:, i] - state[:, i]).mean() / max(np.ptp(action[:, i]), 1e-9))
    return _Vectors(findings, dimensions)


def _dimensions(of: str, names: tuple[str, ...], values: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for name, column in zip(names, values.T, strict=False):
        low, high = float(column.min()), float(column.max())
        reach = max(high - low, 1e-12)
        ends = float(((column < low + 0.05 * reach) | (column > high - 0.05 * reach)).mean())
        note = "constant" if high - low < _STILL else "near-binary" if ends > _BINARY_SHARE else ""
        rows.append({"of": of, "name": name, "min": low, "max": high, "mean": float(column.mean()), "note": note})
    return rows


def read_episode(data: RobotSet, episode: Episode, first: int) -> tuple[np.ndarray, np.ndarray]:
    """State and action of a whole episode, robot units."""
    return read_vectors(storage.join(data.uri, episode.data_file), first, episode.length)


def _video_facts(info: VideoInfo) -> dict[str, Any]:
    return {"width": info.width, "height": info.height, "fps": round(info.fps, 3), "codec": info.codec, "gop": info.gop}


def _describe_clips(uri: str) -> dict[str, Any]:
    found = read_clips(uri)
    gone = "named in metadata.jsonl, but there is no such video"
    findings = [Finding(name, gone, "ignored", "correct the entry") for name in found.missing]
    videos, seconds, frames = [], 0.0, 0
    for clip in found.clips:
        try:
            with open_video(clip.uri, clip.size) as handle:
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
        "uri": uri, "format": "plain videos", "fingerprint": found.fingerprint, "episodes": len(found.clips), "usable": len(videos),
        "frames": frames, "hours": seconds / 3600, "videos": videos, "captions": sum(bool(c.caption) for c in found.clips),
        "findings": [asdict(f) for f in findings],
    }


def shown(found: dict[str, Any]) -> str:
    """`describe`'s facts as text for people."""
    robot = f", robot {found['robot']}, {found['fps']:g} Hz" if "robot" in found else ""
    noun = "episodes" if "robot" in found else "videos"
    lines = [
        f"{found['uri']}: {found['format']}{robot}",
        f"{found['usable']} of {found['episodes']} {noun} usable, {found['frames']} frames, {found['hours']:.3g} h",
    ]
    if "robot" in found:
        lines += [f"{what:<7} {len(found[what])}: {', '.join(found[what])}" for what in ("state", "action")]
        keys = ("camera", "width", "height", "fps", "codec", "gop")
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

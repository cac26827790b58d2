"""What `gwp data inspect` and `gwp data stats` do."""

import argparse
import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.clips import read_clips
from gwp.data.embodiment import Embodiment
from gwp.data.lerobot import infer_embodiment, is_lerobot, read_set
from gwp.data.lerobot_check import EpisodeCheck, usable_episodes
from gwp.data.robot_set import RobotSet
from gwp.data.source import Source, parse_ranges
from gwp.data.stats import compute_stats
from gwp.data.vectors import read_vectors
from gwp.data.video import VideoInfo, open_video, probe
from gwp.data.window import Window
from gwp.errors import DataError, GwpError
from pipelines.config import load_config
from pipelines.console import event, table

_LINES = 20
"""Entries of a list that people are shown; --json has all."""


def describe(uri: str) -> dict[str, Any]:
    """Facts of a data set as plain JSON values; `problems`: what a stage would leave out, with the reason; `usable`: what is left."""
    return _describe_set(read_set(uri)) if is_lerobot(uri) else _describe_clips(uri)


def _describe_set(data: RobotSet) -> dict[str, Any]:
    labelled = bool(data.state_names and data.action_names)
    cameras = list(data.cameras)
    good, bad = usable_episodes(data, Source(uri=data.uri, embodiment="any" if labelled else None), cameras)
    problems = [{"item": f"episode {e.index}", "reason": reason} for e, reason in bad]
    if labelled:
        for episode, first in good:
            reason = _not_finite(data, episode.data_file, first, episode.length)
            problems += [{"item": f"episode {episode.index}", "reason": reason}] if reason else []
    frames = sum(e.length for e in data.episodes)
    check = EpisodeCheck(data)
    first_files = {c: next((e.videos[c].file for e in data.episodes if c in e.videos), None) for c in cameras}
    found = {c: check.video(file) if file else "no files" for c, file in first_files.items()}
    return {
        "uri": data.uri, "format": f"LeRobot {data.version}", "robot": data.robot_type, "fps": data.fps, "fingerprint": data.fingerprint,
        "episodes": len(data.episodes), "usable": len(good), "frames": frames, "hours": frames / data.fps / 3600,
        "cameras": [{"camera": c} | (_video_facts(v) if isinstance(v, VideoInfo) else {"problem": v}) for c, v in found.items()],
        "state": list(data.state_names), "action": list(data.action_names),
        "tasks": dict(Counter(e.text for e in data.episodes).most_common()), "problems": problems,
    }


def _not_finite(data: RobotSet, file: str, first: int, length: int) -> str | None:
    try:
        state, action = read_vectors(storage.join(data.uri, file), first, length)
    except DataError as error:
        return str(error)
    bad = ~(np.isfinite(state).all(1) & np.isfinite(action).all(1))
    return f"NaN or Inf in {int(bad.sum())} rows, first in row {int(bad.argmax())}; samples with them are skipped" if bad.any() else None


def _video_facts(info: VideoInfo) -> dict[str, Any]:
    return {"width": info.width, "height": info.height, "fps": round(info.fps, 3), "codec": info.codec, "gop": info.gop}


def _describe_clips(uri: str) -> dict[str, Any]:
    found = read_clips(uri)
    problems = [{"item": name, "reason": "named in metadata.jsonl, but there is no such video"} for name in found.missing]
    videos, seconds, frames = [], 0.0, 0
    for clip in found.clips:
        try:
            with open_video(clip.uri, clip.size) as handle:
                info = probe(handle)
        except DataError as error:
            problems.append({"item": clip.name, "reason": str(error)})
            continue
        seconds, frames = seconds + info.duration_s, frames + info.frames
        about = {"video": clip.name} | _video_facts(info) | {"seconds": round(info.duration_s, 2), "caption": clip.caption}
        videos.append(about)
    return {
        "uri": uri, "format": "plain videos", "fingerprint": found.fingerprint, "episodes": len(found.clips), "usable": len(videos),
        "frames": frames, "hours": seconds / 3600, "videos": videos, "captions": sum(bool(c.caption) for c in found.clips),
        "problems": problems,
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
        tasks = [{"episodes": n, "task": text or "(none)"} for text, n in found["tasks"].items()]
        lines += ["", table(tasks[:_LINES]), *_more(len(tasks))]
    else:
        lines += [f"{found['captions']} with a caption", "", table(found["videos"][:_LINES]), *_more(len(found["videos"]))]
    if found["problems"]:
        lines += ["", "left out:", *(f"  {p['item']}: {p['reason']}" for p in islice(found["problems"], _LINES))]
        lines += _more(len(found["problems"]))
    return "\n".join(lines)


def _more(count: int) -> list[str]:
    return [f"... and {count - _LINES} more (--json lists all)"] if count > _LINES else []


def write_stats(args: argparse.Namespace) -> None:
    """Compute and write the statistics that the options of `gwp data stats` ask for."""
    embodiment = _embodiment(args)
    chunk = args.chunk or embodiment.chunk
    if chunk % 4:
        raise GwpError(f"--chunk {chunk}: the frames of a chunk must be 4n+1, so give a multiple of 4")
    embodiment = embodiment.model_copy(update={"chunk": chunk})
    sources = [Source(uri=uri, format="lerobot", embodiment=embodiment.name, episodes=args.episodes) for uri in args.uris]
    stats = compute_stats(sources, embodiment, Window(chunk=chunk, stride=chunk // 4))
    found = stats.to_json()
    storage.write_bytes(args.out, (json.dumps(found, indent=1) + "\n").encode())
    mask = embodiment.delta
    apart = [
        f"{a} - {s}" for a, s, d in zip(embodiment.action_names, embodiment.state_names, mask, strict=False) if d and a != s
    ]
    if apart:
        event("warning", text="delta subtracts a state of another name; check that it is the same quantity", pairs=", ".join(apart))
    still = {what: [names[i] for i in found["norm_stats"][key]["constant"]] for what, key, names in (
        ("state", "observation.state", embodiment.state_names), ("action", "action", embodiment.action_names))}
    print(table([{
        "written": args.out, "episodes": found["metadata"]["num_episodes"], "states": found["metadata"]["num_state_samples"],
        "windows left out": found["metadata"]["num_windows_left_out"],
    }]))
    for what, names in still.items():
        if names:
            print(f"constant {what}: {', '.join(names)}")


def _embodiment(args: argparse.Namespace) -> Embodiment:
    if args.embodiment:
        if args.delta:
            raise GwpError("--delta and --embodiment both say which actions are relative; put delta_mask into the file")
        return load_config(args.embodiment, Embodiment)
    if not args.chunk:
        raise GwpError("give --chunk P, or --embodiment FILE with its chunk")
    width = len(read_set(args.uris[0]).action_names)
    try:
        chosen = {i for part in parse_ranges(args.delta) for i in part} if args.delta else set()
    except ValueError as error:
        raise GwpError(f"--delta: {error}") from error
    if chosen and max(chosen) >= width:
        raise GwpError(f"--delta {args.delta}: {args.uris[0]} has {width} actions, 0 to {width - 1}")
    mask = tuple(i in chosen for i in range(width))
    return infer_embodiment(args.uris[0], args.name, args.chunk, args.chunk, cameras={}, delta_mask=mask)

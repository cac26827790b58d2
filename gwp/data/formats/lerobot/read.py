"""LeRobot sets v2.0, v2.1 and v3.0: what their metadata say.

Rows and frames are addressed by position: the k-th row of an episode belongs to the frame at
`from_timestamp + k / fps`. Recorded timestamps drift and do not always start at 0, so they are
not used.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from math import prod
from string import Formatter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.formats.lerobot.repair import absent_cameras, mend_paths
from gwp.data.formats.robot_set import (
    ACTION,
    STATE,
    Episode,
    RobotSet,
    VideoSpan,
    choose_columns,
)
from gwp.errors import DataError
from gwp.storage.names import relative_name, shown

INFO = "meta/info.json"
_NUMBER = re.compile(r"(0?\d{1,2})?d?")
QUALITY_LABELS = frozenset({"qualified", "unqualified", "success", "failure"})
"""Entries of an episode's `tasks` that judge it instead of saying what to do."""


def read_set(
    uri: str,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    files: dict[str, int] | None = None,
) -> RobotSet:
    """Metadata of the set at `uri`. `state`, `action`: columns that make up the vectors, in
    place of the usual ones. `files`: what is there; None: it is listed.

    Raises DataError when it is no LeRobot set, is of another version, is empty, has no such
    column, or its metadata are broken.
    """
    files = storage.list_files(uri) if files is None else files
    if INFO not in files:
        raise DataError(
            f"{uri}: not a LeRobot set ({INFO} is missing); check the URI, or set `format: "
            "clips` for plain videos"
        )
    raw = storage.read_bytes(storage.join(uri, INFO))
    try:
        info: dict[str, Any] = json.loads(raw)
        version, fps, features = (
            str(info["codebase_version"]),
            float(info["fps"]),
            dict(info["features"]),
        )
        if not version.startswith(("v2.", "v3.")):
            raise DataError(
                f"{uri}: LeRobot format {version} is not read; convert the set to v2.1 or v3.0"
            )
        # Also NaN, which JSON as Python reads it may hold.
        if not 0 < fps < float("inf"):
            raise DataError(f"{uri}: {INFO} says {fps:g} Hz; correct `fps` there")
        # Paths of videos are corrected at once: whoever comes later finds them by name.
        read = _episodes_v3 if version.startswith("v3.") else _episodes_v2
        episodes = mend_paths(read(uri, info, files), files)
        columns = tuple(
            key for key, f in features.items() if f.get("dtype") not in ("video", "image", "string")
        )
        state_keys = choose_columns(uri, "state", state, [(STATE,)], columns)
        action_keys = choose_columns(uri, "action", action, [(ACTION,)], columns)
        states, actions = (
            [_names(features[key], key) for key in keys] for keys in (state_keys, action_keys)
        )
        cameras = {
            key: f
            for key, f in features.items()
            if f.get("dtype") in ("video", "image") and not _is_depth(f)
        }
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        pa.ArrowException,
    ) as error:
        raise DataError(
            f"{uri}: broken metadata ({type(error).__name__}: {error}); write the set again"
        ) from error
    if not episodes:
        raise DataError(f"{uri}: the set has no episodes")
    # A number twice would mix the rows of two episodes up.
    index, count = Counter(e.index for e in episodes).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{uri}: the metadata list episode {index} {count} times; remove all but one of them"
        )
    # Names and sizes of what makes up the set; contents only of what says where episodes lie,
    # for a corrected start leaves sizes as they are.
    digest = hashlib.sha256(raw)
    for name, size in sorted(files.items()):
        if name.startswith(("meta/", "data/", "video")):
            digest.update(f"{name}:{size}\n".encode())
        if "episodes" in name:
            digest.update(storage.read_bytes(storage.join(uri, name)))
    # Declared cameras without any file are set aside, or every episode would lack something.
    absent = absent_cameras(episodes, cameras, files)
    cameras = {key: f for key, f in cameras.items() if key not in absent}
    return RobotSet(
        uri,
        "lerobot",
        version,
        str(info.get("robot_type") or "unknown"),
        fps,
        tuple(n for names, _ in states for n in names),
        tuple(n for names, _ in actions for n in names),
        all(named for _, named in states + actions),
        cameras,
        tuple(sorted(episodes, key=lambda e: e.index)),
        files,
        digest.hexdigest()[:12],
        state_keys,
        action_keys,
        columns,
        absent=absent,
    )


def _pictures(info: dict[str, Any], data_file: str) -> dict[str, VideoSpan]:
    """Cameras whose pictures are a column of the data file; where in it they start is known
    when the file has been looked at.
    """
    return {
        k: VideoSpan(data_file, 0.0, None, key=k)
        for k, f in info["features"].items()
        if f.get("dtype") == "image"
    }


def _is_depth(feature: dict[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    return isinstance(about, dict) and bool(
        about.get("video.is_depth_map") or about.get("is_depth_map")
    )


def _names(feature: dict[str, Any], key: str) -> tuple[tuple[str, ...], bool]:
    """Names of a vector feature, whether the set gives them; made up from the position where it
    does not.
    """
    names, width = feature.get("names"), prod(feature["shape"])
    if isinstance(names, dict) and all(isinstance(v, int) for v in names.values()):
        # {"x": 0, "y": 1}: names with their positions.
        names = sorted(names, key=names.__getitem__)
    flat = _flat(names)
    if len(flat) != width:
        return tuple(f"{key.rpartition('.')[2]}_{i}" for i in range(width)), False
    return tuple(flat), True


def _flat(names: Any) -> list[str]:
    if isinstance(names, dict):
        names = list(names.values())
    if isinstance(names, (list, tuple)):
        # Lists in lists, and groups such as {"motors": [...]}, in their order.
        return [text for item in names for text in _flat(item)]
    return [] if names is None else [str(names)]


def _instruction(tasks: Any, table: dict[int, str]) -> str:
    """The first entry that is an instruction; the set's only task where the episode names none."""
    # Texts in the files of LeRobot, numbers of the table in some conversions.
    given = [table.get(t, "") if isinstance(t, int) else str(t) for t in tasks or []]
    real = [t for t in given if t.strip().lower() not in QUALITY_LABELS]
    if not given and len(table) == 1:
        real = list(table.values())
    return real[0] if real else ""


def _json_lines(uri: str, name: str) -> list[dict[str, Any]]:
    lines = storage.read_bytes(storage.join(uri, name)).decode().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _path(uri: str, info: dict[str, Any], template: str, **fields: Any) -> str:
    """The file below the set that a template of info.json gives.

    DataError when that is no plain relative name. A template is not ours: only the given fields
    are put in, as they are or as whole numbers of a few digits.
    """
    text = str(info[template])
    # A template may ask for attributes of what is put in, or for a width that fills the
    # memory: neither is let through.
    for _, field, form, conversion in Formatter().parse(text):
        if field is None:
            continue
        if field not in fields or conversion or not _NUMBER.fullmatch(form or ""):
            raise DataError(
                f"{uri}: {INFO} has {template} {shown(text)}; "
                f"it may hold {', '.join(fields)}, as in {{{next(iter(fields))}}}"
            )
    return relative_name(text.format(**fields), f"{uri}: {template} in {INFO}", DataError)


def _episodes_v2(uri: str, info: dict[str, Any], files: dict[str, int]) -> list[Episode]:
    table = (
        {int(t["task_index"]): str(t["task"]) for t in _json_lines(uri, "meta/tasks.jsonl")}
        if "meta/tasks.jsonl" in files
        else {}
    )
    # Of declared videos only: `video_path` may be null in a set that has none.
    keys = [k for k, f in info["features"].items() if f.get("dtype") == "video"]
    chunks = int(info.get("chunks_size") or 1000)
    episodes = []
    for row in _json_lines(uri, "meta/episodes.jsonl"):
        i = int(row["episode_index"])
        place = {"episode_chunk": i // chunks, "episode_index": i}
        paths = {k: _path(uri, info, "video_path", video_key=k, **place) for k in keys}
        videos = {k: VideoSpan(path, 0.0, None) for k, path in paths.items()}
        data = _path(uri, info, "data_path", **place)
        videos |= _pictures(info, data)
        episodes.append(
            Episode(i, int(row["length"]), data, videos, _instruction(row.get("tasks"), table))
        )
    return episodes


def _read_parquet(uri: str) -> pa.Table:
    """All columns but statistics, which are most of the file where there are many cameras.
    ValueError when it cannot be read so.
    """
    raw = storage.read_bytes(uri)
    try:
        wanted = [c for c in pq.read_schema(io.BytesIO(raw)).names if not c.startswith("stats/")]
        return pq.read_table(io.BytesIO(raw), columns=wanted)
    except OSError as error:
        # Damaged pages and footers, as Arrow tells them; no storage is involved here.
        raise ValueError(f"{uri}: {error}") from error


def _episodes_v3(uri: str, info: dict[str, Any], files: dict[str, int]) -> list[Episode]:
    table: dict[int, str] = {}
    if "meta/tasks.parquet" in files:
        tasks = _read_parquet(storage.join(uri, "meta/tasks.parquet"))
        # Written through pandas the text is the index, whose column has no name of its own in
        # older files.
        text = "task" if "task" in tasks.column_names else "__index_level_0__"
        table = dict(
            zip(tasks["task_index"].to_pylist(), map(str, tasks[text].to_pylist()), strict=True)
        )
    keys = [k for k, f in info["features"].items() if f.get("dtype") == "video"]
    episodes = []
    for name in sorted(
        n for n in files if n.startswith("meta/episodes/") and n.endswith(".parquet")
    ):
        for row in _read_parquet(storage.join(uri, name)).to_pylist():
            # A camera may be off in some episodes; its columns are null there.
            shot = [k for k in keys if row.get(f"videos/{k}/file_index") is not None]
            videos = {k: _span_v3(uri, row, k, info) for k in shot}
            place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
            data = _path(uri, info, "data_path", **place)
            videos |= _pictures(info, data)
            text = _instruction(row.get("tasks"), table)
            episodes.append(
                Episode(int(row["episode_index"]), int(row["length"]), data, videos, text)
            )
    return episodes


def _span_v3(uri: str, row: dict[str, Any], key: str, info: dict[str, Any]) -> VideoSpan:
    # Each camera starts new files at its own pace, so file and start are the camera's, not the
    # episode's.
    chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
    path = _path(uri, info, "video_path", video_key=key, chunk_index=chunk, file_index=file)
    return VideoSpan(
        path, float(row[f"videos/{key}/from_timestamp"]), row.get(f"videos/{key}/to_timestamp")
    )

"""LeRobot sets v2.0, v2.1 and v3.0: what their metadata say.

Rows and frames are addressed by position: the k-th row of an episode belongs to the frame at
`from_timestamp + k / fps`. Recorded timestamps drift and do not always start at 0, so they are
not used.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gwp.data.formats.columns import passed_over
from gwp.data.formats.files.listing import list_recordings
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.finding import Finding
from gwp.data.formats.lerobot.meta.episodes import OLD_LIST, listing, task_table
from gwp.data.formats.lerobot.meta.info import read_info, width_of
from gwp.data.formats.lerobot.meta.places import INFO as INFO
from gwp.data.formats.lerobot.meta.splits import split_of
from gwp.data.formats.lerobot.meta.tables import MetaFiles
from gwp.data.formats.lerobot.repair import absent_cameras, mend_paths
from gwp.data.formats.robot_set import (
    ACTION,
    STATE,
    Episode,
    RobotSet,
    choose_columns,
)
from gwp.errors import DataError
from gwp.storage.names import shown

_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index")
"""Columns of the format that say nothing of what is done."""
TASK_COLUMN = "task_index"
_ANNOTATION = "annotation."


@dataclass(frozen=True)
class Metadata:
    """What a set says besides what every format does.

    info: info.json. told_by: column that says what is done, row by row; chosen: whether the user
    named it. tasks: its texts by number. named: instructions by episode. others: episodes of other
    splits, which share files with those of the set. findings: what is wrong and costs nothing
    """

    info: dict[str, Any] = field(default_factory=dict)
    told_by: str = TASK_COLUMN
    chosen: bool = False
    tasks: dict[int, str] = field(default_factory=dict)
    named: dict[int, tuple[str, ...]] = field(default_factory=dict)
    others: tuple[Episode, ...] = ()
    findings: tuple[Finding, ...] = ()


def read_set(
    uri: str,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    files: dict[str, int] | None = None,
    split: str | None = None,
    instruction: str | None = None,
    reader: FileReader | None = None,
) -> RobotSet:
    """Metadata of the set at `uri`. `state`, `action`: columns that make up the vectors, in
    place of the usual ones. `files`: what is there; None: it is listed. `split`: one that
    info.json names; None: all episodes. `instruction`: column that says what is done, in place
    of `task_index`. `reader`: keeps what is read; None: one for this call.

    Raises DataError when it is no LeRobot set, is of another version, is empty, has no such
    column or split, or its metadata are broken.
    """
    files = list_recordings(uri) if files is None else files
    if INFO not in files:
        raise DataError(
            f"{uri}: not a LeRobot set ({INFO} is missing); check the URI, or set `format: "
            "clips` for plain videos"
        )
    meta = MetaFiles(uri, files, reader or FileReader())
    told: list[Finding] = []
    info = read_info(uri, meta.read(INFO), told)
    version, fps, features = _version(info, files), info["fps"], info["features"]
    if not version.startswith(("v2.", "v3.")):
        raise DataError(
            f"{uri}: LeRobot format {shown(version)} is not read; convert the set to v2.1 or v3.0"
        )
    found = listing(meta, info, version.startswith("v3."))
    found.findings += told
    # Paths of videos are corrected at once: whoever comes later finds them by name.
    episodes, moved = mend_paths(found.episodes, files)
    found.findings += moved
    columns = tuple(
        key for key, f in features.items() if f.get("dtype") not in ("video", "image", "string")
    )
    state_keys = choose_columns(uri, "state", state, [(STATE,)], columns)
    action_keys = choose_columns(uri, "action", action, [(ACTION,)], columns)
    states, actions = (
        [_names(uri, features[key], key) for key in keys] for keys in (state_keys, action_keys)
    )
    cameras = {
        key: f
        for key, f in features.items()
        if f.get("dtype") in ("video", "image") and not _is_depth(f)
    }
    if not info.get("codebase_version"):
        what = f"no codebase_version; read as {version}"
        found.findings.append(Finding(INFO, what, "repaired", "its files are of that version"))
    _check_episodes(uri, episodes, found.lost)
    told_by, tasks = _told_by(meta, instruction, features, found.tasks, found.findings)
    # All files are compared with all episodes, whatever split is read.
    numbers = [episode.index for episode in episodes]
    of_split = set(numbers) if split is None else split_of(uri, info, split, numbers)
    # Declared cameras without any file are set aside, or every episode would lack something.
    absent = absent_cameras(episodes, cameras, files)
    cameras = {key: f for key, f in cameras.items() if key not in absent}
    in_order = sorted(episodes, key=lambda e: e.index)
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
        tuple(e for e in in_order if e.index in of_split),
        files,
        _fingerprint(meta),
        state_keys,
        action_keys,
        columns,
        absent=absent,
        own=Metadata(
            info,
            told_by,
            instruction is not None,
            tasks,
            found.named,
            tuple(e for e in in_order if e.index not in of_split),
            tuple(found.findings),
        ),
        remarks=(
            *passed_over("state", state, state_keys, [(STATE,)], columns),
            *passed_over("action", action, action_keys, [(ACTION,)], columns),
        ),
    )


def _version(info: dict[str, Any], files: dict[str, int]) -> str:
    """As info.json says, with or without the `v`; where it does not, by the files that are there."""
    if stated := info.get("codebase_version"):
        return f"v{str(stated).removeprefix('v')}"
    return "v2.1" if OLD_LIST in files else "v3.0"


def _check_episodes(uri: str, episodes: Sequence[Episode], lost: Sequence[str]) -> None:
    """DataError when there is none that can be read. lost: why files of the metadata cannot be
    read
    """
    if not episodes and not lost:
        raise DataError(f"{uri}: the set has no episodes")
    if all(episode.problem for episode in episodes):
        reason = [*lost, *(e.problem for e in episodes)][0].partition(";")[0]
        raise DataError(f"{uri}: broken metadata ({reason}); write the set again")


def _fingerprint(meta: MetaFiles) -> str:
    """Of names and sizes of what makes up the set; of contents only of what says where episodes
    lie, for a corrected start leaves sizes as they are.
    """
    digest = hashlib.sha256(meta.read(INFO))
    meta.read_ahead(name for name in meta.files if "episodes" in name)
    for name, size in sorted(meta.files.items()):
        if name.startswith(("meta/", "data/", "video")):
            digest.update(f"{name}:{size}\n".encode())
        if "episodes" in name:
            digest.update(meta.read(name))
    return digest.hexdigest()[:12]


def _told_by(
    meta: MetaFiles,
    wanted: str | None,
    features: dict[str, Any],
    tasks: dict[int, str],
    findings: list[Finding],
) -> tuple[str, dict[int, str]]:
    """The column that says what is done, and its texts by number. DataError when there is no
    such column.
    """
    if wanted is None:
        return TASK_COLUMN, tasks
    texts = [
        key
        for key, f in features.items()
        if key not in _BOOKKEEPING and str(f.get("dtype")).startswith(("string", "int", "uint"))
    ]
    have = tuple(dict.fromkeys((TASK_COLUMN, *texts)))
    choose_columns(meta.uri, "instruction", (wanted,), (), have)
    # `subtask_index` counts in a table of its own, `annotation.*` in that of the tasks.
    kind = wanted.removesuffix("_index")
    is_text = str(features.get(wanted, {}).get("dtype")).startswith("string")
    if kind in (wanted, "task") or wanted.startswith(_ANNOTATION) or is_text:
        return wanted, tasks
    # Its numbers are none of tasks, whatever became of the table.
    own = task_table(meta, kind, findings)
    if not own:
        raise DataError(
            f"{meta.uri}: instruction '{wanted}' counts in meta/{kind}s.parquet or .jsonl, which "
            "is missing or damaged; write it again, or name another column"
        )
    return wanted, own


def _is_depth(feature: dict[str, Any]) -> bool:
    about = feature.get("info") or feature.get("video_info") or {}
    return isinstance(about, dict) and bool(
        about.get("video.is_depth_map") or about.get("is_depth_map")
    )


def _names(uri: str, feature: dict[str, Any], key: str) -> tuple[tuple[str, ...], bool]:
    """Names of a vector feature, whether the set gives them; made up from the position where it
    does not. DataError when it does not say how many they are.
    """
    names, width = feature.get("names"), width_of(uri, feature, key)
    flat = _flat(names)
    if len(flat) != width:
        return tuple(f"{key.rpartition('.')[2]}_{i}" for i in range(width)), False
    return tuple(flat), True


def _flat(names: Any) -> list[str]:
    if isinstance(names, dict) and all(type(place) is int for place in names.values()):
        # {"x": 0, "y": 1}: names with their positions.
        names = sorted(names, key=names.__getitem__)
    elif isinstance(names, dict):
        names = list(names.values())
    if isinstance(names, (list, tuple)):
        # Lists in lists, and groups such as {"motors": [...]}, in their order.
        return [text for item in names for text in _flat(item)]
    return [] if names is None else [str(names)]

"""Episodes in HDF5: one per file (ALOHA, ACT) or many (robomimic, LIBERO: /data/demo_0, ...).

Columns are named by their path below the episode: `observations/qpos`, `action`,
`obs/joint_states`. Pictures are uint8 `[T, H, W, 3]`, or one encoded picture (JPEG, PNG) per
step, which zeros may follow.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.clips import EXTENSIONS as VIDEOS
from gwp.data.formats.format import (
    FilePart,
    Pictures,
    SetSource,
    no_findings,
    rows_of,
    usable_by_metadata,
)
from gwp.data.formats.hdf5.file import member_of, opened
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan, choose_columns, vector_names
from gwp.errors import DataError

EXTENSIONS = (".hdf5", ".h5")
title = "HDF5"
signs = f"HDF5 episodes ({', '.join('*' + e for e in EXTENSIONS)})"
endings: tuple[str, ...] = EXTENSIONS
options: tuple[str, ...] = ()
usable_episodes = usable_by_metadata
findings = no_findings
_ACTIONS = [("action",), ("actions",)]
# ALOHA, LIBERO, robomimic: the first of which all columns are there.
_STATES = [
    ("observations/qpos",),
    ("obs/ee_states", "obs/gripper_states"),
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
]
# robomimic writes the observations of the next step once more, pictures included.
_DEMOS, _FOLLOWING = "data", "next_obs"
_HINT = "ALOHA is customarily recorded at 50 Hz"
_LOOKS, _EPISODES = 65536, 64
"""Files whose index stays, and episodes whose columns do."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass
class _Demo:
    """What a file says of one episode. `vectors`: rows and width; `pictures`: path, number and
    shape (None: encoded), by camera.
    """

    prefix: str
    text: str = ""
    vectors: dict[str, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[str, tuple[str, int, tuple[int, ...] | None]] = field(default_factory=dict)
    digest: bytes = b""


def hdf5_files(files: dict[str, int]) -> list[str]:
    """HDF5 files in the order of the numbers in their names."""
    return sorted((n for n in files if n.lower().endswith(EXTENSIONS)), key=_natural)


def _natural(name: str) -> list[Any]:
    # Texts and numbers in turn, so `episode_10` comes behind `episode_9`; the first entry of
    # a part keeps numbers and texts from being compared.
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)
    ]


def is_at(uri: str, files: dict[str, int]) -> bool:
    """Whether a file is HDF5. DataError where videos lie beside it: which of the two is meant
    cannot be told.
    """
    if not hdf5_files(files):
        return False
    if videos := sorted(n for n in files if n.lower().endswith(VIDEOS)):
        raise DataError(
            f"{uri}: both HDF5 files and videos ({videos[0]}) are there; set `format: "
            "hdf5` or `format: clips` on this source"
        )
    return True


def read_set(uri: str, files: dict[str, int], source: SetSource, reader: FileReader) -> RobotSet:
    """The set below `uri`, where `files` are. DataError when nothing there can be read.

    Every file is opened once; a file that cannot be read is an episode with a problem.
    """
    names = hdf5_files(files)
    if not names:
        raise DataError(f"{uri}: no {signs}; check the URI")

    def look_at(name: str) -> _Index:
        return reader.once(_LOOKS, _look, storage.join(uri, name), files[name])

    with ThreadPoolExecutor(8 if storage.is_remote(uri) else 1) as pool:
        looks = list(pool.map(look_at, names))
    # Files that can be read speak for the set; the others become episodes with a problem
    # below.
    demos = [demo for look in looks if not isinstance(look, str) for demo in look[0]]
    if not demos:
        raise DataError(
            f"{uri}: none of {len(names)} HDF5 files can be used (first: {names[0]} {looks[0]})"
        )
    rates = {look[1] for look in looks if not isinstance(look, str) and look[1]}
    if len(rates) > 1:
        raise DataError(
            f"{uri}: files of different rates ({', '.join(f'{r:g}' for r in sorted(rates))} "
            "Hz); give each a source of its own"
        )
    fps = source.rate(next(iter(rates), None), _HINT)
    # Episodes that lack something do not speak for the set.
    columns = list(dict.fromkeys(key for demo in demos for key in demo.vectors))
    state = choose_columns(uri, "state", source.state, _STATES, columns)
    action = choose_columns(uri, "action", source.action, _ACTIONS, columns)
    # The width that most episodes have. Actions come first, for `_episode` counts rows by the
    # first.
    widths = {
        k: Counter(d.vectors[k][1] for d in demos if k in d.vectors).most_common(1)[0][0]
        for k in (*action, *state)
    }
    # A file that cannot be read takes a number, too: told as an episode with a problem.
    digest = hashlib.sha256()
    episodes: list[Episode] = []
    for name, look in zip(names, looks, strict=True):
        digest.update(f"{name}:{files[name]}\n".encode())
        if isinstance(look, str):
            episodes.append(Episode(len(episodes), 0, name, {}, "", problem=f"{name} {look}"))
            continue
        for demo in look[0]:
            digest.update(demo.digest)
            episodes.append(_episode(len(episodes), name, demo, fps, widths))
    cameras = {
        c: {"shape": list(shape or ())}
        for demo in demos
        for c, (_, _, shape) in demo.pictures.items()
    }
    return RobotSet(
        uri,
        "hdf5",
        "",
        "unknown",
        fps,
        vector_names(state, widths),
        vector_names(action, widths),
        False,
        cameras,
        tuple(episodes),
        files,
        digest.hexdigest()[:12],
        state,
        action,
        tuple(columns),
    )


def _episode(index: int, file: str, demo: _Demo, fps: float, widths: dict[str, int]) -> Episode:
    counts = {k: demo.vectors[k][0] for k in widths if k in demo.vectors}
    # Rows of the first column; of a set without vectors, pictures.
    length = next(iter(counts.values()), 0) or max(
        (n for _, n, _ in demo.pictures.values()), default=0
    )
    place = f"{file} {demo.prefix.rstrip('/')}".strip()
    # Only labelled use needs them; `videos` are compared with the length in `format._reason`.
    wrong = [f"{place} has no column {k}" for k in widths if k not in demo.vectors]
    wrong += [
        f"{k} is {demo.vectors[k][1]} wide, that of the set {w}"
        for k, w in widths.items()
        if demo.vectors.get(k, (0, w))[1] != w
    ]
    wrong += [
        f"{k} has {n} rows, {next(iter(counts))} has {length}"
        for k, n in counts.items()
        if n != length
    ]
    videos = {
        c: VideoSpan(file, 0.0, n / fps, key=path) for c, (path, n, _) in demo.pictures.items()
    }
    return Episode(
        index, length, file, videos, demo.text, prefix=demo.prefix, label_problem="; ".join(wrong)
    )


_Index = tuple[tuple[_Demo, ...], float | None] | str
"""Episodes of a file and the rate it states, or why it cannot be used."""


def _look(uri: str, size: int) -> _Index:  # noqa: ARG001
    """Episodes of a file and the rate it states, or why it cannot be used. `size` tells a file
    that was written again.
    """
    try:
        with opened(uri) as file:
            # Many episodes below /data, or the file itself is one.
            group = member_of(file, _DEMOS) if _DEMOS in file else None
            parents = [file]
            if group is not None and hasattr(group, "keys"):
                members = [member_of(group, n) for n in sorted(group, key=_natural)]
                parents = [member for member in members if hasattr(member, "keys")]
            found = tuple(
                demo for parent in parents if (demo := _demo(parent)).vectors or demo.pictures
            )
            # robomimic and LIBERO write attributes at /data, for all of it.
            rate, text = _about(group if parents != [file] else file)
    except DataError as error:
        return str(error).removeprefix(f"{uri}: ")
    for demo in found:
        demo.text = demo.text or text
    return (
        (found, rate)
        if found
        else "holds no episode (neither columns and pictures nor /data/demo_*)"
    )


def _demo(parent: Any) -> _Demo:
    demo = _Demo(
        "" if parent.name == "/" else parent.name.strip("/") + "/",
        _line(parent.attrs.get("language_instruction")),
    )
    # By shape and type alone: pictures, encoded pictures, vectors; what is neither is left
    # out.
    for path, data in _datasets(parent, ""):
        if not data.shape:
            continue
        if data.dtype == np.uint8 and data.ndim == 4 and data.shape[-1] == 3:
            demo.pictures[_camera(path)] = demo.prefix + path, data.shape[0], data.shape[1:]
        elif _encoded(path, data, parent.file.attrs):
            demo.pictures[_camera(path)] = demo.prefix + path, data.shape[0], None
        elif data.dtype.kind in "fiub" and data.ndim <= 2:
            demo.vectors[path] = data.shape[0], data.shape[1] if data.ndim == 2 else 1
    # Recordings of one length have one size, so a file that was recorded again is told by its
    # actions.
    actions = next((parent[k] for (k,) in _ACTIONS if k in demo.vectors), None)
    demo.digest = b"" if actions is None else np.ascontiguousarray(actions[()]).tobytes()
    return demo


def _datasets(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name in group:
        inner = member_of(group, name)
        if hasattr(inner, "shape"):
            yield path + name, inner
        elif hasattr(inner, "keys") and name != _FOLLOWING:
            yield from _datasets(inner, f"{path}{name}/")


def _camera(path: str) -> str:
    return path.removeprefix("observations/images/").removeprefix("obs/")


def _encoded(path: str, data: Any, attrs: Any) -> bool:
    """Whether each row is an encoded picture."""
    if not (data.dtype == np.uint8 and data.ndim == 2) and not (
        data.dtype.kind in "SO" and data.ndim == 1
    ):
        return False
    # ALOHA says so in an attribute; else the first picture tells.
    return bool("/images/" in f"/{path}" and attrs.get("compress", False)) or (
        len(data) > 0 and _raw(data[0])[:4].startswith(_MAGIC)
    )


def _raw(value: Any) -> bytes:
    return (
        # Rows of uint8, fixed texts (numpy cuts zeros at their end, which no JPEG or PNG
        # has), texts.
        value.tobytes()
        if isinstance(value, np.ndarray)
        else value
        if isinstance(value, bytes)
        else str(value).encode()
    )


def _about(group: Any) -> tuple[float | None, str]:
    """Rate and instruction out of the attributes that robomimic and LIBERO write."""
    rate, text = None, _line(group.attrs.get("language_instruction"))
    for name in ("env_args", "problem_info"):
        try:
            # robomimic's `env_args` have the rate, LIBERO's `problem_info` the instruction,
            # whole or as words.
            about = json.loads(_line(group.attrs.get(name)) or "{}")
            rate = rate or about.get("env_kwargs", {}).get("control_freq")
            given = about.get("language_instruction", "")
            text = text or (" ".join(given) if isinstance(given, list) else str(given))
        except (ValueError, AttributeError):
            continue
    return float(rate) if rate else None, text


def _line(value: Any) -> str:
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else str(value)
        if isinstance(value, str)
        else ""
    )


def read_rows(
    part: FilePart, first: int, count: int, keys: tuple[str, ...], reader: FileReader
) -> dict[str, np.ndarray]:
    """Rows of columns by full path, float64 `[count, width]`. DataError when the file cannot be
    read so.
    """
    # All rows of the episode: its windows overlap, and several of them are read together.
    columns = reader.once(_EPISODES, _read_columns, part.uri, keys)
    return rows_of(columns, part.uri, first, count)


def _read_columns(uri: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    with opened(uri) as file:
        found = {k: np.asarray(file[k][()], np.float64) for k in keys}
    return {k: v.reshape(len(v), -1) for k, v in found.items()}


@contextmanager
def open_pictures(
    part: FilePart,
    key: str,
    reader: FileReader,  # noqa: ARG001
) -> Iterator[Pictures]:
    """Number of pictures of a camera, and a function that gives one: uint8 `[H, W, 3]`, or
    bytes of an encoded one. DataError.
    """
    with opened(part.uri) as file:
        data = file[key]

        def get(i: int) -> Any:
            # HDF5 reads and unpacks the chunk around it, which may hold more pictures.
            value = data[i]
            return value if data.ndim == 4 else _raw(value)

        yield len(data), get

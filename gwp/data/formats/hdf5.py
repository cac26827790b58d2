"""Episodes in HDF5: one per file (ALOHA, ACT) or many (robomimic, LIBERO: /data/demo_0, ...).

Columns are named by their path below the episode: `observations/qpos`, `action`,
`obs/joint_states`. Pictures are uint8 `[T, H, W, 3]`, or one encoded picture (JPEG, PNG) per
step, which zeros may follow.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gwp import storage
from gwp.data.formats.robot_set import Episode, RobotSet, VideoSpan, choose_columns, vector_names
from gwp.data.source import Source
from gwp.errors import DataError, GwpError
from gwp.storage.names import relative_name, shown

EXTENSIONS = (".hdf5", ".h5")
_ACTIONS = [("action",), ("actions",)]
_STATES = [
    ("observations/qpos",),
    ("obs/ee_states", "obs/gripper_states"),
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
]
_DEMOS, _FOLLOWING = "data", "next_obs"
_HINT = "ALOHA is customarily recorded at 50 Hz"
_AHEAD = 64 << 10
"""Bytes that are fetched at a time: metadata lie scattered in small pieces, often beside one
another.
"""
_CHUNKS = 32 << 20
"""Bytes of decompressed chunks that stay while a camera is read: a compressed chunk often holds
many pictures.
"""
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


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    """The file as h5py has it. DataError when it is none, or damaged."""
    try:
        import h5py
    except ImportError as error:
        raise GwpError(f"{uri}: reading HDF5 needs h5py; run `pip install 'gwp[model]'`") from error
    try:
        if storage.is_remote(uri):
            # h5py holds a lock while it reads, and the garbage of another thread may wait for
            # it: no Python thread may do the reading.
            with (
                storage.open_native(uri, _AHEAD) as handle,
                h5py.File(handle, "r", rdcc_nbytes=_CHUNKS) as file,
            ):
                yield file
        else:
            with storage.open_read(uri) as handle:
                path = handle.name
            with h5py.File(path, "r", locking=False, rdcc_nbytes=_CHUNKS) as file:
                yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{uri}: cannot be read as HDF5 ({error}); it is truncated or damaged"
        ) from error


def hdf5_files(files: dict[str, int]) -> list[str]:
    """HDF5 files in the order of the numbers in their names."""
    return sorted((n for n in files if n.lower().endswith(EXTENSIONS)), key=_natural)


def _natural(name: str) -> list[Any]:
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)
    ]


def read_set(source: Source, files: dict[str, int]) -> RobotSet:
    """The set at `source`, whose `files` are given. DataError when nothing there can be read.

    Every file is opened once; a file that cannot be read is an episode with a problem.
    """
    uri, names = source.uri, hdf5_files(files)
    if not names:
        raise DataError(
            f"{uri}: no HDF5 episodes ({', '.join('*' + e for e in EXTENSIONS)}); check the URI"
        )
    with ThreadPoolExecutor(8 if storage.is_remote(uri) else 1) as pool:
        looks = list(pool.map(lambda n: _look(storage.join(uri, n), files[n]), names))
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
    widths = {
        k: Counter(d.vectors[k][1] for d in demos if k in d.vectors).most_common(1)[0][0]
        for k in (*action, *state)
    }
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
    length = next(iter(counts.values()), 0) or max(
        (n for _, n, _ in demo.pictures.values()), default=0
    )
    place = f"{file} {demo.prefix.rstrip('/')}".strip()
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


@lru_cache(maxsize=65536)
def _look(uri: str, size: int) -> tuple[tuple[_Demo, ...], float | None] | str:  # noqa: ARG001
    """Episodes of a file and the rate it states, or why it cannot be used. `size` tells a file
    that was written again.
    """
    try:
        with _opened(uri) as file:
            group = _member(file, _DEMOS) if _DEMOS in file else None
            parents = [file]
            if group is not None and hasattr(group, "keys"):
                members = [_member(group, n) for n in sorted(group, key=_natural)]
                parents = [member for member in members if hasattr(member, "keys")]
            found = tuple(
                demo for parent in parents if (demo := _demo(parent)).vectors or demo.pictures
            )
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
        inner = _member(group, name)
        if hasattr(inner, "shape"):
            yield path + name, inner
        elif hasattr(inner, "keys") and name != _FOLLOWING:
            yield from _datasets(inner, f"{path}{name}/")


def _member(group: Any, name: str) -> Any:
    """What is called so in a group.

    DataError when it lies in another file that is not in or below the folder of this one.
    """
    import h5py

    file, what = str(group.file.filename), f"{group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        _check_other_file(file, link.filename, what)
    member = group[name]
    # A link within the file may end in one that leaves it.
    if (other := str(member.file.filename)) != file:
        _check_other_file(file, os.path.relpath(other, Path(file).parent), what)
    if hasattr(member, "shape"):
        if member.external:
            # Which HDF5 looks for where this program runs.
            raise DataError(f"{what} has its numbers in another file; copy them into this one")
        for source in member.virtual_sources() if member.is_virtual else ():
            # HDF5's name for the file itself.
            if source.file_name != ".":
                _check_other_file(file, source.file_name, what)
    return member


def _check_other_file(file: str, other: str, what: str) -> None:
    """DataError unless `other` is beside or below `file`.

    What is not there, HDF5 looks for where this program runs.
    """
    relative_name(other, f"{what} lies in another file", DataError)
    if not (Path(file).parent / other).is_file():
        raise DataError(
            f"{what} lies in another file, {shown(other)}, which is not there; "
            "copy it beside this one on a local disk"
        )


def _camera(path: str) -> str:
    return path.removeprefix("observations/images/").removeprefix("obs/")


def _encoded(path: str, data: Any, attrs: Any) -> bool:
    """Whether each row is an encoded picture."""
    if not (data.dtype == np.uint8 and data.ndim == 2) and not (
        data.dtype.kind in "SO" and data.ndim == 1
    ):
        return False
    return bool("/images/" in f"/{path}" and attrs.get("compress", False)) or (
        len(data) > 0 and _raw(data[0])[:4].startswith(_MAGIC)
    )


def _raw(value: Any) -> bytes:
    return (
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


def read_columns(uri: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns by full path, float64 `[rows, width]`. DataError when the file cannot be read so."""
    with _opened(uri) as file:
        found = {k: np.asarray(file[k][()], np.float64) for k in keys}
    return {k: v.reshape(len(v), -1) for k, v in found.items()}


@contextmanager
def pictures(uri: str, key: str) -> Iterator[tuple[int, Any]]:
    """Number of pictures of a camera, and a function that gives one: uint8 `[H, W, 3]`, or
    bytes of an encoded one. DataError.
    """
    with _opened(uri) as file:
        data = file[key]

        def get(i: int) -> Any:
            value = data[i]
            return value if data.ndim == 4 else _raw(value)

        yield len(data), get

"""What an HDF5 file holds: its episodes, their columns and pictures, by names and shapes alone."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gwp.data.formats.hdf5.file import member_of, opened
from gwp.errors import DataError

ACTIONS = [("action",), ("actions",)]
"""Usual columns of the action, the first that is there."""
# robomimic writes the observations of the next step once more, pictures included.
_DEMOS, _FOLLOWING = "data", "next_obs"
_HOLDERS = (_DEMOS, "episodes", "demos", "demonstrations", "trajectories", "rollouts")
"""Groups at the root that may hold episodes."""
_NUMBERED = re.compile(
    r"(traj|trajectory|demo|demonstration|episode|ep|rollout|trial)s?[_-]?\d+", re.IGNORECASE
)
"""Groups that are episodes by their names: ManiSkill's `traj_0`, `episode_3`."""
_MASKS = "mask"
"""Where robomimic names the episodes of its splits."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")
_TWO_FORMS = (
    "both {} and {} have actions: which of them is an episode cannot be told; write one form"
)


@dataclass
class Demo:
    """What a file says of one episode. `vectors`: rows and width; `pictures`: path, number and
    shape (None: encoded), by camera. `name`: of its group, "" for the file itself.
    """

    prefix: str
    name: str = ""
    text: str = ""
    vectors: dict[str, tuple[int, int]] = field(default_factory=dict)
    pictures: dict[str, tuple[str, int, tuple[int, ...] | None]] = field(default_factory=dict)
    digest: bytes = b""


@dataclass(frozen=True)
class _Place:
    """A group, and its path in the file, which ends in a slash ("": the file itself)."""

    path: str
    group: Any

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class FileIndex:
    """Episodes of a file, the rate it states, and names of episodes by split."""

    demos: tuple[Demo, ...]
    rate: float | None
    splits: dict[str, frozenset[str]]


def natural(name: str) -> list[Any]:
    """A key that sorts `episode_10` behind `episode_9`."""
    # Texts and numbers in turn; the first entry of a part keeps the two from being compared.
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def look(uri: str, size: int) -> FileIndex | str:  # noqa: ARG001
    """The index of a file, or why it cannot be used. `size` tells a file that was written
    again.
    """
    try:
        with opened(uri) as file:
            holder, places = _episodes(file)
            demos = tuple(_demo(place) for place in places)
            # robomimic and LIBERO write attributes at /data, for all of it.
            rate, text = _about(holder)
            splits = _splits(file)
    except DataError as error:
        return str(error).removeprefix(f"{uri}: ")
    # A demonstration that is named as one and holds nothing keeps its number, and is told.
    found = tuple(d for d in demos if d.vectors or d.pictures or _NUMBERED.fullmatch(d.name))
    for demo in found:
        demo.text = demo.text or text
    if not any(demo.vectors or demo.pictures for demo in found):
        return "holds no episode (neither columns and pictures nor /data/demo_*)"
    return FileIndex(found, rate, splits)


def _episodes(file: Any) -> tuple[Any, list[_Place]]:
    """The group whose attributes speak for all episodes, and those that are one each."""
    for name in _HOLDERS:
        holder = member_of(file, name) if name in file else None
        if not hasattr(holder, "keys"):
            continue
        inside = _groups(holder, f"{name}/")
        own = _has_actions(holder)
        # Whatever lies below /data is an episode; elsewhere their names have to say so.
        if name != _DEMOS or own:
            inside = [place for place in inside if _is_episode(place)]
        if inside and own:
            raise DataError(_TWO_FORMS.format(f"/{name}", inside[0].path))
        if inside or name == _DEMOS:
            return holder, [_Place(f"{name}/", holder)] if own else inside
    inside = [place for place in _groups(file, "") if _is_episode(place)]
    whole = _Place("", file)
    if not _has_actions(file):
        return file, inside or [whole]
    # Numbered parts of one episode, cameras say, have no actions of their own.
    if acting := [place.path for place in inside if _has_actions(place.group)]:
        raise DataError(_TWO_FORMS.format("the file itself", acting[0]))
    return file, [whole]


def _groups(group: Any, path: str) -> list[_Place]:
    members = [
        _Place(f"{path}{name}/", member_of(group, name)) for name in sorted(group, key=natural)
    ]
    return [member for member in members if hasattr(member.group, "keys")]


def _is_episode(place: _Place) -> bool:
    # A bare number may be a camera, too.
    return bool(_NUMBERED.fullmatch(place.name)) or (
        place.name.isdecimal() and _has_actions(place.group)
    )


def _has_actions(group: Any) -> bool:
    return any(key in group and hasattr(member_of(group, key), "shape") for (key,) in ACTIONS)


def _demo(place: _Place) -> Demo:
    parent = place.group
    demo = Demo(place.path, place.name, _line(parent.attrs.get("language_instruction")))
    # By shape and type alone: pictures, encoded pictures, vectors; what is neither is left
    # out.
    for path, data in _datasets(parent, "", ()):
        if not data.shape:
            continue
        if data.dtype == np.uint8 and data.ndim == 4 and data.shape[-1] == 3:
            demo.pictures[_camera(path, demo)] = demo.prefix + path, data.shape[0], data.shape[1:]
        elif _encoded(path, data, parent.file.attrs):
            demo.pictures[_camera(path, demo)] = demo.prefix + path, data.shape[0], None
        elif data.dtype.kind in "fiub" and data.ndim <= 2:
            demo.vectors[path] = data.shape[0], data.shape[1] if data.ndim == 2 else 1
    # Recordings of one length have one size, so a file that was recorded again is told by its
    # actions.
    actions = next((member_of(parent, k) for (k,) in ACTIONS if k in demo.vectors), None)
    demo.digest = b"" if actions is None else np.ascontiguousarray(actions[()]).tobytes()
    return demo


def _datasets(group: Any, path: str, above: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Path below an episode and data of everything in it. above: the groups that `group` is in."""
    # A link may lead back to one of them.
    if group in above:
        return
    for name in group:
        inner = member_of(group, name)
        if hasattr(inner, "shape"):
            yield path + name, inner
        elif hasattr(inner, "keys") and name != _FOLLOWING:
            yield from _datasets(inner, f"{path}{name}/", (*above, group))


def _camera(path: str, demo: Demo) -> str:
    name = path.removeprefix("observations/images/").removeprefix("obs/")
    # Two of one name are told apart by their paths.
    return path if name in demo.pictures else name


def _encoded(path: str, data: Any, attrs: Any) -> bool:
    """Whether each row is an encoded picture."""
    if not (data.dtype == np.uint8 and data.ndim == 2) and not (
        data.dtype.kind in "SO" and data.ndim == 1
    ):
        return False
    # ALOHA says so in an attribute; else the first picture tells.
    return bool("/images/" in f"/{path}" and attrs.get("compress", False)) or (
        len(data) > 0 and raw_bytes(data[0])[:4].startswith(_MAGIC)
    )


def raw_bytes(value: Any) -> bytes:
    """An encoded picture as its file has it."""
    return (
        # Rows of uint8, fixed texts (numpy cuts zeros at their end, which no JPEG or PNG
        # has), texts.
        value.tobytes()
        if isinstance(value, np.ndarray)
        else value
        if isinstance(value, bytes)
        else str(value).encode("utf-8", "surrogateescape")
    )


def _about(group: Any) -> tuple[float | None, str]:
    """Rate and instruction out of the attributes that robomimic and LIBERO write."""
    rate, text = None, _line(group.attrs.get("language_instruction"))
    for name in ("env_args", "problem_info"):
        try:
            # robomimic's `env_args` have the rate, LIBERO's `problem_info` the instruction,
            # whole or as words.
            about = json.loads(_line(group.attrs.get(name)) or "{}")
            rate = rate or _rate(about.get("env_kwargs", {}).get("control_freq"))
            given = about.get("language_instruction", "")
            text = text or (" ".join(given) if isinstance(given, list) else str(given))
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
    return rate, text


def _rate(given: Any) -> float | None:
    """What metadata call a rate, Hz; None where it is none."""
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    return float(given) if is_number and given > 0 and math.isfinite(given) else None


def _line(value: Any) -> str:
    return (
        value.decode("utf-8", "replace")
        if isinstance(value, bytes)
        else str(value)
        if isinstance(value, str)
        else ""
    )


def _splits(file: Any) -> dict[str, frozenset[str]]:
    """Names of episodes by split, as robomimic notes them below /mask."""
    masks: Any = member_of(file, _MASKS) if _MASKS in file else {}
    if not hasattr(masks, "keys"):
        return {}
    found = {}
    for name in masks:
        members = member_of(masks, name)
        if not hasattr(members, "shape") or members.dtype.kind not in "SO":
            continue
        names = [_line(value) for value in np.ravel(members[()])]
        # With or without the group that they lie in.
        found[name] = frozenset(entry.rpartition("/")[2] for entry in names)
    return found

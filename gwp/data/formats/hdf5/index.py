"""What an HDF5 file holds: its episodes, their columns and pictures, by names and shapes alone."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.files.texts import read_json
from gwp.data.formats.hdf5.demo import ACTIONS, Demo, datasets, described, line
from gwp.data.formats.hdf5.file import DAMAGE, member_of, opened, reason_of
from gwp.errors import DataError

T = TypeVar("T")
_DEMOS = "data"
_HOLDERS = (_DEMOS, "episodes", "demos", "demonstrations", "trajectories", "rollouts")
"""Groups at the root that may hold episodes."""
_NUMBERED = re.compile(
    r"(traj|trajectory|demo|demonstration|episode|ep|rollout|trial)s?[_-]?\d+", re.IGNORECASE
)
"""Groups that are episodes by their names: ManiSkill's `traj_0`, `episode_3`."""
_ANY_NUMBER = re.compile(r"(.*?)[_-]?\d+")
_PARTS = {
    *("", "cam", "camera", "view", "image", "img", "rgb", "depth", "video", "sensor", "imu"),
    *("robot", "arm", "hand", "finger", "gripper", "wrist", "joint", "agent", "obs", "object"),
}
"""What numbers count within an episode."""
_MASKS = "mask"
"""Where robomimic names the episodes of its splits."""
_TWO_FORMS = (
    "both {} and {} have actions: which of them is an episode cannot be told; write one form"
)


@dataclass(frozen=True)
class _Place:
    """A group, and its path in the file, which ends in a slash ("": the file itself). problem:
    why it cannot be opened.
    """

    path: str
    group: Any
    problem: str = ""

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class FileIndex:
    """Episodes of a file, the rate it states, and names of episodes by split. lost: what cannot
    be read and costs no episode.
    """

    demos: tuple[Demo, ...]
    rate: float | None
    splits: dict[str, frozenset[str]]
    lost: tuple[str, ...] = ()


def natural(name: str) -> list[Any]:
    """A key that sorts `episode_10` behind `episode_9`."""
    # Texts and numbers in turn; the first entry of a part keeps the two from being compared.
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def look(reader: FileReader, uri: str, size: int, told_by: str | None) -> FileIndex | str:
    """The index of a file, or why it cannot be used. `size` tells a file that was written
    again. told_by: attribute or column of text that says what is done, besides the usual one
    """
    lost: list[str] = []
    try:
        with opened(uri, reader, size) as file:
            holder, places = _episodes(file)
            demos = [_demo(place, told_by) for place in places]
            # robomimic and LIBERO write attributes at /data, for all of it.
            rate, text = _whole(lambda: _about(holder), "attributes", lost) or (None, "")
            splits = _whole(lambda: _splits(file), "splits", lost) or {}
    except DataError as error:
        return str(error).removeprefix(f"{uri}: ")
    # A demonstration that is named as one and holds nothing keeps its number, and is told.
    found = tuple(d for d in demos if _counts(d))
    for demo in found:
        demo.text = demo.text or text
    if not any(demo.vectors or demo.pictures for demo in found):
        problems = (demo.problem for demo in found if demo.problem)
        return next(problems, "holds no episode (neither columns and pictures nor /data/demo_*)")
    return FileIndex(found, rate, splits, tuple(lost))


def _whole(read: Callable[[], T], what: str, lost: list[str]) -> T | None:
    """What `read` gives; None and a word of it in `lost` where that is damaged."""
    try:
        return read()
    except (DataError, *DAMAGE) as error:
        lost.append(f"{what}: {reason_of(error)}")
        return None


def _counts(demo: Demo) -> bool:
    is_named = _NUMBERED.fullmatch(demo.name) is not None
    return is_named or bool(demo.vectors or demo.pictures or demo.problem)


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
        return file, inside or _numbered(file) or [whole]
    # Numbered parts of one episode, cameras say, have no actions of their own.
    if acting := [place.path for place in inside if _has_actions(place.group)]:
        raise DataError(_TWO_FORMS.format("the file itself", acting[0]))
    return file, [whole]


def _numbered(file: Any) -> list[_Place]:
    """Groups at the root whose numbered names are no known ones, where they are episodes: each
    has actions, or they are alike and the file holds nothing else. DataError where they are not
    alike: together they are no episode either.
    """
    named = [
        (found[1].lower(), place)
        for place in _groups(file, "")
        if (found := _ANY_NUMBER.fullmatch(place.name)) and found[1].lower() not in _PARTS
    ]
    acting = {stem for stem, place in named if _has_actions(place.group)}
    if acting:
        return [place for stem, place in named if stem in acting]
    forms = {place.path: _form(place) for _, place in named}
    full = {path: form for path, form in forms.items() if form}
    inside = tuple(full)
    others = (path for path, data in datasets(file, "", ()) if data.shape)
    if len(full) < 2 or not all(path.startswith(inside) for path in others):
        return []
    if len({frozenset(form) for form in full.values()}) > 1:
        raise DataError(
            f"{inside[0]} and {inside[1]} may be episodes or parts of one, for they do not hold "
            "the same; call episodes demo_0, demo_1 and so on"
        )
    return [place for _, place in named if place.path in full]


def _form(place: _Place) -> set[tuple[str, str, int]]:
    """Path, kind of numbers and sides of everything in a group; nothing where it is damaged."""
    try:
        found = datasets(place.group, "", ()) if place.group is not None else ()
        return {(path, data.dtype.kind, data.ndim) for path, data in found if data.shape}
    except (DataError, *DAMAGE):
        return set()


def _groups(group: Any, path: str) -> list[_Place]:
    """The groups in a group, and what in it cannot be opened."""
    found: list[_Place] = []
    for name in sorted(group, key=natural):
        try:
            inner = member_of(group, name)
        except (DataError, *DAMAGE) as error:
            found.append(_Place(f"{path}{name}/", None, reason_of(error)))
            continue
        if hasattr(inner, "keys"):
            found.append(_Place(f"{path}{name}/", inner))
    return found


def _is_episode(place: _Place) -> bool:
    # A bare number may be a camera, too.
    return bool(_NUMBERED.fullmatch(place.name)) or (
        place.name.isdecimal() and _has_actions(place.group)
    )


def _has_actions(group: Any) -> bool:
    """Also where they are damaged: whoever reads them tells. group: None where it cannot be
    opened
    """
    try:
        return group is not None and any(
            key in group and hasattr(member_of(group, key), "shape") for (key,) in ACTIONS
        )
    except (DataError, *DAMAGE):
        return True


def _demo(place: _Place, told_by: str | None) -> Demo:
    """The episode that a group is, or one with a problem: damage of it costs no other."""
    problem = place.problem
    if not problem:
        try:
            return described(place.group, place.path, place.name, told_by)
        except (DataError, *DAMAGE) as error:
            problem = reason_of(error)
    return Demo(place.path, place.name, problem=problem)


def _about(group: Any) -> tuple[float | None, str]:
    """Rate and instruction out of the attributes that robomimic and LIBERO write."""
    rate, text = None, line(group.attrs.get("language_instruction"))
    for name in ("env_args", "problem_info"):
        try:
            # robomimic's `env_args` have the rate, LIBERO's `problem_info` the instruction,
            # whole or as words.
            about = read_json(line(group.attrs.get(name)) or "{}")
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
        names = [line(value) for value in np.ravel(members[()])]
        # With or without the group that they lie in.
        found[name] = frozenset(entry.rpartition("/")[2] for entry in names)
    return found

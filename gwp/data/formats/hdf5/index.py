"""What an HDF5 file holds: its episodes, their columns and pictures, by names and shapes alone."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.files.texts import read_json
from gwp.data.formats.hdf5.demo import Demo, described, line, text_attribute
from gwp.data.formats.hdf5.file import DAMAGE, member_of, opened, reason_of
from gwp.data.formats.hdf5.groups import Place, episodes_in, is_numbered, passed_over
from gwp.errors import DataError

T = TypeVar("T")
RATES = ("fps", "hz", "frequency", "control_freq", "control_frequency", "control_hz", "frame_rate")
"""Attributes in which writers note a rate, Hz."""
_MASKS = "mask"
"""Where robomimic names the episodes of its splits."""


@dataclass(frozen=True)
class FileIndex:
    """Episodes of a file, the rate it states, and names of episodes by split. lost: what cannot
    be read and costs no episode. noted: rates in attributes of any name, Hz, which are compared
    and not used. passed: groups that have actions and are no episode
    """

    demos: tuple[Demo, ...]
    rate: float | None
    splits: dict[str, frozenset[str]]
    lost: tuple[str, ...] = ()
    noted: frozenset[float] = frozenset()
    passed: tuple[str, ...] = ()


def look(reader: FileReader, uri: str, size: int, told_by: str | None) -> FileIndex | str:
    """The index of a file, or why it cannot be used. `size` tells a file that was written
    again. told_by: attribute or column of text that says what is done, besides the usual one
    """
    lost: list[str] = []
    try:
        with opened(uri, reader, size) as file:
            holder, places = episodes_in(file)
            again = _again(places)
            demos = [
                Demo(place.path, place.name, same=again[place.path])
                if place.path in again
                else _demo(place, told_by)
                for place in places
            ]
            passed = _whole(lambda: passed_over(file, holder, places), "groups", lost) or ()
            # robomimic and LIBERO write attributes at /data, for all of it.
            rate, text = _whole(lambda: _about(holder), "attributes", lost) or (None, "")
            splits = _whole(lambda: _splits(file), "splits", lost) or {}
            noted = _whole(lambda: _noted((file, holder)), "attributes", lost) or frozenset()
    except DataError as error:
        return str(error).removeprefix(f"{uri}: ")
    # A demonstration that is named as one and holds nothing, or another's, keeps its number, and
    # is told.
    found = tuple(d for d in demos if _counts(d))
    for demo in found:
        demo.text = demo.text or text
    if not any(demo.vectors or demo.pictures for demo in found):
        problems = (demo.problem for demo in found if demo.problem)
        return next(problems, "holds no episode (neither columns and pictures nor /data/demo_*)")
    return FileIndex(found, rate, splits, tuple(dict.fromkeys(lost)), noted, tuple(passed))


def _whole(read: Callable[[], T], what: str, lost: list[str]) -> T | None:
    """What `read` gives; None and a word of it in `lost` where that is damaged."""
    try:
        return read()
    except (DataError, *DAMAGE) as error:
        lost.append(f"{what}: {reason_of(error)}")
        return None


def _counts(demo: Demo) -> bool:
    return is_numbered(demo.name) or not demo.is_empty or bool(demo.same)


def _again(places: Iterable[Place]) -> dict[str, str]:
    """Path of each group that another name stands for, too, and that one's path."""
    first: dict[Any, str] = {}
    again: dict[str, str] = {}
    for place in places:
        with suppress(DataError, *DAMAGE):
            # h5py compares what lies behind the links.
            own = place.path if place.group is None else first.setdefault(place.group, place.path)
            if own != place.path:
                again[place.path] = own
    return again


def _demo(place: Place, told_by: str | None) -> Demo:
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
    rate, text = None, text_attribute(group, "language_instruction")
    # That of the file is of all that lies in it.
    text = text or text_attribute(group.file, "language_instruction")
    for name in ("env_args", "problem_info"):
        try:
            # robomimic's `env_args` have the rate, LIBERO's `problem_info` the instruction,
            # whole or as words.
            about = read_json(line(group.attrs.get(name)) or "{}")
            rate = rate or _rate((about.get("env_kwargs") or {}).get("control_freq"))
            given = about.get("language_instruction", "")
            text = text or (" ".join(given) if isinstance(given, list) else str(given))
        except (ValueError, TypeError, AttributeError, RecursionError):
            continue
    return rate, text


def _noted(groups: Iterable[Any]) -> frozenset[float]:
    """Rates in attributes of these groups, Hz."""
    found: set[float] = set()
    for group in groups:
        for key in (key for key in RATES if key in group.attrs):
            value = np.ravel(group.attrs[key])
            number = value[0].item() if len(value) == 1 and value.dtype.kind in "iuf" else None
            if (rate := _rate(number)) is not None:
                found.add(rate)
    return frozenset(found)


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

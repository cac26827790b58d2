"""Which groups of an HDF5 file are episodes, by their names and by what they hold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gwp.data.formats.hdf5.demo import ACTIONS, datasets
from gwp.data.formats.hdf5.file import DAMAGE, member_of, reason_of
from gwp.errors import DataError

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
_DEEP = 2
"""Groups between one that holds episodes and those."""
_TWO_FORMS = (
    "both {} and {} have actions: which of them is an episode cannot be told; write one form"
)


@dataclass(frozen=True)
class Place:
    """A group, and its path in the file, which ends in a slash ("": the file itself). problem:
    why it cannot be opened. name: within what holds it
    """

    path: str
    group: Any
    problem: str = ""
    name: str = ""


def natural(name: str) -> list[Any]:
    """A key that sorts `episode_10` behind `episode_9`."""
    # Texts and numbers in turn; the first entry of a part keeps the two from being compared.
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def episodes_in(file: Any) -> tuple[Any, list[Place]]:
    """The group whose attributes speak for all episodes, and those that are one each. DataError
    where two places have episodes: one of them would be lost.
    """
    whole = Place("", file)
    held = [(name, *found) for name in _HOLDERS if (found := _held(file, name))]
    ways = [*held, ("", file, _at_root(file, whole))]
    acting = [way for way in ways if any(has_actions(place.group) for place in way[2])]
    if len(acting) > 1:
        one, other = (way[2][0].path or "the file itself" for way in acting[:2])
        raise DataError(_TWO_FORMS.format(one, other))
    # Without known actions, too, there may be columns that the user names.
    full = (way for way in ways if not all(is_empty(place) for place in way[2]))
    _, holder, places = next(iter(acting), next(full, ("", file, [whole])))
    return holder, places


def passed_over(file: Any, holder: Any, places: Sequence[Place]) -> list[str]:
    """Groups at the root, and in what holds the episodes, that have actions and are none."""
    taken = {place.path for place in places}
    path = holder.name.strip("/")
    beside = [*_groups(file, ""), *(_groups(holder, f"{path}/") if path else ())]
    return [
        place.path
        for place in beside
        if has_actions(place.group) and not any(t.startswith(place.path) for t in taken)
    ]


def _held(file: Any, name: str) -> tuple[Any, list[Place]] | None:
    """A group at the root with the episodes in it; None where it has none."""
    holder = member_of(file, name) if name in file else None
    if not hasattr(holder, "keys"):
        return None
    path = f"{name}/"
    inside = _inside(holder, path)
    own = has_actions(holder)
    # Whatever lies below /data is an episode; elsewhere their names have to say so.
    if name != _DEMOS or own:
        inside = [place for place in inside if _is_episode(place)]
    if inside and own:
        raise DataError(_TWO_FORMS.format(f"/{name}", inside[0].path))
    if own and name == _DEMOS:
        return holder, [Place(path, holder)]
    return (holder, inside) if inside else None


def _at_root(file: Any, whole: Place) -> list[Place]:
    """Episodes that lie in no group of a known name."""
    inside = [place for place in _groups(file, "") if _is_episode(place)]
    if not has_actions(file):
        if inside or any(name in file for name in _HOLDERS):
            return inside or _numbered(file)
        # In groups of any name, as `train/demo_0`.
        deeper = [place for place in _inside(file, "") if "/" in place.name]
        return deeper or _numbered(file) or [whole]
    # Numbered parts of one episode, cameras say, have no actions of their own.
    if acting := [place.path for place in inside if has_actions(place.group)]:
        raise DataError(_TWO_FORMS.format("the file itself", acting[0]))
    return [whole]


def _inside(group: Any, path: str, deep: int = _DEEP) -> list[Place]:
    """The groups in a group. In the place of one that is no episode, but holds some
    (`task/demo_0`), those.
    """
    found: list[Place] = []
    for place in _groups(group, path):
        deeper: list[Place] = []
        if (
            deep
            and place.group is not None
            and not _is_episode(place)
            and not has_actions(place.group)
        ):
            below = _inside(place.group, place.path, deep - 1)
            deeper = [inner for inner in below if _is_episode(inner)]
            if not any(has_actions(inner.group) for inner in deeper):
                deeper = []
        found += [replace(inner, name=f"{place.name}/{inner.name}") for inner in deeper] or [place]
    return found


def is_empty(place: Place) -> bool:
    """Whether a group holds no data at all; not so where it is damaged."""
    try:
        return place.group is not None and next(datasets(place.group, "", ()), None) is None
    except (DataError, *DAMAGE):
        return False


def _numbered(file: Any) -> list[Place]:
    """Groups at the root whose numbered names are no known ones, where they are episodes: each
    has actions, or they are alike and the file holds nothing else. DataError where they are not
    alike: together they are no episode either.
    """
    named = [
        (found[1].lower(), place)
        for place in _groups(file, "")
        if (found := _ANY_NUMBER.fullmatch(place.name)) and found[1].lower() not in _PARTS
    ]
    acting = {stem for stem, place in named if has_actions(place.group)}
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


def _form(place: Place) -> set[tuple[str, str, int]]:
    """Path, kind of numbers and sides of everything in a group; nothing where it is damaged."""
    try:
        found = datasets(place.group, "", ()) if place.group is not None else ()
        return {(path, data.dtype.kind, data.ndim) for path, data in found if data.shape}
    except (DataError, *DAMAGE):
        return set()


def _groups(group: Any, path: str) -> list[Place]:
    """The groups in a group, and what in it cannot be opened."""
    found: list[Place] = []
    for name in sorted(group, key=natural):
        try:
            inner = member_of(group, name)
        except (DataError, *DAMAGE) as error:
            found.append(Place(f"{path}{name}/", None, reason_of(error), name))
            continue
        if hasattr(inner, "keys"):
            found.append(Place(f"{path}{name}/", inner, name=name))
    return found


def _is_episode(place: Place) -> bool:
    # A bare number may be a camera, too.
    last = place.name.rpartition("/")[2]
    return is_numbered(last) or (last.isdecimal() and has_actions(place.group))


def is_numbered(name: str) -> bool:
    """Whether a group is an episode by its name."""
    return bool(_NUMBERED.fullmatch(name.rpartition("/")[2]))


def has_actions(group: Any) -> bool:
    """Also where they are damaged: whoever reads them tells. group: None where it cannot be
    opened
    """
    try:
        return group is not None and any(
            key in group and hasattr(member_of(group, key), "shape") for (key,) in ACTIONS
        )
    except (DataError, *DAMAGE):
        return True

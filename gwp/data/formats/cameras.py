"""Cameras of a set that nobody has assigned: which slot each is taken for, and which are none."""

import re
from collections.abc import Mapping
from typing import Any

from gwp.data.canvas import SLOTS
from gwp.data.robot.embodiment import Slot

_HEAD = frozenset(["head", "high"])
"""Words of the camera that sees what the robot sees: the front, where there are other views."""
_FRONT = _HEAD | {
    *("top", "front", "frontview", "exterior", "external", "ext", "ego", "egocentric", "chest"),
    *("main", "base", "overhead", "up", "bird", "birdview", "agentview", "robotview", "third"),
    *("scene", "static", "fixed", "global", "world", "workspace"),
}
"""Words of cameras that see the whole scene."""
_HAND = frozenset(["wrist", "hand", "gripper", "eih", "handeye", "eyeinhand"])
"""Words of cameras that a hand carries."""
_SIDES: tuple[Slot, ...] = ("left", "right")
_PLAIN = frozenset(["rgb", "color", "colors", "image", "images", "data", "frames", "video"])
"""Ends of names that say what a camera gives, not which it is."""
_DEEP = frozenset({"uint16", "int16", "uint32", "int32", "float16", "float32", "float64"})
"""Types of numbers that pictures of depth are made of; colours are uint8."""


def is_depth(camera: str, about: Mapping[str, Any]) -> bool:
    """Whether a camera gives depth, by its name or by what its set says of it."""
    if "depth" in camera.lower():
        return True
    stated = about.get("info") or about.get("video_info") or {}
    flags = {**about, **stated} if isinstance(stated, Mapping) else about
    if flags.get("video.is_depth_map") or flags.get("is_depth_map"):
        return True
    if about.get("dtype") in _DEEP:
        return True
    shape = about.get("shape")
    if isinstance(shape, Mapping):
        shape = shape.get("dimensions")
    # One channel, at either end. Sides of a picture are never 1.
    sides = [str(n) for n in shape] if isinstance(shape, (list, tuple)) else []
    return len(sides) == 3 and "1" in (sides[0], sides[-1])


def colour_cameras(cameras: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those that do not give depth, in the order of the set."""
    return [camera for camera, about in cameras.items() if not is_depth(camera, about)]


def slot_named(camera: str) -> Slot | None:
    """The slot that the name of a camera speaks of: `cam_high` is the front, `cam_left_wrist`
    the left; None where it says nothing.
    """
    words = _words(camera)
    # The lens of a stereo camera (`exterior_1_left`) is no side of the robot.
    if words & _FRONT and not words & _HAND:
        return "front"
    # A hand without a side takes the first slot that is left, in `default_slots`.
    return next((slot for slot in _SIDES if slot in words), None)


def _words(camera: str) -> set[str]:
    """The words of the part of a name that says which camera it is."""
    parts = re.split(r"[./]", camera)
    telling = [part for part in parts if part.lower() not in _PLAIN] or parts
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", telling[-1])}


def _rank(camera: str) -> int:
    """0 for those that a slot is meant for: the head for the front, hands for the sides."""
    words = _words(camera)
    meant = words & set(_SIDES) if words & _HAND else words & _HEAD
    return 0 if meant else 1


def _in_hand(camera: str) -> bool:
    return bool(_words(camera) & _HAND)


def default_slots(cameras: Mapping[str, Mapping[str, Any]]) -> dict[Slot, str]:
    """Slot -> camera of a set that names none: by the names, then in the order of the set. As
    many as there are slots; a camera of depth never.
    """
    given = colour_cameras(cameras)
    slots: dict[Slot, str] = {}
    # A robot with one camera has the front alone, whatever it is called.
    if len(given) == 1:
        return {"front": given[0]}
    for camera in sorted(given, key=_rank):
        slot = slot_named(camera)
        if slot is not None and slot not in slots:
            slots[slot] = camera
    rest = [camera for camera in given if camera not in slots.values()]
    # Hands go last, so that another camera is the front, if there is one.
    for camera in sorted(rest, key=_in_hand):
        free = [slot for slot in SLOTS if slot not in slots]
        own = [slot for slot in free if slot in _words(camera)]
        if free:
            slots[(own if own and "front" in slots else free)[0]] = camera
    return {slot: slots[slot] for slot in SLOTS if slot in slots}

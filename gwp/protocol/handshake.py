"""What a robot and an endpoint have to agree on before the first action moves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_ORDERED = ("action_names", "state_names")
_UNITS = ("action_units", "state_units")
LISTS = ("cameras", *_ORDERED, *_UNITS)
"""Fields that hold several names; in a URL they are joined by commas."""
FIELDS = ("embodiment", "fps", *LISTS)
"""What a robot may announce: of the connection URL's query (lists joined by commas) and of
`Client(expect=...)`.
"""
_SAME_UNIT = {
    "radian": "rad",
    "radians": "rad",
    "degree": "deg",
    "degrees": "deg",
    "°": "deg",
    "metre": "m",
    "metres": "m",
    "meter": "m",
    "meters": "m",
    "millimetre": "mm",
    "millimetres": "mm",
    "millimeter": "mm",
    "millimeters": "mm",
}
"""Other words for a unit."""


def short_name(key: str) -> str:
    """A camera or state key without the prefixes that data sets and protocols put before it.

    `observation.images.top`, `observation/top`, `images/top`, `video.top` and `top` all name the
    camera `top`.
    """
    name = key.replace("/", ".")
    for prefix in ("observation.", "images.", "video."):
        name = name.removeprefix(prefix)
    return name


def unit_name(unit: str) -> str:
    """A unit in its short form: `radians` is `rad`."""
    plain = unit.strip().lower()
    return _SAME_UNIT.get(plain, plain)


def mismatch(robot: Mapping[str, Any], offer: Mapping[str, Any]) -> str | None:
    """One line naming what the robot announces and the policy was not trained for; None when
    all of it fits.

    robot: any of `fps` (Hz), `action_names`, `state_names` (in order), `action_units`,
    `state_units` (one per name), `cameras` (the robot may have more).
    offer: the same fields of one embodiment, from the endpoint's metadata.
    """
    return (
        _other_rate(robot.get("fps"), offer)
        or next(filter(None, (_other_names(robot, offer, field) for field in _ORDERED)), None)
        or next(filter(None, (_other_units(robot, offer, field) for field in _UNITS)), None)
        or _missing_cameras(robot.get("cameras"), offer)
    )


def _other_rate(fps: Any, offer: Mapping[str, Any]) -> str | None:
    if fps is None:
        return None
    rate, wanted = float(fps), float(offer["fps"])
    # Nothing is ever further from a number than NaN is, so it would pass for the same.
    if not math.isfinite(rate) or rate <= 0:
        return (
            f"fps: {rate:g} is no rate; announce the control rate in Hz, {wanted:g} for this policy"
        )
    # A rate that went through text or a division is still the same rate.
    if abs(rate - wanted) > 1e-3 * wanted:
        return (
            f"the robot runs at {rate:g} Hz, the policy at {wanted:g} "
            "Hz; run the control loop at that rate"
        )
    return None


def _other_names(robot: Mapping[str, Any], offer: Mapping[str, Any], field: str) -> str | None:
    names = robot.get(field)
    if names is None:
        return None
    if wrong := _empty(names, field, offer[field]):
        return wrong
    theirs, ours = list(names), list(offer[field])
    if theirs == ours:
        return None
    # In another order the right numbers would move the wrong joints.
    if sorted(theirs) == sorted(ours):
        at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        what = f"entry {at} is {theirs[at]} and not {ours[at]}"
    else:
        extra = [name for name in theirs if name not in ours]
        lacking = [name for name in ours if name not in theirs]
        parts = [f"only the robot has {_line(extra)}"] if extra else []
        parts += [f"only the policy has {_line(lacking)}"] if lacking else []
        what = ", ".join(parts) or f"{len(theirs)} names, not {len(ours)}"
    return (
        f"{field} of the robot: {_line(theirs)}; of the policy: {_line(ours)}; names and order "
        f"must be the same ({what})"
    )


def _other_units(robot: Mapping[str, Any], offer: Mapping[str, Any], field: str) -> str | None:
    units = robot.get(field)
    ours = list(offer.get(field) or ())
    names = list(offer.get(field.replace("units", "names")) or ())
    # A policy that does not state its units cannot be compared.
    if units is None or not ours or len(ours) != len(names):
        return None
    if isinstance(units, str) or not all(isinstance(unit, str) for unit in units):
        return f"{field}: a list of units is expected: {_line(ours)}"
    theirs = list(units)
    if len(theirs) != len(ours):
        return f"{field}: {len(theirs)} of them, the policy has {len(ours)}: {_line(ours)}"
    different = [
        f"{name} in {a}, the policy in {b}"
        for name, a, b in zip(names, theirs, ours, strict=True)
        # One that is left empty is not stated.
        if a.strip() and b.strip() and unit_name(a) != unit_name(b)
    ]
    return f"{field}: the robot has {'; '.join(different)}; convert them" if different else None


def _missing_cameras(cameras: Any, offer: Mapping[str, Any]) -> str | None:
    if cameras is None:
        return None
    if wrong := _empty(cameras, "cameras", offer["cameras"]):
        return wrong
    # Robots and data sets disagree on prefixes.
    owned = {short_name(name) for name in cameras}
    missing = [name for name in offer["cameras"] if short_name(name) not in owned]
    if missing:
        return f"the policy needs camera {_line(missing)}; the robot has {_line(cameras)}"
    return None


def _empty(names: Any, field: str, wanted: Sequence[str]) -> str | None:
    """What is wrong with a list of names before it is compared."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        return f"{field}: a list of names is expected: {_line(wanted)}"
    if not names or not all(name.strip() for name in names):
        return f"{field}: announced with an empty name; the policy has {_line(wanted)}"
    return None


def _line(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"

"""What a robot and an endpoint have to agree on before the first action moves."""

from collections.abc import Mapping, Sequence
from typing import Any

_ORDERED = ("action_names", "state_names")
FIELDS = ("embodiment", "fps", "cameras", *_ORDERED)
"""What a robot may announce: of the connection URL's query (lists joined by commas) and of
`Client(expect=...)`.
"""


def short_name(key: str) -> str:
    """A camera or state key without the prefixes that data sets and protocols put before it.

    `observation.images.top`, `observation/top`, `images/top` and `top` all name the camera `top`.
    """
    name = key.replace("/", ".")
    for prefix in ("observation.", "images."):
        name = name.removeprefix(prefix)
    return name


def mismatch(robot: Mapping[str, Any], offer: Mapping[str, Any]) -> str | None:
    """One line naming what the robot announces and the policy was not trained for; None when
    all of it fits.

    robot: any of `fps` (Hz), `action_names`, `state_names` (in order), `cameras` (the robot may
    have more).
    offer: the same fields of one embodiment, from the endpoint's metadata.
    """
    fps = robot.get("fps")
    # A rate that went through text or a division is still the same rate.
    if fps is not None and abs(float(fps) - float(offer["fps"])) > 1e-3 * float(offer["fps"]):
        return (
            f"the robot runs at {float(fps):g} Hz, the policy at {float(offer['fps']):g} "
            "Hz; run the control loop at that rate"
        )
    # In another order the right numbers would move the wrong joints.
    for field in _ORDERED:
        names = robot.get(field)
        if names is not None and list(names) != list(offer[field]):
            return (
                f"{field} of the robot: {_line(names)}; of the policy: "
                f"{_line(offer[field])}; names and order must be the same"
            )
    cameras = robot.get("cameras")
    if cameras is not None:
        # Robots and data sets disagree on prefixes.
        owned = {short_name(name) for name in cameras}
        missing = [name for name in offer["cameras"] if short_name(name) not in owned]
        if missing:
            return f"the policy needs camera {_line(missing)}; the robot has {_line(cameras)}"
    return None


def _line(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"

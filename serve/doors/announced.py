"""What a robot says of itself in the query of its address."""

from collections.abc import Mapping
from typing import Any

from gwp.errors import ObservationError
from gwp.protocol.handshake import FIELDS, LISTS


def announced(query: Mapping[str, str]) -> dict[str, Any]:
    """What a robot says of itself in the query of its URL.

    For instance `?embodiment=...&fps=50&action_names=a,b&cameras=top,wrist`.
    """
    robot: dict[str, Any] = {name: query[name] for name in FIELDS if name in query}
    if "fps" in robot:
        try:
            robot["fps"] = float(robot["fps"])
        except ValueError as error:
            raise ObservationError(
                f"fps: '{robot['fps'][:32]}' is no number; write the control rate in Hz"
            ) from error
    for name in LISTS:
        if name in robot:
            # An empty name is kept: whoever compares says that it is none.
            robot[name] = [part.strip() for part in robot[name].split(",")]
    return robot

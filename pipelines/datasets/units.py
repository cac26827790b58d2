"""Which numbers of a set look as if they were of another unit than they are called, or than their
like. Nothing is changed: the user decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gwp.data.formats.finding import Finding
from gwp.data.robot.units import apart_by_unit, other_unit

_ADVICE = "look which unit it is before `kinds`, `limits` or a robot are made of it"
_BOTH = "bring both to one unit, and take no delta of it before"


def check_units(dimensions: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A finding per dimension whose name says another unit than its range, and one per name of
    which state and action are as far apart as radians and degrees. dimensions: as in
    `VectorCheck`
    """
    for row in dimensions:
        if strange := other_unit(row["name"], row["min"], row["max"]):
            yield Finding(f"{row['of']} {row['name']}", strange, "ignored", _ADVICE)
    ranges = {(row["of"], row["name"]): (row["min"], row["max"]) for row in dimensions}
    for (of, name), action in ranges.items():
        state = ranges.get(("state", name))
        if of == "action" and state is not None and apart_by_unit(state, action):
            what = (
                f"goes from {action[0]:.4g} to {action[1]:.4g}, the state of that name from "
                f"{state[0]:.4g} to {state[1]:.4g}: one of them looks like degrees, one like radians"
            )
            yield Finding(f"action {name}", what, "ignored", _BOTH)

"""Splits that info.json of a LeRobot set names."""

from typing import Any

from gwp.data.formats.lerobot.meta.places import INFO
from gwp.data.ranges import parse_ranges
from gwp.errors import DataError


def split_of(uri: str, info: dict[str, Any], name: str, numbers: list[int]) -> set[int]:
    """Which of these episodes are of a split. DataError when it is not there, or is empty.

    numbers: of all episodes of the set
    """
    splits = info.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise DataError(
            f"{uri}: the set names no splits; remove `split` and choose with `episodes`"
        )
    if name not in splits:
        raise DataError(f"{uri}: no split '{name}'; the set has {', '.join(map(str, splits))}")
    try:
        parts = parse_ranges(str(splits[name]))
    except ValueError as error:
        raise DataError(
            f"{uri}: split '{name}' in {INFO} is {splits[name]!r}; it has to be as '0:90' (end "
            "excluded), so correct it or choose with `episodes`"
        ) from error
    chosen = {n for n in numbers if any(n in part for part in parts)}
    if not chosen:
        raise DataError(
            f"{uri}: split '{name}' ({splits[name]}) holds none of the {len(numbers)} episodes; "
            f"correct it in {INFO}"
        )
    return chosen

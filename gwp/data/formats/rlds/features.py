"""features.json of a TFDS set: which features its records have."""

from collections.abc import Iterator
from math import prod
from typing import Any

_WIDEST = 1 << 16
"""Numbers per step of the widest vector; what is wider is a map or a cloud of points."""


def leaves_of(feature: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and description of each feature that is stored; of sequences only the steps, whose
    values lie one after another. TypeError where something else than a description is.
    """
    if not isinstance(feature, dict):
        raise TypeError(name)
    if "featuresDict" in feature:
        for key, inner in feature["featuresDict"]["features"].items():
            yield from leaves_of(inner, f"{name}/{key}" if name else key)
    elif "sequence" in feature:
        # The outer sequence are the steps; others are lists of any length.
        if name == "steps":
            yield from leaves_of(feature["sequence"]["feature"], name)
    else:
        yield name, feature


def _dimensions(about: dict[str, Any]) -> list[int]:
    return [int(d) for d in (about.get("shape") or {}).get("dimensions", [])]


def width_of(leaf: dict[str, Any]) -> int:
    """Numbers per step; 0 for what is no vector of a fixed width."""
    about = leaf.get("tensor")
    if (
        not isinstance(about, dict)
        or about.get("encoding", "none") != "none"
        or about.get("dtype") == "string"
    ):
        return 0
    # An unknown side is -1; no dimensions at all are a scalar, of width 1.
    sides = _dimensions(about)
    width = prod(sides)
    return width if min(sides, default=1) > 0 and width <= _WIDEST else 0


def is_text(leaf: dict[str, Any]) -> bool:
    """Whether it is a text, of the episode or of each step."""
    if "text" in leaf:
        return True
    about = leaf.get("tensor")
    if not isinstance(about, dict):
        return False
    return about.get("dtype") == "string" and not _dimensions(about)


def is_picture(leaf: dict[str, Any]) -> bool:
    about = leaf.get("image")
    return (
        isinstance(about, dict)
        and about.get("dtype", "uint8") == "uint8"
        # Three channels, or a shape that is not stated: depth and alpha are left out.
        and _dimensions(about)[2:] in ([], [3])
    )

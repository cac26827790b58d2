"""Whole numbers as metadata write them: 3, 3.0 or "3"."""

from math import isfinite
from typing import Any


def whole(value: Any) -> int:
    """The whole number. ValueError when it is none."""
    number = whole_or_none(value)
    if number is None:
        raise ValueError(f"{value!r} is no whole number")
    return number


def whole_or_none(value: Any) -> int | None:
    """The whole number; None when it is none."""
    if isinstance(value, int):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if isfinite(number) and number == round(number) else None

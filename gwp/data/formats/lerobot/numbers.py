"""Whole numbers as metadata write them: 3, 3.0 or "3"."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from gwp.storage.names import shown

_LARGEST = 10**9
"""Of episodes, rows and files: more are none."""


def whole_or_none(value: Any) -> int | None:
    """The whole number; None when it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if isfinite(number) and number == round(number) else None


def count_or_none(value: Any) -> int | None:
    """The whole number, from 0 on; None when it is none, or more than anything is counted to."""
    number = whole_or_none(value)
    return number if number is not None and 0 <= number <= _LARGEST else None


def count_in(row: Mapping[str, Any], key: str) -> int:
    """The number that a row has under a key, from 0 on. ValueError with what is wrong there."""
    if key not in row:
        raise ValueError(f"no {key}")
    number = count_or_none(row[key])
    if number is None:
        raise ValueError(f"{key} {shown(repr(row[key]))} is no whole number from 0 on")
    return number


def seconds_in(row: Mapping[str, Any], key: str) -> float:
    """The time that a row has under a key. ValueError with what is wrong there."""
    if key not in row:
        raise ValueError(f"no {key}")
    try:
        seconds = float(row[key])
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    # NaN is no such time, either.
    if not abs(seconds) <= _LARGEST:
        raise ValueError(f"{key} {shown(repr(row[key]))} is no time in seconds")
    return seconds

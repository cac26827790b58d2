"""Single fields of a request, read strictly: the value, or one line that names the field."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gwp.errors import ObservationError

MAX_NAME = 256
"""Longest name, characters."""
_MAX_ID = 64


def text(message: Mapping[str, Any], key: str) -> str | None:
    """A name of one line; None where it is not there."""
    value = message.get(key)
    return None if value is None else as_name(key, value)


def as_text(key: str, value: object, longest: int = MAX_NAME) -> str:
    """Text of up to `longest` characters."""
    if not isinstance(value, str) or len(value) > longest:
        raise ObservationError(
            f"{key}: got {type(value).__name__}, expected text of up to {longest} characters"
        )
    return value


def as_name(key: str, value: object, longest: int = MAX_NAME) -> str:
    """Text of one line, as logs and errors show it."""
    name = as_text(key, value, longest)
    if not name.isprintable():
        raise ObservationError(f"{key}: holds control characters; send a plain name")
    return name


def one_text(message: Mapping[str, Any], *keys: str) -> str:
    """A name under one of several names of its field; "" where there is none.

    ObservationError where two of them say different things.
    """
    given = {key: value for key in keys if (value := text(message, key))}
    if len(set(given.values())) > 1:
        raise ObservationError(f"{' and '.join(given)} say different things; send one of them")
    return next(iter(given.values()), "")


def integer(message: Mapping[str, Any], key: str, least: int | None = None) -> int | None:
    """A whole number, not below `least`; None where it is not there."""
    value = message.get(key)
    if value is None:
        return None
    # To Python True is the number 1.
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ObservationError(f"{key}: got {type(value).__name__}, expected a whole number")
    if least is not None and value < least:
        raise ObservationError(f"{key}: got {int(value)}, expected {least} or more")
    return int(value)


def positive(message: Mapping[str, Any], key: str, unit: str = "seconds") -> float | None:
    """A finite number above 0; None where it is not there."""
    value = message.get(key)
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    # Integers of msgpack are no longer than 64 bits, which a float can hold.
    if not is_number or not 0 < float(value) < float("inf"):
        raise ObservationError(f"{key}: expected a positive number of {unit}")
    return float(value)


def request_id(message: Mapping[str, Any]) -> str | int | None:
    """What the robot calls its request; None where it does not."""
    value = message.get("request_id")
    if value is None or (isinstance(value, str) and len(value) <= _MAX_ID):
        return None if value is None else as_name("request_id", value)
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    raise ObservationError(
        f"request_id: got {type(value).__name__}, expected text of up to {_MAX_ID} characters or "
        "a whole number"
    )


def squeezed(value: Any, axes: int) -> Any:
    """An array without leading axes of length 1 that it has beyond `axes`; others as they are."""
    while isinstance(value, np.ndarray) and value.ndim > axes and value.shape[0] == 1:
        value = value[0]
    return value

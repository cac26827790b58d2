"""Several observations in one message: a list of requests, or arrays with a leading axis."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from gwp.errors import ObservationError, ProtocolError
from serve.messages.requests import PROMPTS, Entry, entries, is_picture

Form = Literal["one", "batch", "stacked"]
"""How requests came, and so how they are answered: one by itself, a list, a leading axis."""

MOST = 64
"""Most observations of one message."""
_BESIDE = frozenset(("batch", "endpoint", "request_id"))
# Field -> axes of one observation's.
_AXES = {"prefix_actions": 2, "executed_action": 1}
_PICTURE, _STATE = 3, 1
_SHARED = frozenset(("endpoint", "request_id"))


class Split(NamedTuple):
    """Requests of one message, in order, and how they came."""

    requests: list[Any]
    form: Form


def split(message: object, most: int = MOST) -> Split:
    """The requests of one message. They are not checked yet: each has errors of its own.

    ProtocolError or ObservationError for what concerns all of them: a batch that is no list, or
    longer than `most`, or arrays of different lengths.
    """
    if not isinstance(message, dict):
        return Split([message], "one")
    if "batch" in message:
        return Split(_listed(message, most), "batch")
    if not all(isinstance(key, str) for key in message):
        return Split([message], "one")
    # From here on it is walked through.
    size = _size([entry for entry in entries(message) if _is_state(entry)])
    if size is None:
        return Split([message], "one")
    if size > most:
        raise ProtocolError(f"batch: {size} observations, up to {most} are answered together")
    for entry in entries(message):
        if is_picture(_first(entry.value)) and _length(entry.value, _PICTURE) != size:
            raise ObservationError(
                f"{entry.key}: has no leading axis of {size} as the state has; send every picture "
                "and the state of as many observations"
            )
    return Split([_part(message, i, size) for i in range(size)], "stacked")


def _listed(message: Mapping[Any, Any], most: int) -> list[Any]:
    batch = message["batch"]
    if not isinstance(batch, list) or not batch:
        raise ProtocolError("batch: expected a list of request maps")
    if len(batch) > most:
        raise ProtocolError(f"batch: {len(batch)} requests, up to {most} are answered together")
    if beside := [str(key)[:64] for key in message if key not in _BESIDE]:
        raise ProtocolError(f"{beside[0]}: stands beside `batch`; put it into each request")
    return batch


def _is_state(entry: Entry) -> bool:
    return entry.name == "state" or entry.name.startswith("state.")


def _size(states: list[Entry]) -> int | None:
    """Observations that a state says it is of; None: one."""
    sizes = {_length(entry.value, _STATE) for entry in states}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if size is not None and size > 1 else None


def _length(value: Any, axes: int) -> int | None:
    """Length of the axis before the `axes` that one observation has; None where there is none."""
    if isinstance(value, list):
        return len(value) if value and isinstance(value[0], (list, bytes, np.ndarray)) else None
    return len(value) if isinstance(value, np.ndarray) and value.ndim > axes else None


def _first(value: Any) -> Any:
    """Of a list of pictures the first one."""
    return value[0] if isinstance(value, list) and value else value


def _part(value: Any, i: int, size: int, key: str = "") -> Any:
    """What observation `i` has of a value of all of them."""
    if isinstance(value, dict):
        return {
            name: inner if name in _SHARED else _part(inner, i, size, _joined(key, name))
            for name, inner in value.items()
        }
    name = key.replace("/", ".").removeprefix("observation.")
    if isinstance(value, list):
        # One for each, as texts of instructions and seeds; a state of one robot is no such list.
        each = len(value) == size and (name in PROMPTS or not _is_row(value, name))
        return value[i] if each else value
    if isinstance(value, np.ndarray) and value.ndim and len(value) == size:
        axes = _AXES.get(name, _PICTURE if is_picture(value) else _STATE)
        # Single numbers of each: seeds, delays.
        single = value.ndim == 1 and name not in _AXES and not name.startswith("state")
        return value[i].item() if single else value[i] if value.ndim > axes else value
    return value


def _is_row(value: list[Any], name: str) -> bool:
    """Whether a list is the vector of one observation."""
    return (name.startswith("state") or name in _AXES) and not isinstance(
        value[0], (list, np.ndarray)
    )


def _joined(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)

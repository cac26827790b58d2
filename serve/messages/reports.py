"""What a robot reports of itself, read strictly."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gwp.errors import ObservationError
from gwp.protocol.fields import unknown
from gwp.protocol.report import COUNTS, MOST, MOST_AGE_S, NAMES, Report


def report_of(message: Mapping[str, Any]) -> Report | None:
    """The `report` of a request; None where there is none, or it says nothing."""
    given = message.get("report")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ObservationError(
            f"report: got {type(given).__name__}, expected a map with any of {', '.join(NAMES)}"
        )
    for name in given:
        if name not in NAMES:
            raise ObservationError(f"report.{unknown(str(name), NAMES)}")
    counts = {name: _count(name, given[name]) for name in COUNTS if name in given}
    report = Report(**counts, age_s=_age(given.get("age_s")))
    return None if report == Report() else report


def _count(name: str, value: object) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 <= value <= MOST:  # type: ignore[operator]
        raise ObservationError(f"report.{name}: expected a whole number of 0 to {MOST}")
    return int(value)  # type: ignore[call-overload]


def _age(value: object) -> float | None:
    if value is None:
        return None
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= MOST_AGE_S:  # type: ignore[arg-type]
        raise ObservationError(f"report.age_s: expected 0 to {MOST_AGE_S:g} seconds")
    return float(value)  # type: ignore[arg-type]

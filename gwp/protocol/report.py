"""What a robot tells of its own: what it did since it told before, which no endpoint can see."""

from dataclasses import dataclass, fields
from typing import Any

MOST = 1_000_000
"""Most that a count may be: some minutes of a robot at any rate."""
MOST_AGE_S = 86_400.0


@dataclass(frozen=True)
class Report:
    """Of the control steps, chunks and requests since the report before.

    executed: steps that executed a row of a chunk
    blended:  of those, steps in which a chunk was taking over from another
    held:     steps without a row: the last action again, or standing still
    dry:      times that the rows ran out
    skipped:  steps that passed without an action, because the control loop was late
    late:     replies that came later than was promised
    failed:   requests without a chunk
    age_s:    of the oldest observation behind an executed row, seconds; None: there was none
    """

    executed: int = 0
    blended: int = 0
    held: int = 0
    dry: int = 0
    skipped: int = 0
    late: int = 0
    failed: int = 0
    age_s: float | None = None

    def __add__(self, other: "Report") -> "Report":
        counts = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        ages = [age for age in (self.age_s, other.age_s) if age is not None]
        return Report(**counts, age_s=max(ages, default=None))

    def to_map(self) -> dict[str, Any]:
        """As it travels: what says something, within the bounds of those who read it."""
        counts = {name: min(getattr(self, name), MOST) for name in COUNTS if getattr(self, name)}
        age = {} if self.age_s is None else {"age_s": min(max(self.age_s, 0.0), MOST_AGE_S)}
        return counts | age


COUNTS = tuple(field.name for field in fields(Report) if field.name != "age_s")
NAMES = (*COUNTS, "age_s")

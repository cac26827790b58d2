"""Episodes as text: `0:100` (end excluded), `0,3,5`, or both mixed."""

import re
from collections.abc import Iterable


def parse_ranges(text: str) -> list[range]:
    """`0:100` (end excluded), `0,3,5`, or both mixed. Raises ValueError."""
    parts = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?::(\d+))?", part.strip())
        # Empty, like `5:5`: both are refused below.
        chosen = range(int(found[1]), int(found[2] or int(found[1]) + 1)) if found else range(0)
        if not chosen:
            raise ValueError(f"cannot read '{part}'; write `0:100` or `0,3,5`")
        parts.append(chosen)
    return parts


def as_ranges(numbers: Iterable[int]) -> str:
    """The inverse of `parse_ranges`: `0:100,105`; empty where there are no numbers."""
    # Begin and end (excluded) of numbers in a row; statistics note their episodes in this
    # form.
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and runs[-1][1] == n:
            runs[-1][1] = n + 1
        else:
            runs.append([n, n + 1])
    return ",".join(f"{begin}:{end}" if end > begin + 1 else str(begin) for begin, end in runs)

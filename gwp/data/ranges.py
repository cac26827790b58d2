"""Episodes as text: `0:100` (end excluded), `3:80:8` (every eighth), `0,3,5`, or a mixture."""

import re
import sys
from collections.abc import Iterable
from itertools import islice

_RANGE = re.compile(r"(\d+)(?:(:)(\d+)?(?::(\d+))?)?")


def parse_ranges(text: str, *, open_ended: bool = False) -> list[range]:
    """`0:100` (end excluded), `3:80:8` (every eighth), `0,3,5`, or a mixture. Raises ValueError.

    open_ended: also `3:` and `3::8`, which have no end
    """
    parts = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        chosen = _range(found, open_ended) if found else range(0)
        # Empty, like `5:5` and the steps of `0:9:0`.
        if not chosen:
            form = "`0:100`, `3::8` or `0,3,5`" if open_ended else "`0:100` or `0,3,5`"
            raise ValueError(f"cannot read '{part}'; write {form}")
        parts.append(chosen)
    return parts


def _range(found: re.Match[str], open_ended: bool) -> range:
    begin, colon, end, step = found.groups()
    first = int(begin)
    if not colon:
        return range(first, first + 1)
    if step is not None and not int(step):
        return range(0)
    if end is None and not open_ended:
        return range(0)
    return range(first, sys.maxsize if end is None else int(end), int(step or 1))


def meet(one: range, other: range) -> bool:
    """Whether two ranges of `parse_ranges` hold a number both."""
    one, other = sorted((one, other), key=lambda part: part.step, reverse=True)
    low = max(one.start, other.start)
    late = -(-(low - one.start) // one.step)
    # Steps of the one fall into the same places between steps of the other again and again.
    there = range(one.start + late * one.step, one.stop, one.step)
    return any(number in other for number in islice(there, other.step))


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

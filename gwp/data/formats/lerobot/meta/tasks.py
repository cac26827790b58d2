"""What the robot was told: instructions of a LeRobot set, by episode and by row."""

from collections.abc import Iterable, Mapping
from typing import Any

from gwp.data.formats.lerobot.numbers import whole_or_none

QUALITY_LABELS = frozenset({"qualified", "unqualified", "success", "failure", "valid", "invalid"})
"""Entries of an episode's `tasks` that judge it instead of saying what to do."""


def named_tasks(tasks: Any, table: Mapping[int, str]) -> tuple[str, ...]:
    """The instructions that an episode's `tasks` name, in order.

    Texts in the files of LeRobot; numbers of the table, or one of either kind without a list, in
    some conversions.
    """
    given = tasks if isinstance(tasks, (list, tuple)) else [tasks]
    texts = [text_of(task, table) for task in given]
    return tuple(text for text in texts if says_something(text))


def text_of(task: Any, table: Mapping[int, str]) -> str:
    """The text of one task: its own, or that of its number in the table; "" where there is none."""
    number = whole_or_none(task)
    # A number as text is one of the table, unless it is not there.
    if number is not None and (number in table or not isinstance(task, str)):
        return table.get(number, "")
    return task if isinstance(task, str) else ""


def says_something(text: str) -> bool:
    """Whether a text is an instruction: not empty, and no judgement."""
    return bool(text.strip()) and text.strip().lower() not in QUALITY_LABELS


def instruction(tasks: Any, table: Mapping[int, str]) -> str:
    """Of an episode: the first that it names; the set's only one where it names none."""
    named = named_tasks(tasks, table)
    if named:
        return named[0]
    # Nothing is named, which is not the same as labels alone.
    return next(iter(table.values())) if not tasks and len(table) == 1 else ""


def by_row(
    runs: Iterable[tuple[int, Any]], table: Mapping[int, str], text: str
) -> tuple[tuple[int, str], ...]:
    """First row and instruction of each stretch of rows that have one instruction.

    runs: first row and value of each run of the column that says what is done; text: in place
    of what says nothing
    """
    told: list[tuple[int, str]] = []
    for row, value in runs:
        own = text_of(value, table)
        own = own if says_something(own) else text
        if not told or told[-1][1] != own:
            told.append((row, own))
    return tuple(told)

"""What the robot was told, where a set says it for each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gwp.data.formats.finding import Finding
from gwp.storage.names import shown_all

Stretches = tuple[tuple[int, str], ...]
"""First row and instruction of each stretch of rows that have one."""


@dataclass(frozen=True)
class ToldBy:
    """The column of a source's `instruction` (None: the usual one), and the episodes in which it
    says nothing in some row.
    """

    column: str | None = None
    silent: tuple[int, ...] = ()

    def findings(self) -> Iterable[Finding]:
        if self.column and self.silent:
            what = f"rows without a text in episodes {shown_all(map(str, self.silent))}"
            yield Finding(self.column, what, "ignored", "the usual instruction stands there")


def stretches(said: Sequence[str], otherwise: str) -> tuple[str, Stretches]:
    """The first instruction, and the stretches where rows have several (else none).

    said: of each row; otherwise: in place of what says nothing
    """
    found: list[tuple[int, str]] = []
    for row, text in enumerate(said):
        told = text if text.strip() else otherwise
        if not found or found[-1][1] != told:
            found.append((row, told))
    first = found[0][1] if found else otherwise
    return first, tuple(found) if len(found) > 1 else ()

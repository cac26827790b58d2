"""Columns that could be the state or the action as well as those that are taken."""

import re
from collections.abc import Collection, Iterator, Sequence

from gwp.data.formats.finding import Finding
from gwp.storage.names import shown_all

_CALLED = {
    "state": frozenset({"state", "proprio", "qpos"}),
    "action": frozenset({"action", "actions"}),
}
"""Last words of the columns that somebody may mean. `states` are those of a simulator mostly."""
_FOLLOWING = "next"
"""First word of columns that are of the next step."""


def passed_over(
    what: str,
    given: Collection[str] | None,
    taken: Sequence[str],
    usual: Sequence[tuple[str, ...]],
    have: Sequence[str],
) -> Iterator[Finding]:
    """A finding where several columns could be what a source has not named.

    what: `state` or `action`; given: columns that the source names; taken: those that are used;
    usual: of the format, in the order of their choice; have: all columns
    """
    if given or not taken:
        return
    whole = [option for option in usual if set(option) <= set(have) and option != tuple(taken)]
    alike = [(key,) for key in have if key not in taken and _may_be(key, what)]
    others = ["+".join(option) for option in dict.fromkeys((*whole, *alike))]
    if others:
        found = f"{' and '.join(taken)} is taken, not {shown_all(others)}"
        names = others[0].replace("+", ",")
        advice = f"`{what}` of the source (`--{what} {names}`) takes another"
        yield Finding(what, found, "ignored", advice)


def _may_be(key: str, what: str) -> bool:
    words = re.split(r"[./]", key.lower())
    return words[-1] in _CALLED[what] and not any(word.startswith(_FOLLOWING) for word in words)

"""Findings as people read them: grave ones first, those alike as one."""

import re
from collections.abc import Sequence
from typing import Any, get_args

from gwp.data.formats.finding import Consequence

_GRAVE: tuple[str, ...] = get_args(Consequence)
"""From what costs the whole set to what costs nothing."""
_LOSSES = _GRAVE[:2]
_NAMED = 12
"""Episodes, dimensions or files that a group names."""
_NUMBER = re.compile(r"\d+(\.\d+)?")
_KINDS = {"episode": "episodes", "state": "dimensions", "action": "dimensions"}
"""First word of an item -> what several of them are."""


def graver_first(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings by what follows from them, else in their order."""
    return sorted(findings, key=lambda finding: _GRAVE.index(finding["consequence"]))


def grouped(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Findings that differ in nothing but where they are and in numbers, as one each; its
    `item` counts and names them.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for finding in graver_first(findings):
        kind = _NUMBER.sub("#", finding["what"])
        groups.setdefault((finding["consequence"], kind, finding["advice"]), []).append(finding)
    return [_as_one(group) for group in groups.values()]


def at_most(groups: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The first of `groups`; more than `most` where more of them cost something."""
    losses = sum(group["consequence"] in _LOSSES for group in groups)
    return list(groups[: max(most, losses)])


def _as_one(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = group[0]
    if len(group) == 1:
        return first
    items = list(dict.fromkeys(finding["item"] for finding in group))
    kinds = {_KINDS.get(item.partition(" ")[0], "places") for item in items}
    # Of episodes the numbers are enough.
    kind = kinds.pop() if len(kinds) == 1 else "places"
    names = [item.removeprefix("episode ") for item in items] if kind == "episodes" else items
    more = ", ..." if len(names) > _NAMED else ""
    item = f"{len(items)} {kind}: {', '.join(names[:_NAMED])}{more}"
    alike = len({finding["what"] for finding in group}) == 1
    what = first["what"] if alike else f"{first['what']} (the first; the others alike)"
    return first | {"item": item if len(items) > 1 else items[0], "what": what}

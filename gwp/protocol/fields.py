"""Names of the fields of a request, and what is told of a name that is none."""

from collections.abc import Collection

FIELDS = (
    "state",
    "prompt",
    "task",
    "embodiment",
    "robot",
    "session",
    "session_id",
    "episode",
    "policy",
    "prefix_actions",
    "delay",
    "executed_action",
    "seed",
    "deadline_s",
    "observed_at",
    "max_age_s",
    "steps_left",
    "rate",
    "report",
    "request_id",
    "endpoint",
    "batch",
)
"""Fields of a request besides its pictures; `session` and `session_id` are one, `prompt` and
`task` too.
"""
_ALIKE = 0.6
"""Likeness from which on a name is taken for a misspelt one, as difflib measures it."""
_SHOWN = 64


def unknown(name: str, known: Collection[str] = FIELDS) -> str:
    """One line on a field that nobody knows, with the nearest known name.

    `prefix_action: unknown; did you mean prefix_actions?`
    """
    # Of the standard library, but of no use until somebody misspells a field.
    from difflib import get_close_matches

    shown = name[:_SHOWN]
    near = get_close_matches(shown, list(known), n=1, cutoff=_ALIKE)
    if near:
        return f"{shown}: unknown; did you mean {near[0]}?"
    return f"{shown}: unknown; known fields are {', '.join(known)}, and pictures by their cameras"

"""What `gwp data inspect` finds wrong in a set."""

from dataclasses import dataclass
from typing import Literal

Consequence = Literal["fatal", "left out", "repaired", "ignored"]
"""What follows from a finding.

fatal: the set cannot be used; left out: an episode, a video or some rows are not; repaired: set
right without a guess; ignored: nothing depends on it
"""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what, what follows from it, and what to do."""

    item: str
    what: str
    consequence: Consequence
    advice: str = ""

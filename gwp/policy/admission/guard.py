"""What an endpoint asks of robots and promises them beyond what the bundle says."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Guard(BaseModel):
    """Checks of an endpoint. A policy in one's own process has none of them unless it is told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    limits: Literal["derived", "none"] = "derived"
    """Limits of a robot for which the bundle has none: `derived` from its training data (half
    its range beyond both ends, twice its largest step), or `none`.
    """
    state_spans: float = Field(default=10, gt=0)
    """How far a state may lie outside of what training saw, in widths of that range."""
    on_state: Literal["refuse", "flag", "ignore"] = "refuse"
    """What becomes of an observation whose state lies further outside, or is no number of its
    unit: refused, answered with `out-of-range:NAME` in `flags`, or answered.
    """
    on_delay: Literal["refuse", "hold", "allow"] = "refuse"
    """What becomes of a request whose delay is longer than the policy was trained for: refused,
    answered by a chunk that stands still after the promised actions, or answered.
    """

"""What a job says of one of its robots."""

from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gwp.data.robot.embodiment import Limits, Resampling, Slot
from gwp.data.robot.kinds import Kind
from gwp.paths import Location

# Docstrings of fields become the reference page, so each field has one.
_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EmbodimentConfig(BaseModel):
    """One robot of the mixture. What is left out is read from the first data set that uses it."""

    model_config = _CONFIG

    id: int = Field(default=0, ge=0)
    """Row of the embodiment-specific projections."""
    replan: int | None = Field(default=None, gt=0)
    """Actions executed before asking again, control steps; None: half a chunk."""
    cameras: dict[Slot, str] | None = None
    """Canvas slot -> camera key of the data set; None: by their names (top, high, head: front;
    wrist, hand: left or right), then in the order of the data set.
    """
    delta_mask: tuple[bool, ...] = ()
    """True where the action is learnt relative to the state; empty: all absolute."""
    limits: Limits | None = None
    """Safety envelope of served actions."""
    fps: float | None = Field(default=None, gt=0)
    """Control rate that the policy learns, Hz; sets of another rate need `resample: true`.
    None: that of the first data set.
    """
    resample: tuple[Resampling, ...] = ()
    """How each action goes to another rate: linear, hold (on/off grippers) or sum
    (displacements per step); empty: all linear.
    """
    kinds: dict[str, Kind] = {}
    """Name of a state or action dimension -> what it is: `radians`, `radians_positive`,
    `degrees`, `degrees_positive` for an angle that wraps, `quaternion` for each of its four
    entries, `rot6d` or `rot6d_interleaved` for each of its six, `matrix` for each of its nine,
    or a gripper's `range`, `invert` and `binary`; others are plain numbers.
    """
    action_units: tuple[str, ...] = ()
    """Unit of each action dimension, e.g. `rad`, `m`; empty: not stated."""
    state_units: tuple[str, ...] = ()
    """Unit of each state dimension; robots that announce others are refused, and states that are
    no number of their unit. Empty: not stated.
    """
    stats: Location | None = None
    """File (path or s3://) of statistics made by `gwp data stats`; None: computed from the
    sources of the run.
    """
    ranges: Literal["published"] | None = None
    """`published`: q01 goes to -1 and q99 to 1 in every dimension, over `max(q99 - q01, 1e-8)`, as
    for official checkpoints. None: what `stats` says in its metadata, else dimensions that do not
    move are 0, and those that rarely do have their extremes.
    """
    stats_of_other_data: bool = False
    """Take `stats` although they are of other data than the sources, or do not say of which:
    imported ones, those of a pre-training.
    """

    # Hashes of this JSON say whether a run goes on. Those of before know none of these.
    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        for name in ("action_units", "state_units", "ranges"):
            if not getattr(self, name):
                fields.pop(name, None)
        return fields

    @model_validator(mode="after")
    def _of_a_file(self) -> "EmbodimentConfig":
        if self.stats_of_other_data and self.stats is None:
            raise ValueError("stats_of_other_data speaks of a file; give `stats`, or remove it")
        return self

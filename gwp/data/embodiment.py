"""What a robot is, for the model and for the endpoint: names, units, cameras, rates, limits."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Their order is that of `canvas.SLOTS`, and so of crops and of `view_valid`.
Slot = Literal["front", "left", "right"]
Resampling = Literal["linear", "hold", "sum"]


class Limits(BaseModel):
    """Safety envelope in robot units, applied to actions after un-normalisation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    lower: tuple[float, ...]
    """Lowest allowed value of each action dimension (robot units)."""
    upper: tuple[float, ...]
    """Highest allowed value of each action dimension (robot units)."""
    velocity: tuple[float, ...] | None = None
    """Largest allowed change of each action dimension between two control steps (robot units);
    None: no limit.
    """


# Bundles, runs and caches keep it as JSON (`embodiments.json`): a new field needs a default,
# or theirs cannot be read any more.
class Embodiment(BaseModel):
    """One kind of robot. Training, statistics, the bundle and the endpoint all read this one
    record.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    """Stable name, e.g. `metaworld-sawyer`; a robot announces it in its request."""
    id: int = Field(default=0, ge=0)
    """Row of the embodiment-specific projections of the model."""
    fps: float = Field(gt=0)
    """Control and recording rate, Hz."""
    state_names: tuple[str, ...]
    """Name of each state dimension."""
    action_names: tuple[str, ...]
    """Name of each action dimension."""
    delta_mask: tuple[bool, ...] = ()
    """True where the action is learnt relative to the state at the start of the chunk. Empty:
    all absolute.
    """
    resample: tuple[Resampling, ...] = ()
    """How each action goes to another rate: `linear` between rows (targets, velocities), `hold`
    the last row (on/off grippers), `sum` of the rows of a step (displacements per step). Empty:
    all linear.
    """
    action_units: tuple[str, ...] = ()
    """Unit of each action dimension, e.g. `rad`, `m`; empty: not stated."""
    cameras: dict[Slot, str]
    """Canvas slot -> camera key of the data set and of the robot's observation."""
    limits: Limits | None = None
    """Safety envelope; None leaves only the finite check."""
    chunk: int = Field(gt=0)
    """Actions per chunk, control steps."""
    replan: int = Field(gt=0)
    """Actions a robot executes before it asks again, control steps."""

    @model_validator(mode="after")
    def _consistent(self) -> "Embodiment":
        d = len(self.action_names)
        # () stands for the default, so only what is given has to fit.
        if self.delta_mask and len(self.delta_mask) != d:
            raise ValueError(
                f"delta_mask has {len(self.delta_mask)} entries, action_names {d}; give one per action"
            )
        if self.resample and len(self.resample) != d:
            raise ValueError(
                f"resample has {len(self.resample)} entries, action_names {d}; give one per action"
            )
        # Action i is taken relative to entry i of the state (`stats.normalise.delta_base`).
        if any(self.delta_mask) and len(self.state_names) < d:
            raise ValueError(
                "delta_mask needs a state entry for every action; set delta_mask to all false "
                "or extend the state"
            )
        if self.limits and not len(self.limits.lower) == len(self.limits.upper) == d:
            raise ValueError(f"limits.lower and limits.upper need {d} entries, one per action")
        if self.limits and self.limits.velocity is not None and len(self.limits.velocity) != d:
            raise ValueError(f"limits.velocity needs {d} entries, one per action")
        if self.replan > self.chunk:
            raise ValueError(f"replan {self.replan} is longer than the chunk {self.chunk}")
        return self

    @property
    def delta(self) -> tuple[bool, ...]:
        """`delta_mask` with one entry per action."""
        return self.delta_mask or (False,) * len(self.action_names)

    @property
    def resampling(self) -> tuple[Resampling, ...]:
        """`resample` with one entry per action."""
        every: tuple[Resampling, ...] = ("linear",)
        return self.resample or every * len(self.action_names)

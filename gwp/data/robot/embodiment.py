"""What a robot is, for the model and for the endpoint: names, units, cameras, rates, limits."""

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gwp.data.robot.kinds import Gripper, Kind, Meaning, grippers_of, meaning_of

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
    acceleration: tuple[float, ...] | None = None
    """Largest allowed change of that change from one control step to the next (robot units);
    rotations of several entries and angles that go all the way round are left out. None: no limit.
    """
    jump: tuple[float, ...] | None = None
    """Largest allowed distance of the first new action from the one that the robot executed last
    (robot units); None: no limit.
    """
    on_excess: Literal["clamp", "refuse"] = "clamp"
    """What becomes of a chunk that leaves the limits: held inside them and flagged, or refused."""

    @model_validator(mode="after")
    def _sensible(self) -> "Limits":
        widths = {len(row) for row in self._rows.values()}
        if len(widths) > 1:
            raise ValueError(
                "limits: "
                + ", ".join(f"{name} has {len(row)}" for name, row in self._rows.items())
                + " entries; give one per action in each"
            )
        for name, row in self._rows.items():
            # Anything is within a limit that is no number.
            if any(math.isnan(value) for value in row):
                raise ValueError(f"limits.{name} holds NaN; give numbers")
            if name not in ("lower", "upper") and any(value < 0 for value in row):
                raise ValueError(f"limits.{name} is below 0; it is a size")
        if any(low > high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError("limits.lower is above limits.upper; exchange them")
        return self

    @property
    def _rows(self) -> dict[str, tuple[float, ...]]:
        rows = {
            "lower": self.lower,
            "upper": self.upper,
            "velocity": self.velocity,
            "acceleration": self.acceleration,
            "jump": self.jump,
        }
        return {name: row for name, row in rows.items() if row is not None}

    # Digests of this JSON name manifests, caches and policies. Those of before know no more.
    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        unset = {"acceleration": None, "jump": None, "on_excess": "clamp"}
        return {k: v for k, v in fields.items() if k not in unset or v != unset[k]}


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
    kinds: dict[str, Kind] = {}
    """Name of a state or action dimension -> what it is, where plain numbers would mislead:
    `radians` (-pi to pi), `radians_positive` (0 to 2 pi), `degrees` (-180 to 180) or
    `degrees_positive` (0 to 360) for an angle that wraps there; `quaternion` for each of its four
    entries; `rot6d` or `rot6d_interleaved` for each of its six: the first two columns of a
    rotation matrix, one behind the other (rows so, too) or row by row; `matrix` for each of the
    nine of a whole one;
    for a gripper its `range`, `invert` and `binary`. Actions that `resample` adds up are
    displacements, which do not wrap.
    """
    action_units: tuple[str, ...] = ()
    """Unit of each action dimension, e.g. `rad`, `m`; empty: not stated."""
    state_units: tuple[str, ...] = ()
    """Unit of each state dimension, e.g. `rad`, `m`; empty: not stated."""
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
        # All of its rows are as long as this one.
        if self.limits and len(self.limits.lower) != d:
            raise ValueError(f"limits need {d} entries in each row, one per action")
        if self.state_units and len(self.state_units) != len(self.state_names):
            raise ValueError(
                f"state_units has {len(self.state_units)} entries, state_names "
                f"{len(self.state_names)}; give one per state"
            )
        if self.replan > self.chunk:
            raise ValueError(f"replan {self.replan} is longer than the chunk {self.chunk}")
        return self

    @model_validator(mode="after")
    def _kinds_fit(self) -> "Embodiment":
        known = {*self.state_names, *self.action_names}
        if strangers := sorted(set(self.kinds) - known):
            raise ValueError(
                f"kinds names {', '.join(strangers)}; the dimensions are {', '.join(sorted(known))}"
            )
        # For their ValueErrors alone.
        _ = self.state_meaning, self.action_meaning
        taken = [self.action_names[i] for i in grippers_of(self.action_names, self.kinds)]
        relative = dict(zip(self.action_names, self.delta, strict=True))
        if wrong := [name for name in taken if relative[name]]:
            raise ValueError(
                f"delta_mask is true for the gripper {', '.join(wrong)}; its ends are absolute, so "
                "set it to false"
            )
        self._relative_rotations()
        return self

    def _relative_rotations(self) -> None:
        """ValueError where a relative rotation is not one of the state, or is it in part."""
        of_state, of_action = self.state_meaning, self.action_meaning
        if of_action is None:
            return
        known = [] if of_state is None else [tuple(entries) for entries in of_state.wholes]
        for entries in of_action.wholes:
            names = ", ".join(self.action_names[i] for i in sorted(entries))
            relative = {self.delta[i] for i in entries}
            if len(relative) == 2:
                raise ValueError(
                    f"delta_mask is true for a part of one rotation ({names}); set it for all of "
                    "its entries or for none"
                )
            if relative == {True} and tuple(entries) not in known:
                raise ValueError(
                    f"delta_mask is true for {names}, and kinds does not say that the same "
                    "entries of the state are this rotation; name them, or set it to false"
                )
        turns = {} if of_state is None else dict(zip(of_state.turns, of_state.period, strict=True))
        for i, period in zip(of_action.turns, of_action.period, strict=True):
            if self.delta[i] and turns.get(i, period) != period:
                raise ValueError(
                    f"delta_mask is true for {self.action_names[i]}, and kinds gives its entry of "
                    "the state another unit; set it to false"
                )

    # Digests of this JSON name manifests, caches and policies. Those of before know no kinds.
    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        for name in ("kinds", "state_units"):
            if not getattr(self, name):
                fields.pop(name, None)
        return fields

    @property
    def state_meaning(self) -> Meaning | None:
        """The rotations of the state; None: it has none."""
        return meaning_of(self.state_names, self.kinds)

    @property
    def action_meaning(self) -> Meaning | None:
        """The rotations of an action; None: it has none."""
        summed = [rule == "sum" for rule in self.resample]
        return meaning_of(self.action_names, self.kinds, summed)

    @property
    def delta(self) -> tuple[bool, ...]:
        """`delta_mask` with one entry per action."""
        return self.delta_mask or (False,) * len(self.action_names)

    @property
    def resampling(self) -> tuple[Resampling, ...]:
        """`resample` with one entry per action."""
        if self.resample:
            return self.resample
        # Half-way between open and closed is a place where such a gripper never was.
        kinds = (self.kinds.get(name) for name in self.action_names)
        return tuple(
            "hold" if isinstance(kind, Gripper) and kind.binary else "linear" for kind in kinds
        )

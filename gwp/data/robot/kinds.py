"""What single numbers of a robot are, where plain arithmetic on them would be wrong: angles that
wrap, rotations of several entries, grippers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from gwp.data.robot.rotations import (
    between_pairs,
    near,
    one_sign,
    proper,
    slerp,
    third_axis,
    unit,
    upright,
)

Rotation = Literal[
    "radians",
    "radians_positive",
    "degrees",
    "degrees_positive",
    "quaternion",
    "rot6d",
    "rot6d_interleaved",
    "matrix",
]

TURNS: dict[str, tuple[float, float]] = {
    "radians": (-pi, 2 * pi),
    "radians_positive": (0.0, 2 * pi),
    "degrees": (-180.0, 360.0),
    "degrees_positive": (0.0, 360.0),
}
"""Angles that wrap: where their range begins, and a whole turn."""
PAIRS: dict[str, tuple[int, ...]] = {
    "rot6d": (0, 1, 2, 3, 4, 5),
    "rot6d_interleaved": (0, 2, 4, 1, 3, 5),
}
"""The first two columns of a rotation matrix, as where the three entries of the first and of the
second lie: one behind the other, or the 3 x 2 matrix row by row. The first two rows, one behind
the other, are no different from the columns: they turn the other way round, as one.
"""
_EDGE = 1e-6
"""Turns by which a number may lie outside of its range: pi as float32 is above pi."""
_STRAY = 0.01
"""Turns by which a recording may leave the range of its kind."""
_OFF = 0.05
"""How far from 1 the length of a recorded quaternion or axis may be, and how far from a right
angle two axes.
"""


class Gripper(BaseModel):
    """A gripper: its two ends are -1 and 1 to the model, not quantiles, however rarely it moves."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    range: tuple[float, float] | None = None
    """Lower and upper end of its way (robot units); None: the extremes of the statistics."""
    invert: bool = False
    """Show the model the upper end as -1: for a robot whose convention is the other way round
    than that of the others (or of the weights that it starts from).
    """
    binary: bool = False
    """Served actions are one of the two ends, whichever is nearer; it is held, not interpolated,
    at another rate.
    """

    @model_validator(mode="after")
    def _a_way(self) -> "Gripper":
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range: the lower end comes first; `invert: true` turns it round")
        return self


Kind = Rotation | Gripper


@dataclass(frozen=True)
class Reference:
    """Which of several numbers for one rotation is taken.

    quaternions: `[q, 4]`, what each is near to. cuts: `[t]`, where the circle of each angle is
    cut, robot units; None: where the recording cuts it, and chunks of absolute angles are left
    with that jump, as in statistics of before. follows: actions, absolute angles, that go on
    from the state of their name
    """

    quaternions: np.ndarray
    cuts: np.ndarray | None
    follows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Meaning:
    """The rotations among the numbers of one vector.

    turns: int `[t]`, angles that wrap; low, period: `[t]`, where their range begins and how wide
    it is, robot units. quaternions: int `[q, 4]`, in either order of their parts. pairs: int
    `[r, 6]`, entries of the first axis, then of the second. matrices: int `[m, 9]`, those of all three
    """

    turns: np.ndarray
    low: np.ndarray
    period: np.ndarray
    quaternions: np.ndarray
    pairs: np.ndarray
    matrices: np.ndarray

    @property
    def entries(self) -> np.ndarray:
        """int: all numbers that are part of a rotation."""
        return np.concatenate([self.turns, *self.wholes])

    @property
    def wholes(self) -> list[np.ndarray]:
        """Entries of each rotation that is more than one number."""
        return [*self.quaternions, *self.pairs, *self.matrices]

    def shortest(self, difference: np.ndarray) -> np.ndarray:
        """Differences `[..., d]` of two vectors, with those of angles the short way round."""
        out = np.array(difference)
        part = out[..., self.turns]
        half = self.period / 2
        # What is short already stays as it is, to the last bit.
        turned = (part + half) % self.period - half
        out[..., self.turns] = np.where(np.abs(part) > half, turned, part)
        return out

    def within(self, values: np.ndarray) -> np.ndarray:
        """Vectors `[..., d]` with angles in the range of the recording, quaternions of length 1,
        axes of length 1 and at a right angle.
        """
        out = np.array(values)
        part, edge = out[..., self.turns], _EDGE * self.period
        inside = (part >= self.low - edge) & (part <= self.low + self.period + edge)
        turned = (part - self.low) % self.period + self.low
        out[..., self.turns] = np.where(inside, part, turned)
        for four in self.quaternions:
            out[..., four] = unit(out[..., four])
        for six in self.pairs:
            out[..., six] = upright(out[..., six])
        for nine in self.matrices:
            out[..., nine] = proper(out[..., nine])
        return out

    def between(self, before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Vectors `[n, d]`, at a share `[n, 1]` of the way between two; what is no rotation
        means nothing in them.
        """
        with np.errstate(invalid="ignore"):
            out = self.within(before + share * self.shortest(after - before))
            for four in self.quaternions:
                out[:, four] = slerp(before[:, four], after[:, four], share)
            for six in self.pairs:
                out[:, six] = between_pairs(before[:, six], after[:, six], share)
            for nine in self.matrices:
                pairs = between_pairs(before[:, nine[:6]], after[:, nine[:6]], share)
                out[:, nine] = np.concatenate([pairs, third_axis(pairs)], -1)
        return out

    def steady(self, values: np.ndarray, reference: Reference) -> np.ndarray:
        """Vectors `[..., d]` with each quaternion in the sign that is nearer to its reference,
        as both signs are one rotation, and each angle in the turn that begins at its cut.
        """
        out = np.array(values)
        for four, middle in zip(self.quaternions, reference.quaternions, strict=True):
            out[..., four] = near(out[..., four], middle)
        if reference.cuts is None:
            return out
        part, edge = out[..., self.turns], _EDGE * self.period
        inside = (part >= reference.cuts - edge) & (part <= reference.cuts + self.period + edge)
        away = np.floor((part - reference.cuts) / self.period) * self.period
        out[..., self.turns] = np.where(inside, part, part - away)
        return out

    def followed(
        self, chunks: np.ndarray, start: np.ndarray, known: np.ndarray, along: bool
    ) -> np.ndarray:
        """Chunks `[..., p, d]` without jumps that are none.

        start: `[..., 1, d]`, where known `[d]` says so the rotation from which a chunk goes on:
        angles the short way, quaternions in its sign. Others begin as they are; `along`: angles
        of those go on along themselves, else they keep their jumps
        """
        out = np.array(chunks)
        for dim, period in zip(self.turns, self.period, strict=True):
            if known[dim]:
                line = np.concatenate([start[..., dim], out[..., dim]], -1)
                out[..., dim] = np.unwrap(line, period=period, axis=-1)[..., 1:]
            elif along:
                out[..., dim] = np.unwrap(out[..., dim], period=period, axis=-1)
        for four in self.quaternions:
            if known[four].all():
                line = np.concatenate([start[..., four], out[..., four]], -2)
                out[..., four] = one_sign(line)[..., 1:, :]
            else:
                out[..., four] = one_sign(out[..., four])
        return out

    def stray(self, rows: np.ndarray) -> tuple[int, str] | None:
        """Number of the first entry in rows `[n, d]` that is not what its kind says, and what
        it is instead; None where all are.
        """
        part, edge = rows[:, self.turns], _STRAY * self.period
        with np.errstate(invalid="ignore"):
            out = (part < self.low - edge) | (part > self.low + self.period + edge)
        for dim in self.turns[out.any(0)]:
            low, high = np.nanmin(rows[:, dim]), np.nanmax(rows[:, dim])
            return int(dim), f"goes from {low:.4g} to {high:.4g}, which is no angle in"
        axes = [*self.pairs.reshape(-1, 3), *self.matrices.reshape(-1, 3)]
        for entries in [*self.quaternions, *axes]:
            length = np.sqrt((rows[:, entries] ** 2).sum(1))
            off = length[np.abs(length - 1) > _OFF]
            if len(off):
                what = f"begins entries of length {off[0]:.3g} where 1 belongs to a"
                return int(entries.min()), what
        for six in [*self.pairs, *self.matrices[:, :6]]:
            dots = (rows[:, six[:3]] * rows[:, six[3:]]).sum(1)
            if (np.abs(dots) > _OFF).any():
                return int(six.min()), "begins two axes that are at no right angle, as in a"
        for nine in self.matrices:
            away = np.abs(rows[:, nine[6:]] - third_axis(rows[:, nine[:6]]))
            if (away > _OFF).any():
                return int(
                    nine.min()
                ), "begins three axes that are no rotation, or a mirror, as in a"
        return None


def meaning_of(
    names: Sequence[str], kinds: Mapping[str, Kind], displaced: Sequence[bool] = ()
) -> Meaning | None:
    """The rotations of a vector with these names; None where there are none. displaced: entries
    that are displacements, which do not wrap.

    ValueError when quaternions are no groups of four, pairs of axes none of six, matrices none of
    nine, or one of them a displacement.
    """
    if not kinds:
        return None
    moved = list(displaced) or [False] * len(names)
    wholes = {"quaternion", "matrix", *PAIRS}
    for name, summed in zip(names, moved, strict=True):
        if summed and kinds.get(name) in wholes:
            raise ValueError(
                f"kinds: {name} is part of a rotation of several entries, which `resample: sum` "
                "cannot add up; write linear or hold"
            )
    of = [None if m else kinds.get(n) for n, m in zip(names, moved, strict=True)]
    turns = [i for i, kind in enumerate(of) if isinstance(kind, str) and kind in TURNS]
    fours = _groups(names, of, "quaternion", 4)
    sixes = [_groups(names, of, kind, 6)[:, order] for kind, order in PAIRS.items()]
    low, period = np.array([TURNS[str(of[i])] for i in turns]).reshape(-1, 2).T
    nines = _groups(names, of, "matrix", 9)
    meaning = Meaning(np.array(turns, np.int64), low, period, fours, np.concatenate(sixes), nines)
    return meaning if len(meaning.entries) else None


def _groups(names: Sequence[str], of: Sequence[Kind | None], wanted: str, size: int) -> np.ndarray:
    """Numbers of the entries of a kind, int `[n, size]`. Each group lies together."""
    parts = [i for i, kind in enumerate(of) if kind == wanted]
    if len(parts) % size == 0:
        groups = np.array(parts, np.int64).reshape(-1, size)
        if (np.diff(groups) == 1).all():
            return groups
    count = {4: "four", 6: "six", 9: "nine"}[size]
    raise ValueError(
        f"kinds: {wanted} is {count} entries one behind the other, these are "
        f"{', '.join(names[i] for i in parts)}"
    )


def grippers_of(names: Sequence[str], kinds: Mapping[str, Kind]) -> dict[int, Gripper]:
    """Number of the entry -> gripper."""
    found = enumerate(kinds.get(name) for name in names)
    return {i: kind for i, kind in found if isinstance(kind, Gripper)}


def reference_of(products: np.ndarray) -> np.ndarray:
    """The quaternion that many are nearest to, `[4]`, whatever their signs. products: `[4, 4]`,
    sum of their outer products.
    """
    mean: np.ndarray = np.linalg.eigh(products)[1][:, -1]
    # An eigenvector may have either sign; which of them must not depend on the machine.
    return mean * np.sign(mean[np.abs(mean).argmax()])

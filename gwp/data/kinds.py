"""What single numbers of a robot are, where plain arithmetic on them would be wrong: angles that
wrap, quaternions, grippers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

Rotation = Literal["radians", "radians_positive", "degrees", "degrees_positive", "quaternion"]

TURNS: dict[str, tuple[float, float]] = {
    "radians": (-pi, 2 * pi),
    "radians_positive": (0.0, 2 * pi),
    "degrees": (-180.0, 360.0),
    "degrees_positive": (0.0, 360.0),
}
"""Angles that wrap: where their range begins, and a whole turn."""
_EDGE = 1e-6
"""Turns by which a number may lie outside of its range: pi as float32 is above pi."""
_STRAY = 0.01
"""Turns by which a recording may leave the range of its kind."""


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
class Meaning:
    """The rotations among the numbers of one vector.

    turns: int `[t]`, angles that wrap; low, period: `[t]`, where their range begins and how wide
    it is, robot units. quaternions: int `[q, 4]`, in either order of their parts
    """

    turns: np.ndarray
    low: np.ndarray
    period: np.ndarray
    quaternions: np.ndarray

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
        """Vectors `[..., d]` with angles in the range of the recording, and quaternions of
        length 1.
        """
        out = np.array(values)
        part, edge = out[..., self.turns], _EDGE * self.period
        inside = (part >= self.low - edge) & (part <= self.low + self.period + edge)
        turned = (part - self.low) % self.period + self.low
        out[..., self.turns] = np.where(inside, part, turned)
        for four in self.quaternions:
            length = np.linalg.norm(out[..., four], axis=-1, keepdims=True)
            out[..., four] /= np.where(length > _EDGE, length, 1.0)
        return out

    def between(self, before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Vectors `[n, d]`, at a share `[n, 1]` of the way between two; what is no rotation
        means nothing in them.
        """
        with np.errstate(invalid="ignore"):
            out = self.within(before + share * self.shortest(after - before))
            for four in self.quaternions:
                out[:, four] = _slerp(before[:, four], after[:, four], share)
        return out

    def steady(self, values: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Vectors `[..., d]` with each quaternion in the sign that is nearer to its reference
        `[q, 4]`: both signs are one rotation.
        """
        out = np.array(values)
        for four, reference in zip(self.quaternions, references, strict=True):
            away = (out[..., four] * reference).sum(-1, keepdims=True) < 0
            out[..., four] = np.where(away, -out[..., four], out[..., four])
        return out

    def followed(self, chunks: np.ndarray, base: np.ndarray, relative: np.ndarray) -> np.ndarray:
        """Chunks `[..., p, d]` without jumps that are none: where `relative` `[d]`, angles go on
        the short way from `base` `[..., 1, d]`; quaternions keep their sign from step to step.

        base: the state where an action is relative to it; a quaternion of any other begins in
        the sign that it has.
        """
        out = np.array(chunks)
        for dim, period in zip(self.turns, self.period, strict=True):
            if relative[dim]:
                line = np.concatenate([base[..., dim], out[..., dim]], -1)
                out[..., dim] = np.unwrap(line, period=period, axis=-1)[..., 1:]
        for four in self.quaternions:
            if relative[four].all():
                line = np.concatenate([base[..., four], out[..., four]], -2)
                out[..., four] = _one_sign(line)[..., 1:, :]
            else:
                out[..., four] = _one_sign(out[..., four])
        return out

    def stray(self, rows: np.ndarray) -> int | None:
        """Number of the first angle that leaves the range of its kind in rows `[n, d]`; None
        where none does.
        """
        part, edge = rows[:, self.turns], _STRAY * self.period
        with np.errstate(invalid="ignore"):
            out = (part < self.low - edge) | (part > self.low + self.period + edge)
        found = np.flatnonzero(out.any(0))
        return int(self.turns[found[0]]) if len(found) else None


def meaning_of(
    names: Sequence[str], kinds: Mapping[str, Kind], displaced: Sequence[bool] = ()
) -> Meaning | None:
    """The rotations of a vector with these names; None where there are none. displaced: entries
    that are displacements, which do not wrap.

    ValueError when quaternions are no groups of four.
    """
    if not kinds:
        return None
    moved = list(displaced) or [False] * len(names)
    of = [None if m else kinds.get(n) for n, m in zip(names, moved, strict=True)]
    turns = [i for i, kind in enumerate(of) if isinstance(kind, str) and kind in TURNS]
    parts = [i for i, kind in enumerate(of) if kind == "quaternion"]
    fours = np.array(parts, np.int64)
    # Each group lies together, in whatever order of its parts.
    together = len(parts) % 4 == 0 and (np.diff(fours.reshape(-1, 4)) == 1).all()
    if not together:
        raise ValueError(
            f"kinds: quaternions are four entries one behind the other, these are "
            f"{', '.join(names[i] for i in parts)}"
        )
    if not turns and not parts:
        return None
    low, period = np.array([TURNS[str(of[i])] for i in turns]).reshape(-1, 2).T
    return Meaning(np.array(turns, np.int64), low, period, fours.reshape(-1, 4))


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


def _one_sign(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions `[..., p, 4]`, each in the sign that is nearer to the one before."""
    dots = (quaternions[..., 1:, :] * quaternions[..., :-1, :]).sum(-1)
    flips = np.cumprod(np.where(dots < 0, -1.0, 1.0), -1)
    out = np.array(quaternions)
    out[..., 1:, :] *= flips[..., None]
    return out


def _slerp(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Quaternions `[n, 4]` on the shorter way from one rotation to another."""
    dot = (before * after).sum(-1, keepdims=True)
    after = np.where(dot < 0, -after, after)
    angle = np.arccos(np.clip(np.abs(dot), 0, 1))
    # Of equal ones the way has no length to divide by; a straight line is as good there.
    near = np.sin(angle) < _EDGE
    sine = np.where(near, 1.0, np.sin(angle))
    first = np.where(near, 1 - share, np.sin((1 - share) * angle) / sine)
    second = np.where(near, share, np.sin(share * angle) / sine)
    return first * before + second * after

"""Statistics of one feature, and which of its dimensions do not move."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NAMES = ("mean", "std", "min", "max", "q01", "q99")
_FLOOR = 1e-4
"""Resolution of files that state none (robot units)."""
_RARE = 1e-4
"""Share of the whole way below which the quantiles are of a part at rest."""


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of one feature, float64 `[d]` each, in robot units.

    resolution: ranges below it are noise of a part that does not move; None: not stated, as in
    published files and in ours of before, where it is 1e-4. wild: bool, dimensions whose extremes
    are single rows far from all others, no motion; None: none of them. step: largest change from
    one control step to the next; None: not stated, as in all but ours of now
    """

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray
    resolution: np.ndarray | None = None
    wild: np.ndarray | None = None
    step: np.ndarray | None = None

    @property
    def noise(self) -> np.ndarray:
        """`resolution` with one entry per dimension, `[d]`."""
        return np.full(len(self.mean), _FLOOR) if self.resolution is None else self.resolution

    @property
    def low_high(self) -> tuple[np.ndarray, np.ndarray]:
        """What goes to -1 and 1: the quantiles; for a part that moves in less than 2 % of the
        rows (a rare grip), the extremes.
        """
        rare = self.q99 - self.q01 < self.noise
        if self.resolution is not None:
            # Else the noise of a part at rest would be the unit in which its way is measured.
            rare |= self._mostly_at_rest & (True if self.wild is None else ~self.wild)
        return np.where(rare, self.min, self.q01), np.where(rare, self.max, self.q99)

    @property
    def _mostly_at_rest(self) -> np.ndarray:
        """bool `[d]`: the quantiles are of a small part of the whole way."""
        return np.asarray(self.q99 - self.q01 < _RARE * (self.max - self.min))

    def without_wild(self, jumps: np.ndarray) -> "FeatureStats":
        """With `wild` where the extremes would be the ends and `jumps` `[d]` says that they are
        single rows.
        """
        wild = jumps & self._mostly_at_rest & (self.q99 - self.q01 >= self.noise)
        return replace(self, wild=wild) if wild.any() else self

    @property
    def constant(self) -> np.ndarray:
        """bool `[d]`: dimensions that do not move. Normalised they are 0; the inverse gives
        their mean.
        """
        low, high = self.low_high
        return high - low < self.noise

    def head(self, width: int) -> "FeatureStats":
        """The first `width` dimensions: published files pad to the width of the model."""
        noise = None if self.resolution is None else self.resolution[:width]
        cut = FeatureStats(*(getattr(self, name)[:width] for name in NAMES))
        wild = None if self.wild is None else self.wild[:width]
        step = None if self.step is None else self.step[:width]
        return replace(cut, resolution=noise, wild=wild, step=step)

    def to_json(self, width: int) -> dict[str, list[float] | list[int]]:
        """The values by name, with zeros up to `width`, and `constant`: indices of dimensions
        that do not move.
        """
        more = width - len(self.mean)
        values: dict[str, list[float] | list[int]] = {
            name: np.pad(getattr(self, name), (0, more)).tolist() for name in NAMES
        }
        values["constant"] = np.flatnonzero(self.constant).tolist()
        if self.resolution is not None:
            # Not zeros: padding does not move either.
            padded = np.pad(self.resolution, (0, more), constant_values=_FLOOR)
            values["resolution"] = padded.tolist()
        if self.wild is not None:
            values["wild"] = np.flatnonzero(self.wild).tolist()
        if self.step is not None:
            values["step"] = np.pad(self.step, (0, more)).tolist()
        return values

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "FeatureStats":
        """From `to_json` or a published file. Raises ValueError, KeyError and TypeError."""
        # Published files may have no extremes; the quantiles stand in.
        complete = {"min": raw["q01"], "max": raw["q99"]} | dict(raw)
        more = [name for name in ("resolution", "step") if raw.get(name) is not None]
        arrays = [np.asarray(complete[name], np.float64) for name in (*NAMES, *more)]
        if (
            len({a.shape for a in arrays}) != 1
            or arrays[0].ndim != 1
            or not all(np.isfinite(a).all() for a in arrays)
        ):
            raise ValueError("vectors of different lengths, or not finite")
        stats = cls(**dict(zip((*NAMES, *more), arrays, strict=True)))
        if raw.get("wild") is not None:
            wild = np.isin(np.arange(len(stats.mean)), np.asarray(raw["wild"], np.int64))
            stats = replace(stats, wild=wild)
        if (stats.q01 > stats.q99).any() or (stats.min > stats.max).any() or (stats.std < 0).any():
            raise ValueError("a lower quantile or extreme above the upper one, or a negative std")
        # What never moved has a range of 0, which must be below it.
        if (stats.noise <= 0).any():
            raise ValueError("a resolution that is not above 0")
        return stats

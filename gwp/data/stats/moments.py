"""Mean, spread, extremes and quantiles of rows that do not fit into memory together."""

import numpy as np

_SHARE = 1e-4
"""Step of float32 as a share of a range, from which on quantiles need more digits."""


class Moments:
    """Running statistics of `[n, d]` rows in float64; quantiles from all rows, or from a
    uniform sample once there are too many.

    The rows may come in any order and in any pieces: the sample is decided by the keys that
    they come with. At most a quarter more than SAMPLE rows are held, as float32; of what moves
    little far from 0, also what that leaves over.
    """

    SAMPLE = 2_000_000
    """Rows that quantiles are taken from at most."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = np.zeros(width)
        self._squares = np.zeros(width)
        self._min = np.full(width, np.inf)
        self._max = np.full(width, -np.inf)
        # The sample so far: rows, their keys, how many, and the key above which none is taken.
        self._rows: list[np.ndarray] = []
        # What is left of them beyond float32; None where nothing of it matters.
        self._rests: list[np.ndarray | None] = []
        self._keys: list[np.ndarray] = []
        self._kept = 0
        self._limit = np.inf

    def add(self, rows: np.ndarray, keys: np.ndarray) -> None:
        """Add finite rows `[n, d]`. `keys` `[n]`, uniform in [0, 1): those of the lowest keys
        are the sample.
        """
        if not len(rows):
            return
        # Means and sums of squares around them, joined pairwise (Chan): a sum of plain squares
        # would lose the spread of what moves little far from 0.
        n = len(rows)
        total = self.count + n
        mean = rows.mean(0)
        shift = mean - self._mean
        self._squares += ((rows - mean) ** 2).sum(0) + shift**2 * (self.count * n / total)
        self._mean += shift * (n / total)
        self.count = total
        lowest, highest = rows.min(0), rows.max(0)
        self._min = np.minimum(self._min, lowest)
        self._max = np.maximum(self._max, highest)
        # What lies above the highest key of a full sample can never be in it.
        low = keys < self._limit
        kept = rows[low]
        short = kept.astype(np.float32)
        self._rows.append(short)
        # Of more than in the end: whether it matters to all rows is known only then.
        near = _coarse(lowest, highest, _SHARE / 4)
        rest = np.where(near, kept - short, 0.0).astype(np.float32) if near.any() else None
        self._rests.append(rest if rest is not None and rest.any() else None)
        self._keys.append(keys[low])
        self._kept += int(low.sum())
        if self._kept > self.SAMPLE + self.SAMPLE // 4:
            self._prune()

    def _prune(self) -> None:
        rests = None
        if any(rest is not None for rest in self._rests):
            pairs = zip(self._rows, self._rests, strict=True)
            rests = np.concatenate([np.zeros_like(a) if b is None else b for a, b in pairs])
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        if len(keys) > self.SAMPLE:
            lowest = np.argpartition(keys, self.SAMPLE - 1)[: self.SAMPLE]
            rows, keys = rows[lowest], keys[lowest]
            rests = None if rests is None else rests[lowest]
            self._limit = float(keys.max())
        self._rows = [rows]
        self._rests = [rests]
        self._keys = [keys]
        self._kept = len(keys)

    def result(self) -> dict[str, np.ndarray]:
        """mean, std (of the population), min, max, q01, q99 (linear), float64 `[d]` each."""
        self._prune()
        # One dimension at a time: all of them as float64 would be several times what is held.
        near = _coarse(self._min, self._max, _SHARE)
        rows, rests = self._rows[0], self._rests[0]
        quantiles = []
        for i in range(len(self._mean)):
            column = rows[:, i].astype(np.float64)
            if rests is not None and near[i]:
                column += rests[:, i]
            quantiles.append(np.quantile(column, [0.01, 0.99]))
        q01, q99 = np.clip(np.stack(quantiles, 1), self._min, self._max)
        std = np.sqrt(self._squares / self.count)
        return {
            "mean": self._mean,
            "std": std,
            "min": self._min,
            "max": self._max,
            "q01": q01,
            "q99": q99,
        }


def _coarse(lowest: np.ndarray, highest: np.ndarray, share: float) -> np.ndarray:
    """bool `[d]`: whether a step of float32 is more than a share of the range of each."""
    furthest = np.maximum(np.abs(lowest), np.abs(highest)).astype(np.float32)
    return np.asarray(np.spacing(furthest) > share * (highest - lowest))

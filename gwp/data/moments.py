"""Mean, spread, extremes and quantiles of rows that do not fit into memory together."""

import numpy as np


class Moments:
    """Running statistics of `[n, d]` rows in float64; quantiles from all rows, or from a uniform sample once there are too many."""

    SAMPLE = 2_000_000
    """Rows that quantiles are taken from at most."""

    def __init__(self, width: int, seed: int) -> None:
        self.count = 0
        self._mean, self._squares = np.zeros(width), np.zeros(width)
        self._min, self._max = np.full(width, np.inf), np.full(width, -np.inf)
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._rows: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._kept = 0

    def add(self, rows: np.ndarray) -> None:
        """Add finite rows `[n, d]`."""
        if not len(rows):
            return
        n, mean = len(rows), rows.mean(0)
        shift, total = mean - self._mean, self.count + n
        self._squares += ((rows - mean) ** 2).sum(0) + shift**2 * (self.count * n / total)
        self._mean += shift * (n / total)
        self.count = total
        self._min, self._max = np.minimum(self._min, rows.min(0)), np.maximum(self._max, rows.max(0))
        self._rows.append(rows.astype(np.float32))
        # Every row draws a key and the lowest keys stay: a uniform sample, whatever the pieces the rows come in.
        self._keys.append(self._rng.random(n))
        self._kept += n
        if self._kept > 2 * self.SAMPLE:
            self._prune()

    def _prune(self) -> None:
        rows, keys = np.concatenate(self._rows), np.concatenate(self._keys)
        if len(keys) > self.SAMPLE:
            kept = np.argpartition(keys, self.SAMPLE)[: self.SAMPLE]
            rows, keys = rows[kept], keys[kept]
        self._rows, self._keys, self._kept = [rows], [keys], len(keys)

    def result(self) -> dict[str, np.ndarray]:
        """mean, std (of the population), min, max, q01, q99 (linear), float64 `[d]` each."""
        self._prune()
        q01, q99 = np.quantile(self._rows[0].astype(np.float64), [0.01, 0.99], axis=0)
        std = np.sqrt(self._squares / self.count)
        return {"mean": self._mean, "std": std, "min": self._min, "max": self._max, "q01": q01, "q99": q99}

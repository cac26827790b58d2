"""The numbers of a robot set while it is looked at: all of them, as small as they are exact."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from gwp.data.formats.files.numbers import smallest
from gwp.data.stats.still import Motion
from pipelines.datasets.kinds import RotationGuess


class Feature:
    """The state or the action of a set, gathered over its episodes."""

    def __init__(self, of: Literal["state", "action"], names: Sequence[str]) -> None:
        self.of, self.names = of, names
        self.motion, self.guess = Motion(len(names)), RotationGuess(of, names)
        self.count = 0
        # `[d, n]` of each episode: later one dimension is asked for at a time.
        self._episodes: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """The finite rows of an episode, float64 `[n, d]`, robot units."""
        if not len(rows):
            return
        self.count += len(rows)
        self.motion.add(rows)
        self.motion.note(rows)
        self.guess.add(rows)
        self._episodes.append(smallest(rows.T))

    def episodes(self, dim: int) -> Iterator[np.ndarray]:
        """Float64 `[n]` of each episode with rows: one dimension."""
        return (rows[dim].astype(np.float64) for rows in self._episodes)

    def column(self, dim: int) -> np.ndarray:
        """Float64 `[rows]`: one dimension of all episodes, one behind the other."""
        return np.concatenate([rows[dim] for rows in self._episodes], dtype=np.float64)

"""How a global batch is divided among the ranks, whatever their number.

As evenly as can be: of 8 samples three ranks have 3, 3 and 2. Every rank gets as many *rows* as
the one with most samples, so that all of them compute the same graph; what is beyond its samples
is padding, at plan position `PADDING`, which nobody decodes and which weighs nothing.
"""

from typing import TypeVar

import numpy as np

N = TypeVar("N", int, np.ndarray)

PADDING = -1
"""Plan position of a row that stands for no sample."""


def rows_of(size: N, world: int) -> N:
    """Rows that each of `world` ranks has of a global batch of `size` samples, or of several."""
    return -(-size // world)


def positions_of(start: int, size: int, rank: int, world: int) -> list[int]:
    """Plan positions of the rows of a rank, of the global batch of `size` samples that begins at
    plan position `start`: its samples in order, then padding.
    """
    each, more = divmod(size, world)
    # In order of ranks: the first of a batch are those of rank 0.
    first = start + rank * each + min(rank, more)
    count = each + (rank < more)
    return [*range(first, first + count), *[PADDING] * (rows_of(size, world) - count)]


def counts_of(sizes: np.ndarray, world: int) -> np.ndarray:
    """Samples that each rank has of global batches of these sizes: int64 `[batches, world]`."""
    return sizes[:, None] // world + (np.arange(world) < sizes[:, None] % world)

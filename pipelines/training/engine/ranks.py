"""What the ranks of a run tell each other; used by the training loop."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist


class Ranks:
    """All ranks, as one of them sees them.

    Every method is collective: all ranks must call it, in the same order. With one rank there
    is nobody to ask and no process group is needed.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world
        self.device = torch.device("cpu")
        """Where tensors that are reduced lie; NCCL wants the GPU."""

    def agreed(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def anywhere(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return self.each_anywhere([flag])[0]

    def each_anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """Whether each of them holds on any rank."""
        if self.world == 1:
            return list(flags)
        box = torch.tensor(flags, dtype=torch.int32, device=self.device)
        # The largest of 0 and 1 is `or`.
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in box.tolist()]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def summed(self, values: Sequence[float]) -> list[float]:
        """Sum of each over the ranks, in float64; what is no number anywhere is none here."""
        if self.world == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(box)
        sums: list[float] = box.tolist()
        return sums

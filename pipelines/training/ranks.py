"""What the ranks of a run tell each other; used by the training loop."""

import math
from typing import Any

import numpy as np
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
        if self.world == 1:
            return flag
        box = torch.tensor([flag], dtype=torch.int32, device=self.device)
        # The largest of 0 and 1 is `or`.
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def not_finite(self, losses: dict[str, float]) -> list[str]:
        """Which losses of which ranks are no finite numbers, a phrase for each; the same on
        every rank.
        """
        # A flag first: gathering objects at every step would cost far more.
        if not self.anywhere(not all(map(math.isfinite, losses.values()))):
            return []
        phrases = []
        for rank, share in enumerate(self.gathered(losses)):
            for name, value in share.items():
                if not math.isfinite(value):
                    phrases.append(f"{name} is {value} on rank {rank}")
        return phrases

    def mean_losses(self, losses: dict[str, float]) -> dict[str, float]:
        """Mean of each loss over the ranks that have it."""
        shares = self.gathered(losses)
        # A rank without a whole sample has no losses.
        names = dict.fromkeys(name for share in shares for name in share)
        means = {}
        for name in names:
            means[name] = float(np.mean([share[name] for share in shares if name in share]))
        return means

"""Moving average of weights, in fp32, sharded over ranks by parameter name.

fp32 matters: increments of a slow average are below half a bf16 ulp and would vanish. Shards
are safetensors keyed by name, so they load at any world size.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.training.deepspeed_engine import Engine


def decay_at(step: int, ceiling: float) -> float:
    """Decay of update `step` (0 at the first): `min(ceiling, (1 + n) / (10 + n))`, the released
    rule.
    """
    return min(ceiling, (1 + step) / (10 + step))


class Ema:
    """This rank's share of the average: every `world`-th parameter, by sorted name. The training
    loop makes and updates it; nothing is averaged with a ceiling of 0.

    shadow: parameter name -> fp32 tensor on the CPU
    """

    def __init__(self, engine: Engine, ceiling: float, rank: int, world: int) -> None:
        self._engine = engine
        self._ceiling = ceiling
        self._rank = rank
        self._world = world
        # Sorted, because gathering is collective: all ranks walk the names in one order.
        self._names = sorted(engine.parameters()) if ceiling > 0 else []
        self.shadow: dict[str, Tensor] = {}
        # `.cpu()` of a tensor that is fp32 and there already is no copy.
        self._each(lambda name, value: self.shadow.__setitem__(name, value.clone()))

    def _each(self, visit: Callable[[str, Tensor], None]) -> None:
        parameters = self._engine.parameters()
        for i, name in enumerate(self._names):
            # Gathering is collective, so every rank walks every name.
            with self._engine.gathered([parameters[name]]):
                if i % self._world == self._rank:
                    visit(name, parameters[name].detach().float().cpu())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Blend in the weights after update `step`. Collective."""
        decay = decay_at(step, self._ceiling)

        def blend(name: str, value: Tensor) -> None:
            self.shadow[name].lerp_(value, 1 - decay)

        self._each(blend)

    def save(self, folder: Path) -> None:
        """Write this rank's shard below `folder`; with fewer parameters than ranks some have
        none.
        """
        if self.shadow:
            (folder / "ema").mkdir(parents=True, exist_ok=True)
            save_file(self.shadow, folder / "ema" / f"rank-{self._rank:05d}.safetensors")

    def load(self, folder: Path) -> None:
        """Go on from the shards of a checkpoint, of however many ranks. What it lacks starts
        from the weights.
        """
        # All shards: with another number of ranks other names are this rank's.
        stored = load_ema(folder)
        for name in self.shadow:
            if name in stored:
                self.shadow[name] = stored[name]


def load_ema(folder: Path) -> dict[str, Tensor]:
    """All shards of a checkpoint merged: parameter name -> fp32 tensor. Empty without an
    average.
    """
    merged: dict[str, Tensor] = {}
    for file in sorted((folder / "ema").glob("rank-*.safetensors")):
        merged |= load_file(file)
    return merged

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
    """This rank's share: every `world`-th parameter."""

    def __init__(self, engine: Engine, ceiling: float, rank: int, world: int) -> None:
        self._engine, self._ceiling = engine, ceiling
        names = sorted(engine.parameters()) if ceiling > 0 else []
        self._names, self._rank, self._world = names, rank, world
        self.shadow: dict[str, Tensor] = {}
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
        decay = decay_at(step, self._ceiling)

        def blend(name: str, value: Tensor) -> None:
            self.shadow[name].lerp_(value, 1 - decay)

        self._each(blend)

    def save(self, folder: Path) -> None:
        if self.shadow:
            (folder / "ema").mkdir(parents=True, exist_ok=True)
            save_file(self.shadow, folder / "ema" / f"rank-{self._rank:05d}.safetensors")

    def load(self, folder: Path) -> None:
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

"""Moving average of weights: of the fp32 masters of the optimiser, sharded as they are.

Each rank averages the parts of the parameters whose masters lie on it, on its device, and sends
nothing to anyone. fp32 matters, of the weights and of the average: increments of a slow average
are below half a bf16 ulp and would vanish. Shards say which part of which parameter they hold,
so they load at any world size and ZeRO stage.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipelines.training.engine.deepspeed_engine import Engine


def decay_at(step: int, ceiling: float) -> float:
    """Decay of update `step`, counted from 0: `min(ceiling, (1 + n) / (10 + n))`, and 0 at the
    first, the released rule.
    """
    return min(ceiling, (1 + step) / (10 + step)) if step else 0.0


class Ema:
    """This rank's share of the average. The training loop makes and updates it; nothing is
    averaged with a ceiling of 0.

    shadow: parameter name -> fp32 `[n]`, its part on this rank, flat; on the rank's device
    """

    def __init__(self, engine: Engine, ceiling: float) -> None:
        self._engine = engine
        self._ceiling = ceiling
        self._rank = engine.rank
        self.shadow: dict[str, Tensor] = {}
        self._begin()

    def _begin(self) -> None:
        """From the weights as they are."""
        if self._ceiling > 0:
            self.shadow = {m.name: m.part.detach().clone() for m in self._engine.masters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Blend in the weights after update `step`."""
        if not self.shadow:
            return
        masters = self._engine.masters()
        blend = get_ema_multi_avg_fn(decay_at(step, self._ceiling))
        shadows = [self.shadow[m.name] for m in masters]
        # The count of updates is for averages of another kind.
        blend(shadows, [m.part for m in masters], 0)

    @torch.no_grad()
    def distance(self) -> tuple[float, float]:
        """Of this rank's part: the square of the distance between the weights and their average,
        and that of the average's length; 0 without an average.
        """
        if not self.shadow:
            return 0.0, 0.0
        norms = []
        for m in self._engine.masters():
            average = self.shadow[m.name]
            # One after another: a difference of all of them would take their memory once more.
            norms.append(torch.linalg.vector_norm(average - m.part))
            norms.append(torch.linalg.vector_norm(average))
        apart, length = torch.stack(norms).view(-1, 2).square().sum(0).tolist()
        return apart, length

    def save(self, folder: Path) -> None:
        """Write this rank's shard below `folder`; with fewer parameters than ranks some have
        none.
        """
        if not self.shadow:
            return
        (folder / "ema").mkdir(parents=True, exist_ok=True)
        starts = {m.name: m.start for m in self._engine.masters()}
        shapes = {name: self._engine.shape(name) for name in starts}
        save_file(
            {name: part.cpu() for name, part in self.shadow.items()},
            folder / "ema" / f"rank-{self._rank:05d}.safetensors",
            # Text is all that its header takes.
            metadata={"starts": json.dumps(starts), "shapes": json.dumps(shapes)},
        )

    def load(self, folder: Path) -> None:
        """Go on from the shards of a checkpoint, of however many ranks. What it lacks starts
        from the weights, so those are loaded before.
        """
        self._begin()
        if not self.shadow:
            return
        own = {m.name: m.start for m in self._engine.masters()}
        for file in _shards(folder):
            with safe_open(file, "pt") as shard:
                starts, _ = _header(shard)
                for name in own.keys() & set(shard.keys()):
                    # Only what overlaps is read: no rank holds the whole average.
                    _copy_overlap(shard, name, starts.get(name), self.shadow[name], own[name])


def load_ema(folder: Path) -> dict[str, Tensor]:
    """All shards of a checkpoint merged: parameter name -> fp32 tensor. Empty without an
    average.
    """
    merged: dict[str, Tensor] = {}
    for file in _shards(folder):
        with safe_open(file, "pt") as shard:
            starts, shapes = _header(shard)
            for name in list(shard.keys()):
                part = shard.get_tensor(name)
                # Checkpoints of earlier versions have whole parameters.
                if name not in starts:
                    merged[name] = part
                    continue
                whole = merged.setdefault(name, torch.zeros(shapes[name]))
                whole.view(-1)[starts[name] : starts[name] + part.numel()] = part
    return merged


def _shards(folder: Path) -> list[Path]:
    return sorted((folder / "ema").glob("rank-*.safetensors"))


def _header(shard: Any) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Where the parts of a shard begin in their parameters, and the shapes of those."""
    metadata = shard.metadata() or {}
    return json.loads(metadata.get("starts", "{}")), json.loads(metadata.get("shapes", "{}"))


def _copy_overlap(
    shard: Any, name: str, start: int | None, target: Tensor, target_start: int
) -> None:
    """Fill what a shard has of the part `target` of a parameter, which begins at
    `target_start`.
    """
    if start is None:
        # Of an earlier version: whole, in its shape.
        part, start = shard.get_tensor(name).reshape(-1), 0
    else:
        part = shard.get_slice(name)
    count = math.prod(shard.get_slice(name).get_shape())
    first = max(start, target_start)
    last = min(start + count, target_start + target.numel())
    if first < last:
        target[first - target_start : last - target_start] = part[first - start : last - start]

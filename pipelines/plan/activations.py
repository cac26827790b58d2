"""What autograd keeps of a pass until its gradients are there: counted on the meta device, with the
model that trains, so nothing has to be kept in step by hand.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from gwp.model.config import Group, ModelConfig
from gwp.model.transformer import Tokens, WorldActionTransformer


def activation_bytes(
    config: ModelConfig,
    tokens: Mapping[Group, int],
    latent: tuple[int, int, int],
    text_rows: int,
    dtype: torch.dtype,
    checkpointed: bool,
    samples: int = 1,
) -> int:
    """Bytes of so many samples in the moment when most is kept. latent: frames, rows and columns;
    checkpointed: blocks are computed again, so only one of them is whole at a time.
    """
    groups = tuple(sorted(tokens.items()))

    def kept(layers: int, again: bool) -> int:
        """Two sizes of a batch tell all others: some of it is no sample's, as fp32 copies of
        weights.
        """
        small = config.model_copy(update={"num_layers": layers})
        one, two = (_kept(small, groups, latent, text_rows, dtype, again, n) for n in (1, 2))
        return one + (samples - 1) * (two - one)

    # Likewise of layers, which are alike.
    one, two = kept(1, checkpointed), kept(2, checkpointed)
    total = one + (config.num_layers - 1) * (two - one)
    if checkpointed:
        total += kept(2, False) - kept(1, False)
        # What a block begins with is kept by the function that computes it again, and not by
        # autograd.
        widths = {name: width for name, (width, _) in config.experts.items()}
        begin = sum(n * widths[config.expert_of[group]] for group, n in tokens.items())
        total += config.num_layers * begin * dtype.itemsize * samples
    return total


@lru_cache(maxsize=64)
def _kept(
    config: ModelConfig,
    tokens: tuple[tuple[Group, int], ...],
    latent: tuple[int, int, int],
    text_rows: int,
    dtype: torch.dtype,
    checkpointed: bool,
    batch: int,
) -> int:
    with torch.device("meta"):
        model = WorldActionTransformer(config).to(dtype).train()
        model.gradient_checkpointing = checkpointed
        given, noise = _inputs(config, dict(tokens), latent, batch)
        text = torch.empty(batch, text_rows, config.text_dim)
        own = {_storage(p) for p in model.parameters()}
        kept: dict[int, int] = {}
        # They live until all are counted: an address that is free again would count once.
        alive = []

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Fused():
            out = model(given, noise, text, torch.zeros(batch, dtype=torch.long))
        alive += [part for part in (out.action, out.future) if part is not None]
    return sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def _inputs(
    config: ModelConfig, count: dict[Group, int], latent: tuple[int, int, int], batch: int
) -> tuple[Tokens, dict[Group, Tensor]]:
    """Tensors of these groups, and noise as training has it."""
    frames, rows, columns = latent
    channels, d = config.in_channels, config.action_channels
    noise: dict[Group, Tensor] = {}
    if "F" in count:
        noise["F"] = torch.empty(batch)
    actions = count.get("A", 0)
    if actions:
        noise["A"] = torch.empty(batch, actions)
    if actions and config.actions == "latent-frame":
        # As many as fill their frames, which have one level.
        noise["A"] = torch.empty(batch)
        actions = config.token_width * actions // d
    tokens = Tokens(
        state=torch.empty(batch, 1, d) if "S" in count else None,
        reference=torch.empty(batch, channels, 1, rows, columns),
        action=torch.empty(batch, actions, d) if actions else None,
        future=torch.empty(batch, channels, frames - 1, rows, columns) if "F" in count else None,
    )
    return tokens, noise


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel does: its inputs, its output, and a number per query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError


class _Fused(TorchFunctionMode):
    """Where attention is computed on the meta device, by the formula with its whole matrix,
    count what a GPU's kernel keeps.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))

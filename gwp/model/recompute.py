"""Blocks that are computed again in the backward pass, so that what they keep need not be kept."""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Recompute = bool | int | Literal["selective"]
"""False: nothing. True: every block. A number: so many of them, evenly spread. `selective`: of every
block all but products of matrices and attention, which are kept: most memory is elsewhere, in fp32
norms and modulation, and most time in them.
"""

_PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.baddbmm.")
# Whichever kernel torch takes for it.
_ATTENTION = "scaled_dot_product"


def again(how: Recompute, index: int, count: int) -> bool:
    """Whether block `index` of `count` is computed again."""
    if isinstance(how, bool) or how == "selective":
        return bool(how)
    return (index + 1) * how // count > index * how // count


def run(block: nn.Module, how: Recompute, index: int, count: int, *args: Any) -> Any:
    """What block `index` of `count` makes of its arguments."""
    if not (torch.is_grad_enabled() and again(how, index, count)):
        return block(*args)
    # The reentrant form wants tensors as arguments and sees no dicts of them.
    if how == "selective":
        contexts = partial(create_selective_checkpoint_contexts, _kept)
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)
    return checkpoint(block, *args, use_reentrant=False)


def _kept(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001
    """Whether the result of an operator is kept, as torch asks for each."""
    name = str(operator)
    if name.startswith(_PRODUCTS) or _ATTENTION in name:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE

"""Linear maps that compute each observation of a batch as a product of its own.

Libraries choose the kernel of a product by its number of rows, and each adds in an order of its own:
in a batch, an observation would get other last bits than alone. `FusedTransformer` has what stands
around the compiled layers computed so, which do not mix observations either.
"""

import copy

import torch
from torch import Tensor, nn


def product(x_BLD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` of `[B, L, D]`, by observation. weight: `[out, D]`"""
    batch = x_BLD.shape[0]
    return torch.baddbmm(
        bias.expand(batch, 1, -1), x_BLD, weight.t().expand(batch, *weight.t().shape)
    )


class _Alone(nn.Module):
    """In the place of an `nn.Linear`, with its weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L, in]` to `[B, L, out]`."""
        return product(x_BLD, self.weight, self.bias)


def alone(module: nn.Module) -> nn.Module:
    """`module` with all its linear maps by observation; weights are shared with the original."""
    if isinstance(module, nn.Linear):
        return _Alone(module)
    shared = {id(parameter): parameter for parameter in module.parameters()}
    made = copy.deepcopy(module, shared)
    for name, child in list(made.named_modules()):
        if isinstance(child, nn.Linear):
            made.set_submodule(name, _Alone(child))
    return made

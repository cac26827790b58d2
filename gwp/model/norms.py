"""Norms with weights, computed in fp32 whatever the dtype of what they are given.

Their gradients are written by hand: autograd would keep an fp32 copy of every input, these keep the
input itself. Compilers are shown the plain formulas, and choose by themselves what to keep.

Shape legend: D width. A suffix says the shape.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole inner width, before the split into heads."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x_D: Tensor) -> Tensor:
        """`[..., D]` to the same, in the dtype of `x`."""
        if torch.compiler.is_compiling():
            return rms_norm(x_D, self.weight, self.eps)
        normed_D: Tensor = _RMSNorm.apply(x_D, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return normed_D


class Fp32LayerNorm(nn.LayerNorm):
    """Affine layer norm. A module of its own, so that sharding engines gather its weight in both
    directions.
    """

    def forward(self, x_D: Tensor) -> Tensor:
        """`[..., D]` to the same, in the dtype of `x`."""
        if torch.compiler.is_compiling():
            weight_D, bias_D = self.weight.float(), self.bias.float()
            normed = F.layer_norm(x_D.float(), self.normalized_shape, weight_D, bias_D, self.eps)
            return normed.to(x_D.dtype)
        args = (x_D, self.weight, self.bias, self.eps)
        normed_D: Tensor = _LayerNorm.apply(*args)  # type: ignore[no-untyped-call]
        return normed_D


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """In fp32, the result in the dtype of `x`."""
    return F.rms_norm(x_D.float(), weight_D.shape, weight_D.float(), eps).to(x_D.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x_D, weight_D)
        ctx.eps = eps
        return rms_norm(x_D, weight_D, eps)

    @staticmethod
    def backward(ctx: Any, grad_D: Tensor) -> tuple[Tensor | None, ...]:
        x_D, weight_D = ctx.saved_tensors
        width, weight = weight_D.shape[0], weight_D.float()
        wide_D, grad_D = x_D.float(), grad_D.float()
        length = torch.linalg.vector_norm(wide_D, dim=-1, keepdim=True)
        scale = torch.rsqrt(length.square().div_(width).add_(ctx.eps))
        normed_D = wide_D * scale
        # As few passes over memory as there can be: both gradients begin with this product.
        work_D = normed_D * grad_D
        trains = ctx.needs_input_grad[1]
        of_weight_D = work_D.reshape(-1, width).sum(0).to(weight_D.dtype) if trains else None
        mean = (work_D @ weight).unsqueeze(-1).div_(-width)
        torch.mul(grad_D, weight, out=work_D).addcmul_(normed_D, mean).mul_(scale)
        return work_D.to(x_D.dtype), of_weight_D, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        normed_D, mean, scale = torch.native_layer_norm(
            x_D.float(), weight_D.shape, weight_D.float(), bias_D.float(), eps
        )
        ctx.save_for_backward(x_D, weight_D, bias_D, mean, scale)
        return normed_D.to(x_D.dtype)

    @staticmethod
    def backward(ctx: Any, grad_D: Tensor) -> tuple[Tensor | None, ...]:
        x_D, weight_D, bias_D, mean, scale = ctx.saved_tensors
        dx_D, of_weight_D, of_bias_D = torch.ops.aten.native_layer_norm_backward(
            grad_D.float(),
            x_D.float(),
            weight_D.shape,
            mean,
            scale,
            weight_D.float(),
            bias_D.float(),
            list(ctx.needs_input_grad[:3]),
        )
        given = (x_D, weight_D, bias_D)
        grads = (dx_D, of_weight_D, of_bias_D)
        return *(
            None if g is None else g.to(x.dtype) for x, g in zip(given, grads, strict=True)
        ), None

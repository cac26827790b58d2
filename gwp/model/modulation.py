"""What the noise of a token does to it in a block: six vectors that shift, scale and gate.

The functions here have gradients written by hand. Autograd would keep fp32 copies of most of what
they read, and the vectors of a group once for each of its tokens; these keep what they are given.

Shape legend: B batch, L tokens, m noise levels of a stream, D expert width. A suffix says the
shape: `x_BLD` is `[B, L, D]`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Runs = tuple[tuple[int, int, int], ...]
"""Groups of a stream as (first level, levels, tokens): one level for all tokens of a group, or one
for each.
"""


@dataclass(frozen=True)
class Modulation:
    """Six fp32 modulation vectors per noise level of a stream, and which level each token has.

    The transformer makes one per expert from the noise of its groups; each block adds its own
    table to it.

    levels: `[B, m, 6, D]`
    """

    levels: Tensor
    runs: Runs

    def slots(self, table: "ModulationTable") -> tuple[Tensor, ...]:
        """The six vectors with a layer's table added: shift, scale and gate of attention, then
        of the feed-forward; fp32 `[B, m, D]` each.
        """
        return table(self.levels).unbind(2)


class ModulationTable(nn.Module):
    """Learnt offsets `[1, slots, D]` of the modulation vectors. A module, so that sharding
    engines gather it where it is used.
    """

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, slots, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # A skeleton has nothing to draw, and on the meta device torch would import its whole
        # compiler to find that out.
        if not self.value.is_meta:
            nn.init.normal_(self.value, std=self.value.shape[-1] ** -0.5)

    def forward(self, levels: Tensor) -> Tensor:
        """fp32 `[B, m, slots, D]` (or broadcastable to it) plus the table."""
        # The table may lie in bf16; modulation is fp32 everywhere.
        return self.value.float().unsqueeze(1) + levels


def modulated_norm(
    x_BLD: Tensor, shift_BmD: Tensor, scale_BmD: Tensor, runs: Runs, eps: float
) -> Tensor:
    """Layer norm without weights, then shift and scale, both fp32; all of it in fp32, the result
    `[B, L, D]` in the dtype of `x`.
    """
    if torch.compiler.is_compiling():
        # Compilers choose by themselves what to keep.
        normed_BLD = F.layer_norm(x_BLD.float(), x_BLD.shape[-1:], eps=eps)
        shift, scale = by_token(shift_BmD, runs), by_token(scale_BmD, runs)
        return torch.addcmul(shift, normed_BLD, 1 + scale).to(x_BLD.dtype)
    args = (x_BLD, shift_BmD, scale_BmD, runs, eps)
    normed: Tensor = _ModulatedNorm.apply(*args)  # type: ignore[no-untyped-call]
    return normed


def gated_sum(x_BLD: Tensor, gate_BmD: Tensor, y_BLD: Tensor, runs: Runs) -> Tensor:
    """`x + gate * y` with gates in fp32; in bf16 small updates of a large residual would be
    rounded away. `[B, L, D]`, in the dtype of `x`.
    """
    if torch.compiler.is_compiling():
        gate = by_token(gate_BmD, runs)
        return torch.addcmul(x_BLD.float(), gate, y_BLD.float()).to(x_BLD.dtype)
    total: Tensor = _GatedSum.apply(x_BLD, gate_BmD, y_BLD, runs)  # type: ignore[no-untyped-call]
    return total


def by_token(vector_BmD: Tensor, runs: Runs) -> Tensor:
    """The vector of each token, `[B, 1 | L, D]`."""
    if vector_BmD.shape[1] == 1:
        return vector_BmD
    # Not by an index: backwards, that adds numbers one by one.
    parts = [vector_BmD[:, at : at + n].expand(-1, tokens, -1) for at, n, tokens in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _slices(runs: Runs) -> Iterator[tuple[slice, slice]]:
    """Of each run: its levels, its tokens."""
    start = 0
    for first, levels, tokens in runs:
        yield slice(first, first + levels), slice(start, start + tokens)
        start += tokens


def _summed(x_BLD: Tensor, shape: torch.Size, runs: Runs, wanted: bool) -> Tensor | None:
    """fp32 sums over the tokens that share a level, in this shape: that of the vectors."""
    if not wanted:
        return None
    sums_BmD = x_BLD.new_empty(x_BLD.shape[0], *shape[1:], dtype=torch.float32)
    for levels, tokens in _slices(runs):
        part = x_BLD[:, tokens]
        if levels.stop - levels.start == 1:
            torch.sum(part, 1, keepdim=True, dtype=torch.float32, out=sums_BmD[:, levels])
        else:
            sums_BmD[:, levels] = part
    # Samples may share theirs.
    return sums_BmD.sum_to_size(shape)


class _ModulatedNorm(torch.autograd.Function):
    """Keeps `x` in its own dtype, and two numbers per token."""

    @staticmethod
    def forward(
        ctx: Any, x_BLD: Tensor, shift_BmD: Tensor, scale_BmD: Tensor, runs: Runs, eps: float
    ) -> Tensor:
        normed_BLD, mean_BL1, rstd_BL1 = torch.native_layer_norm(
            x_BLD.float(), x_BLD.shape[-1:], None, None, eps
        )
        ctx.save_for_backward(x_BLD, scale_BmD, mean_BL1, rstd_BL1)
        ctx.runs, ctx.shift_shape = runs, shift_BmD.shape
        scale_BmD = 1 + scale_BmD
        for levels, tokens in _slices(runs):
            part = normed_BLD[:, tokens]
            torch.addcmul(shift_BmD[:, levels], part, scale_BmD[:, levels], out=part)
        return normed_BLD.to(x_BLD.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, scale_BmD, mean_BL1, rstd_BL1 = ctx.saved_tensors
        runs, grad_BLD = ctx.runs, grad_BLD.float()
        wide_BLD = x_BLD.float()
        work_BLD = torch.sub(wide_BLD, mean_BL1).mul_(rstd_BL1).mul_(grad_BLD)
        shift_BmD = _summed(grad_BLD, ctx.shift_shape, runs, ctx.needs_input_grad[1])
        of_scale_BmD = _summed(work_BLD, scale_BmD.shape, runs, ctx.needs_input_grad[2])
        scale_BmD = 1 + scale_BmD
        for levels, tokens in _slices(runs):
            torch.mul(grad_BLD[:, tokens], scale_BmD[:, levels], out=work_BLD[:, tokens])
        dx_BLD, _, _ = torch.ops.aten.native_layer_norm_backward(
            work_BLD,
            wide_BLD,
            x_BLD.shape[-1:],
            mean_BL1,
            rstd_BL1,
            None,
            None,
            [True, False, False],
        )
        return dx_BLD.to(x_BLD.dtype), shift_BmD, of_scale_BmD, None, None


class _GatedSum(torch.autograd.Function):
    """Keeps `y` in its own dtype, and the gates."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, gate_BmD: Tensor, y_BLD: Tensor, runs: Runs) -> Tensor:
        ctx.save_for_backward(gate_BmD, y_BLD)
        ctx.runs = runs
        sum_BLD = torch.empty_like(x_BLD)
        for levels, tokens in _slices(runs):
            gate = gate_BmD[:, levels]
            torch.addcmul(x_BLD[:, tokens], gate, y_BLD[:, tokens], out=sum_BLD[:, tokens])
        return sum_BLD

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:
        gate_BmD, y_BLD = ctx.saved_tensors
        work_BLD = grad_BLD.float() * y_BLD
        of_gate_BmD = _summed(work_BLD, gate_BmD.shape, ctx.runs, ctx.needs_input_grad[1])
        dy_BLD = work_BLD if y_BLD.dtype == torch.float32 else torch.empty_like(y_BLD)
        for levels, tokens in _slices(ctx.runs):
            torch.mul(grad_BLD[:, tokens], gate_BmD[:, levels], out=dy_BLD[:, tokens])
        return grad_BLD, of_gate_BmD, dy_BLD, None

"""One transformer block: per-expert projections around one joint, block-causal self-attention,
without a mask tensor unless some samples have no state and actions.

Shape legend: B batch, L tokens, n keys, m noise levels of a stream, H heads, h head width, D
expert width, F feed-forward width. A suffix says the shape: `x_BLD` is `[B, L, D]`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.layers import rotate
from gwp.model.modulation import Modulation, ModulationTable, gated_sum, modulated_norm
from gwp.model.norms import Fp32LayerNorm, RMSNorm

_GELU = 2 * math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class TokenOrder:
    """Where the tokens of one forward pass stand: streams by expert, canonical order by group.

    The transformer builds one per pass, and all its layers share it.

    pieces:  canonical order as (expert, start, stop) slices of the streams
    bounds:  query segments as (start, stop, key_end) in canonical order, key_end counting cached keys too
    cos/sin: rotary tables in canonical order `[L, h / 2]`
    seen:    bool `[B, 1, 1, n]`, keys that the queries of a sample may see up to their segment's
             end; None: all
    """

    pieces: tuple[tuple[str, int, int], ...]
    bounds: tuple[tuple[int, int, int], ...]
    cos: Tensor
    sin: Tensor
    seen: Tensor | None = None

    def gather(self, streams: dict[str, Tensor]) -> Tensor:
        """Streams `[B, L_e, ...]` to canonical order `[B, L, ...]`."""
        if len(self.pieces) == 1:
            return streams[self.pieces[0][0]]
        # Split and not sliced: backwards, every slice is a tensor of zeros and a sum.
        sizes: dict[str, list[int]] = {}
        for expert, start, stop in self.pieces:
            sizes.setdefault(expert, []).append(stop - start)
        parts = {expert: iter(streams[expert].split(n, dim=1)) for expert, n in sizes.items()}
        return torch.cat([next(parts[expert]) for expert, _, _ in self.pieces], dim=1)

    def scatter(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Back to one tensor per expert. parts: what comes one after the other in canonical order,
        `[B, n, ...]` each, of one group or more.
        """
        streams: dict[str, list[Tensor]] = {}
        pieces = iter(self.pieces)
        for part in parts:
            experts: list[str] = []
            sizes: list[int] = []
            while sum(sizes) < part.shape[1]:
                expert, start, stop = next(pieces)
                experts.append(expert)
                sizes.append(stop - start)
            for expert, x in zip(experts, part.split(sizes, dim=1), strict=True):
                streams.setdefault(expert, []).append(x)
        return {
            expert: p[0] if len(p) == 1 else torch.cat(p, dim=1) for expert, p in streams.items()
        }


class Attention(nn.Module):
    """Projections of one attention: q, k, v, out with bias, RMS norms of q and k over the whole
    inner width.
    """

    def __init__(self, width: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(width, inner)
        self.to_v = nn.Linear(width, inner)
        # A list of one: published checkpoints have `to_out.0`, and a dropout without weights
        # behind it.
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])
        self.norm_q = RMSNorm(inner, eps)
        self.norm_k = RMSNorm(inner, eps)

    def query(self, x_BLD: Tensor) -> Tensor:
        """Normed queries `[B, L, H, h]`, not rotated yet."""
        return self.norm_q(self.to_q(x_BLD)).unflatten(-1, (self.heads, -1))

    def key_value(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Normed keys, not rotated yet, and values: `[B, L, H, h]` each."""
        k_BLHh = self.norm_k(self.to_k(x_BLD)).unflatten(-1, (self.heads, -1))
        v_BLHh = self.to_v(x_BLD).unflatten(-1, (self.heads, -1))
        return k_BLHh, v_BLHh

    def output(self, x_BLHh: Tensor) -> Tensor:
        """Attended values to the expert's width, `[B, L, D]`."""
        return self.to_out[0](x_BLHh.flatten(2))


class GeluProjection(nn.Module):
    """`proj` and tanh-GELU: first half of the feed-forward, named as in the published
    checkpoints.
    """

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, ffn_dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, F]`, in the dtype of the weights."""
        x_BLF = self.proj(x_BLD)
        if torch.compiler.is_compiling():
            # The same function, for (1 + tanh(u)) / 2 is sigmoid(2 u): compilers for a CPU have a fast
            # exponential and no fast tanh.
            return x_BLF * torch.sigmoid(x_BLF * (_GELU + 0.044715 * _GELU * x_BLF * x_BLF))
        return F.gelu(x_BLF, approximate="tanh")


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear: the second half of an expert's block. Its names are those of
    the published checkpoints.
    """

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        # Index 1 is the dropout of the published module; it has no parameters.
        self.net = nn.ModuleList(
            [GeluProjection(width, ffn_dim), nn.Identity(), nn.Linear(ffn_dim, width)]
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L, D]` to the same, in the dtype of the weights."""
        return self.net[2](self.net[0](x_BLD))


class ExpertBlock(nn.Module):
    """The weights of one expert in one layer (a Wan 2.2 block)."""

    def __init__(self, width: int, ffn_dim: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.attn1 = Attention(width, heads, head_dim, eps)
        self.attn2 = Attention(width, heads, head_dim, eps)
        self.norm2 = Fp32LayerNorm(width, eps)
        self.ffn = FeedForward(width, ffn_dim)
        self.scale_shift_table = ModulationTable(6, width)

    def cross_attention(self, x_BLD: Tensor, text_kv: tuple[Tensor, Tensor]) -> Tensor:
        """What the tokens take from the instruction, `[B, L, D]`. text_kv: of `Block.text_kv`"""
        q_BLHh = self.attn2.query(self.norm2(x_BLD))
        k_BnHh, v_BnHh = text_kv
        # The kernels of attention want heads before tokens.
        out_BHLh = F.scaled_dot_product_attention(
            q_BLHh.transpose(1, 2), k_BnHh.transpose(1, 2), v_BnHh.transpose(1, 2)
        )
        return self.attn2.output(out_BHLh.transpose(1, 2))


class Block(nn.Module):
    """Experts of one layer around joint self-attention: each projects its own stream, all see
    each other's keys and values. `WorldActionTransformer` stacks `num_layers` of them.
    """

    def __init__(
        self, experts: dict[str, tuple[int, int]], heads: int, head_dim: int, eps: float
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(
            {
                n: ExpertBlock(width, ffn, heads, head_dim, eps)
                for n, (width, ffn) in experts.items()
            }
        )

    def text_kv(self, text: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Cross-attention keys and values `[B, L_t, H, h]` of each expert's projected text."""
        return {name: self.expert(name).attn2.key_value(t) for name, t in text.items()}

    def expert(self, name: str) -> ExpertBlock:
        """The weights of one expert."""
        expert = self.experts[name]
        assert isinstance(expert, ExpertBlock)
        return expert

    def forward(
        self,
        streams: dict[str, Tensor],
        modulation: dict[str, Modulation],
        text_kv: dict[str, tuple[Tensor, Tensor]],
        layout: TokenOrder,
        cache: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The streams after this layer, and its keys and values `[B, n, H, h]` (cached ones
        first), which a later pass may take as its cache.

        streams:    expert -> `[B, L_e, D_e]`
        modulation: expert -> the noise of its tokens
        text_kv:    of `text_kv`
        cache:      keys and values of the same layer, from an earlier pass
        """
        # Six vectors per token: its noise, with this layer's table added.
        slots = {
            name: modulation[name].slots(self.expert(name).scale_shift_table) for name in streams
        }

        # Each expert projects its own tokens.
        queries: dict[str, Tensor] = {}
        keys: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for name, x_BLD in streams.items():
            expert = self.expert(name)
            shift1, scale1 = slots[name][:2]
            runs = modulation[name].runs
            normed_BLD = modulated_norm(x_BLD, shift1, scale1, runs, expert.eps)
            queries[name] = expert.attn1.query(normed_BLD)
            keys[name], values[name] = expert.attn1.key_value(normed_BLD)

        # All of them meet in one attention, in canonical order.
        q_BLHh = layout.gather(queries)
        k_BnHh = layout.gather(keys)
        v_BnHh = layout.gather(values)
        q_BLHh = rotate(q_BLHh, layout.cos, layout.sin)
        k_BnHh = rotate(k_BnHh, layout.cos, layout.sin)
        if cache is not None:
            # Cached keys are rotated already: positions are absolute.
            k_BnHh = torch.cat([cache[0], k_BnHh], dim=1)
            v_BnHh = torch.cat([cache[1], v_BnHh], dim=1)
        attended = layout.scatter(block_causal(q_BLHh, k_BnHh, v_BnHh, layout.bounds, layout.seen))

        # Back in its stream, each goes on alone.
        result = {}
        for name, x_BLD in streams.items():
            expert, runs = self.expert(name), modulation[name].runs
            _, _, gate1, shift2, scale2, gate2 = slots[name]
            x_BLD = gated_sum(x_BLD, gate1, expert.attn1.output(attended[name]), runs)
            # Neither modulated nor gated, as in Wan.
            x_BLD = x_BLD + expert.cross_attention(x_BLD, text_kv[name])
            ffn_BLD = expert.ffn(modulated_norm(x_BLD, shift2, scale2, runs, expert.eps))
            result[name] = gated_sum(x_BLD, gate2, ffn_BLD, runs)
        return result, (k_BnHh, v_BnHh)


def block_causal(
    q_BLHh: Tensor,
    k_BnHh: Tensor,
    v_BnHh: Tensor,
    bounds: tuple[tuple[int, int, int], ...],
    seen: Tensor | None = None,
) -> list[Tensor]:
    """Each segment of queries sees the keys up to its own end, of those that are `seen`; slices
    instead of a mask keep fast kernels usable. What the segments attend to, one after the other.
    """
    # `end` counts cached keys too, `start` and `stop` only the queries of this pass.
    sizes = [stop - start for start, stop, _ in bounds]
    ends = [end for _, _, end in bounds]
    queries = q_BLHh.transpose(1, 2).split(sizes, dim=2)
    keys, values = (prefixes(x.transpose(1, 2), ends) for x in (k_BnHh, v_BnHh))
    masks = [None if seen is None else seen[..., :end] for end in ends]
    parts = map(F.scaled_dot_product_attention, queries, keys, values, masks)
    return [part.transpose(1, 2) for part in parts]


def prefixes(x_BHnh: Tensor, ends: list[int]) -> tuple[Tensor, ...]:
    """The first tokens of keys or values, up to each of these ends; the last one has all. Each is for
    an operator that gives it a gradient of its own, as attention does: they are summed in place.
    """
    if len(ends) > 1 and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        views: tuple[Tensor, ...] = _Prefixes.apply(x_BHnh, ends)  # type: ignore[no-untyped-call]
        return views
    return tuple(x_BHnh[:, :, :end] for end in ends)


class _Prefixes(torch.autograd.Function):
    """Slices whose gradients are summed in one tensor. Those of torch are padded with zeros to
    the whole length first, each of them.
    """

    @staticmethod
    def forward(ctx: Any, x_BHnh: Tensor, ends: list[int]) -> tuple[Tensor, ...]:
        ctx.ends = ends
        return tuple(x_BHnh[:, :, :end] for end in ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Fresh from attention, which is all that reads the slices: nobody else has it.
        total = grads[-1]
        for end, grad in zip(ctx.ends[:-1], grads, strict=False):
            total[:, :, :end] += grad
        return total, None

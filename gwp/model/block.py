"""One transformer block: per-expert projections around one joint, block-causal self-attention
without a mask tensor.

Shape legend: B batch, L tokens, n keys, H heads, h head width, D expert width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.layers import RMSNorm, rotate


@dataclass(frozen=True)
class TokenOrder:
    """Where the tokens of one forward pass stand. Built once per pass, shared by all layers.

    streams: expert -> number of tokens in its stream (its groups in canonical order)
    pieces:  canonical order as (expert, start, stop) slices of the streams
    bounds:  query segments as (start, stop, key_end) in canonical order, key_end counting cached keys too
    cos/sin: rotary tables in canonical order `[L, h / 2]`
    """

    streams: dict[str, int]
    pieces: tuple[tuple[str, int, int], ...]
    bounds: tuple[tuple[int, int, int], ...]
    cos: Tensor
    sin: Tensor

    def gather(self, streams: dict[str, Tensor]) -> Tensor:
        """Streams `[B, L_e, ...]` to canonical order `[B, L, ...]`."""
        parts = [streams[expert][:, start:stop] for expert, start, stop in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def scatter(self, x_BL: Tensor) -> dict[str, Tensor]:
        """Canonical order `[B, L, ...]` back to one tensor per expert."""
        parts: dict[str, list[Tensor]] = {expert: [] for expert in self.streams}
        position = 0
        for expert, start, stop in self.pieces:
            parts[expert].append(x_BL[:, position : position + stop - start])
            position += stop - start
        return {expert: p[0] if len(p) == 1 else torch.cat(p, dim=1) for expert, p in parts.items()}


@dataclass(frozen=True)
class Modulation:
    """Six fp32 modulation vectors per noise level of a stream, and which level each token has.

    levels: `[B, m, 6, D]`; index: `[L]` token -> level, or None when all tokens share one level
    (m = 1).
    """

    levels: Tensor
    index: Tensor | None

    def slots(self, table: "ModulationTable") -> tuple[Tensor, ...]:
        values = table(self.levels)
        return tuple(v if self.index is None else v[:, self.index] for v in values.unbind(2))


class ModulationTable(nn.Module):
    """Learnt offsets `[1, slots, D]` of the modulation vectors. A module, so that sharding
    engines gather it where it is used.
    """

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, slots, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.value, std=self.value.shape[-1] ** -0.5)

    def forward(self, levels: Tensor) -> Tensor:
        """fp32 `[B, m, slots, D]` (or broadcastable to it) plus the table."""
        return self.value.float().unsqueeze(1) + levels


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
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])
        self.norm_q = RMSNorm(inner, eps)
        self.norm_k = RMSNorm(inner, eps)

    def query(self, x_BLD: Tensor) -> Tensor:
        return self.norm_q(self.to_q(x_BLD)).unflatten(-1, (self.heads, -1))

    def key_value(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        k = self.norm_k(self.to_k(x_BLD)).unflatten(-1, (self.heads, -1))
        return k, self.to_v(x_BLD).unflatten(-1, (self.heads, -1))

    def output(self, x_BLHh: Tensor) -> Tensor:
        return self.to_out[0](x_BLHh.flatten(2))


class GeluProjection(nn.Module):
    """`proj` and tanh-GELU: first half of the feed-forward, named as in the published
    checkpoints.
    """

    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, ffn_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int, ffn_dim: int) -> None:
        super().__init__()
        # Index 1 is the dropout of the published module; it has no parameters.
        self.net = nn.ModuleList(
            [GeluProjection(width, ffn_dim), nn.Identity(), nn.Linear(ffn_dim, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Fp32LayerNorm(nn.LayerNorm):
    """Affine layer norm computed in fp32. A module of its own, so that sharding engines gather
    its weight in both directions.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        ).to(x.dtype)


class ExpertBlock(nn.Module):
    """The weights of one expert in one layer (a Wan 2.2 block)."""

    def __init__(self, width: int, ffn_dim: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.attn1 = Attention(width, heads, head_dim, eps)
        self.attn2 = Attention(width, heads, head_dim, eps)
        self.norm2 = Fp32LayerNorm(width, eps)
        self.ffn = FeedForward(width, ffn_dim)
        self.scale_shift_table = ModulationTable(6, width)

    def modulated_norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (F.layer_norm(x.float(), (self.width,), eps=self.eps) * (1 + scale) + shift).to(
            x.dtype
        )

    def cross_attention(self, x_BLD: Tensor, text_kv: tuple[Tensor, Tensor]) -> Tensor:
        q = self.attn2.query(self.norm2(x_BLD))
        k, v = text_kv
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        return self.attn2.output(out.transpose(1, 2))


class Block(nn.Module):
    """Experts of one layer around joint self-attention.

    `forward` takes one stream `[B, L_e, D_e]` per expert and returns the streams and this
    layer's keys and values `[B, n, H, h]` (cached ones first), which a later pass may take as
    its cache.
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
        slots = {
            name: modulation[name].slots(self.expert(name).scale_shift_table) for name in streams
        }
        qkv: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, x in streams.items():
            expert = self.expert(name)
            normed = expert.modulated_norm(x, slots[name][0], slots[name][1])
            qkv[name] = (expert.attn1.query(normed), *expert.attn1.key_value(normed))
        q, k, v = (layout.gather({name: parts[i] for name, parts in qkv.items()}) for i in range(3))
        q, k = rotate(q, layout.cos, layout.sin), rotate(k, layout.cos, layout.sin)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=1), torch.cat([cache[1], v], dim=1)
        attended = layout.scatter(_block_causal(q, k, v, layout.bounds))
        result = {}
        for name, x in streams.items():
            expert, (_, _, gate1, shift2, scale2, gate2) = self.expert(name), slots[name]
            x = (x.float() + gate1 * expert.attn1.output(attended[name]).float()).to(x.dtype)
            x = x + expert.cross_attention(x, text_kv[name])
            ffn = expert.ffn(expert.modulated_norm(x, shift2, scale2))
            result[name] = (x.float() + gate2 * ffn.float()).to(x.dtype)
        return result, (k, v)


def _block_causal(
    q_BLHh: Tensor, k_BnHh: Tensor, v_BnHh: Tensor, bounds: tuple[tuple[int, int, int], ...]
) -> Tensor:
    """Each segment of queries sees the keys up to its own end; slices instead of a mask keep
    fast kernels usable.
    """
    q, k, v = q_BLHh.transpose(1, 2), k_BnHh.transpose(1, 2), v_BnHh.transpose(1, 2)
    parts = [
        F.scaled_dot_product_attention(q[:, :, a:b], k[:, :, :end], v[:, :, :end])
        for a, b, end in bounds
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).transpose(1, 2)

"""The layers of a pass by torch's own operators: on a GPU, in bf16, and where there is no
compiler.

Shape legend: B batch, L tokens of an expert's stream, D expert width, I inner width (H * h), H
heads, h head width, N tokens that stand in the cache, L_t rows of an instruction. A suffix says
the shape: `x_BLD` is `[B, L, D]`; `_BLHr2` is a stream by head, in r = h / 2 pairs of channels.
Dicts go by expert or group and have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.block import Block, ExpertBlock
from gwp.model.config import Group, ModelConfig
from gwp.model.inference.layout import KVCache, Layers, Layout, Noise, Piece, TextKeys, join

_Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Layer:
    """One expert of one layer: weights and biases of its linear maps, norms in fp32.

    qkv:     queries, keys and values in one, `[3 I, D]`
    qk_norm: fp32 `[2, I]`, weights of the norms of queries (with the scale of attention) and keys
    norm2:   fp32, weight and bias `[D]`
    """

    qkv: _Linear
    qk_norm: Tensor
    out: _Linear
    norm2: tuple[Tensor, Tensor]
    text_q: _Linear
    text_out: _Linear
    up: _Linear
    down: _Linear


@dataclass(frozen=True)
class _View:
    """What a pass meets in one layer: views `[B, H, N, h]` into the buffers of keys and values.

    write: expert -> where its keys and values go, per run of tokens that stand together
    seen:  per segment of queries, what it sees
    text:  expert -> its instruction
    """

    write: dict[str, list[tuple[slice, Tensor, Tensor]]]
    seen: list[tuple[Tensor, Tensor]]
    text: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, layout: Layout, cache: KVCache, text: TextKeys, layer: int) -> "_View":
        keys_BHNh = cache.keys[layer]
        values_BHNh = cache.values[layer]
        first = layout.order[0].position
        write: dict[str, list[tuple[slice, Tensor, Tensor]]] = {}
        for expert, pieces in layout.pieces.items():
            write[expert] = _runs(pieces, keys_BHNh, values_BHNh)
        ends = [first + end for _, end in layout.segments]
        return cls(
            write=write,
            seen=[(keys_BHNh[:, :, :end], values_BHNh[:, :, :end]) for end in ends],
            text={e: (text.keys[e][layer], text.values[e][layer]) for e in layout.pieces},
        )


@dataclass(frozen=True)
class _Pass:
    """How some groups go through the layers beside a cache; `EagerLayers.prepare` makes it.

    segments: runs of queries that see the same, `[start, stop)` in the order of the pass
    views:    per layer
    """

    layout: Layout
    segments: list[tuple[int, int]]
    views: list[_View]


def _pack(block: ExpertBlock, scale: float) -> _Layer:
    joint = block.attn1
    cross = block.attn2
    feed = block.ffn.net

    def of(*modules: nn.Module) -> _Linear:
        linears = [linear(module) for module in modules]
        weights = [m.weight.detach() for m in linears]
        biases = [m.bias.detach() for m in linears]
        # A single map stays the model's own memory; several become one product.
        if len(linears) == 1:
            return weights[0], biases[0]
        return torch.cat(weights), torch.cat(biases)

    return _Layer(
        qkv=of(joint.to_q, joint.to_k, joint.to_v),
        # Attention then needs no scale of its own.
        qk_norm=torch.stack([joint.norm_q.weight.float() * scale, joint.norm_k.weight.float()]),
        out=of(joint.to_out[0]),
        norm2=(block.norm2.weight.float(), block.norm2.bias.float()),
        text_q=of(cross.to_q),
        text_out=of(cross.to_out[0]),
        up=of(feed[0].get_submodule("proj")),
        down=of(feed[2]),
    )


def linear(module: nn.Module) -> nn.Linear:
    """`module`, which is one."""
    assert isinstance(module, nn.Linear)
    return module


class EagerLayers:
    """The blocks of a model, weights shared but for queries, keys and values in one. No
    per-request state.
    """

    def __init__(self, blocks: Sequence[Block], config: ModelConfig) -> None:
        self.config = config
        weight = blocks[0].expert(next(iter(config.experts))).attn1.to_q.weight
        # A tensor on the device: `inverse_rms` adds to it, and a CUDA graph may meet none of the
        # host.
        self._eps = torch.tensor(config.eps, device=weight.device)
        scale = config.attention_head_dim**-0.5
        self.layers: list[dict[str, _Layer]] = []
        for block in blocks:
            self.layers.append({e: _pack(block.expert(e), scale) for e in config.experts})

    def prepare(self, layout: Layout, cache: KVCache, text: TextKeys) -> Layers:
        """For passes of `layout` beside these buffers. Takes as long as two layers."""
        # All slicing is done here, once: for one robot it takes the host as long as the layers.
        views = [_View.of(layout, cache, text, layer) for layer in range(self.config.num_layers)]
        return partial(self._run, _Pass(layout, layout.segments, views))

    def _run(
        self, token_pass: _Pass, streams: dict[str, Tensor], noise: dict[Group, Noise], full: bool
    ) -> dict[str, Tensor]:
        layout = token_pass.layout
        spans = {e: _noise_spans(pieces, noise) for e, pieces in layout.pieces.items()}
        for index, (layers, view) in enumerate(zip(self.layers, token_pass.views, strict=True)):
            mods: dict[str, list[_Mod]] = {}
            for e, of_expert in spans.items():
                mods[e] = [(span, level.block(index, e)) for span, level in of_expert]

            # Every expert writes its keys before any of them attends: they see each other's.
            queries: dict[str, Tensor] = {}
            for e, x_BLD in streams.items():
                queries[e] = self._project(
                    layers[e], x_BLD, mods[e], layout.rotation[e], view.write[e]
                )
            if not full and index == len(self.layers) - 1:
                # Only keys and values were wanted: what the last layer would make of them
                # nobody sees.
                break
            attended = self._attend(queries, token_pass, view.seen)

            for e, x_BLD in streams.items():
                layer = layers[e]
                out_BLD = F.linear(attended[e], *layer.out)
                x_BLD = _gated(x_BLD, out_BLD, mods[e], 2)
                x_BLD = self._cross_attention(layer, x_BLD, *view.text[e])
                y_BLD = _modulated(x_BLD, mods[e], 3, self.config.eps)
                up = F.gelu(F.linear(y_BLD, *layer.up), approximate="tanh")
                streams[e] = _gated(x_BLD, F.linear(up, *layer.down), mods[e], 5)
        return streams

    def _project(
        self,
        layer: _Layer,
        x_BLD: Tensor,
        mods: list["_Mod"],
        rotation_L11r2: Tensor,
        write: list[tuple[slice, Tensor, Tensor]],
    ) -> Tensor:
        """Queries `[B, H, L_e, h]`; keys and values go into the cache."""
        inner, heads = self.config.width, self.config.num_attention_heads
        qkv_BLI = F.linear(_modulated(x_BLD, mods, 0, self.config.eps), *layer.qkv)

        # Norm and rotation of queries and keys in one: a pair of channels is a complex number,
        # and what turns it carries the norm's factor as its length.
        qk_BL2I = qkv_BLI[..., : 2 * inner].unflatten(-1, (2, inner))
        factor_BL2 = inverse_rms(qk_BL2I, self._eps)
        turn = torch.view_as_complex(rotation_L11r2 * factor_BL2[..., None, None])
        weighted_BL2Hr2 = (qk_BL2I * layer.qk_norm).unflatten(-1, (heads, -1, 2))
        turned = torch.view_as_complex(weighted_BL2Hr2) * turn
        q_BHLh, k_BHLh = torch.view_as_real(turned).flatten(-2).permute(2, 0, 3, 1, 4)

        v_BHLh = qkv_BLI[..., 2 * inner :].unflatten(-1, (heads, -1)).transpose(1, 2)
        for span, keys, values in write:
            keys.copy_(k_BHLh[:, :, span])
            values.copy_(v_BHLh[:, :, span])
        return _as(q_BHLh, x_BLD)

    def _cross_attention(
        self, layer: _Layer, x_BLD: Tensor, keys_BHNh: Tensor, values_BHNh: Tensor
    ) -> Tensor:
        """`x` and what it takes from the instruction."""
        q_BLI = F.linear(layer_norm(x_BLD, layer.norm2, self.config.eps), *layer.text_q)
        # The weight of this norm is in the keys.
        q_BLI = _as(q_BLI * inverse_rms(q_BLI, self._eps), x_BLD)
        q_BHLh = q_BLI.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
        out_BLI = attention(q_BHLh, keys_BHNh, values_BHNh)
        return F.linear(out_BLI, *layer.text_out).add_(x_BLD)

    def _attend(
        self, queries: dict[str, Tensor], token_pass: _Pass, seen: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Each segment of queries sees the cache up to its own end. Returns `[B, L_e, I]` per
        expert.
        """
        order = token_pass.layout.order
        if len(order) == 1:
            return {e: attention(q_BHLh, *seen[0]) for e, q_BHLh in queries.items()}
        q_BHLh = torch.cat([queries[p.expert][:, :, p.start : p.stop] for p in order], dim=2)
        parts_BLI = [
            attention(q_BHLh[:, :, start:stop], *cache)
            for (start, stop), cache in zip(token_pass.segments, seen, strict=True)
        ]
        out_BLI = join(parts_BLI)
        # The pieces of a single expert stand in its stream as they do in the pass.
        if len(queries) == 1:
            return dict.fromkeys(queries, out_BLI)
        attended: dict[str, Tensor] = {}
        for expert, pieces in token_pass.layout.pieces.items():
            spans = [_within(order, piece) for piece in pieces]
            attended[expert] = join([out_BLI[:, span] for span in spans])
        return attended


def _within(order: list[Piece], piece: Piece) -> slice:
    """Where a piece stands among all tokens of its pass."""
    start = piece.position - order[0].position
    return slice(start, start + piece.stop - piece.start)


def attention(q_BHLh: Tensor, keys_BHNh: Tensor, values_BHNh: Tensor) -> Tensor:
    """softmax(q k) v from `[B, H, L, h]` and `[B, H, N, h]` to `[B, L, I]`; the scale is in the
    queries.
    """
    out_BHLh = F.scaled_dot_product_attention(q_BHLh, keys_BHNh, values_BHNh, scale=1.0)
    return out_BHLh.transpose(1, 2).flatten(2)


# Tokens of a stream, and the six modulations of their noise: shift, scale and gate of attention,
# then of the feed-forward; fp32 `[D]`, or `[B, 1 | L, D]`.
_Mod = tuple[slice, tuple[Tensor, ...]]


def _runs(
    pieces: list[Piece], keys_BHNh: Tensor, values_BHNh: Tensor
) -> list[tuple[slice, Tensor, Tensor]]:
    """Spans of a stream that stand together in the cache, with the keys and values there."""
    spans: list[tuple[int, int, int]] = []
    for p in pieces:
        if spans and spans[-1][2] + spans[-1][1] - spans[-1][0] == p.position:
            spans[-1] = (spans[-1][0], p.stop, spans[-1][2])
        else:
            spans.append((p.start, p.stop, p.position))
    runs: list[tuple[slice, Tensor, Tensor]] = []
    for start, stop, position in spans:
        end = position + stop - start
        keys, values = keys_BHNh[:, :, position:end], values_BHNh[:, :, position:end]
        runs.append((slice(start, stop), keys, values))
    return runs


def _noise_spans(pieces: list[Piece], noise: dict[Group, Noise]) -> list[tuple[slice, Noise]]:
    """Spans of a stream that have one noise, with it."""
    spans: list[tuple[slice, Noise]] = []
    for p in pieces:
        level = noise[p.group]
        if spans and spans[-1][1] is level:
            spans[-1] = (slice(spans[-1][0].start, p.stop), level)
        else:
            spans.append((slice(p.start, p.stop), level))
    return spans


# `to` and `float` are calls of the dispatcher even where they do nothing, and a step of one
# robot is a thousand small calls.
def _as(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype is like.dtype else x.to(like.dtype)


def _float(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def inverse_rms(x: Tensor, eps: Tensor) -> Tensor:
    """fp32 `1 / sqrt(mean(x^2) + eps)` over the last axis, kept."""
    # Two kernels instead of five, and no copy of `x` in fp32.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


def layer_norm(x_BLD: Tensor, affine: tuple[Tensor, Tensor] | None, eps: float) -> Tensor:
    """In fp32, in the dtype of `x`. affine: fp32 weight and bias `[D]`"""
    weight, bias = affine or (None, None)
    normed_BLD = torch.layer_norm(_float(x_BLD), x_BLD.shape[-1:], weight, bias, eps)
    return _as(normed_BLD, x_BLD)


def _modulated(x_BLD: Tensor, mods: list[_Mod], slot: int, eps: float) -> Tensor:
    """Layer norm, then the scale and shift of each span; fp32 inside, in the dtype of `x`.

    slot: of the shift among the six modulations; the scale follows it, as 1 + scale
    """
    shift, scale = mods[0][1][slot : slot + 2]
    width = x_BLD.shape[-1:]
    if len(mods) == 1 and shift.ndim == 1:
        # One level for all tokens: the norm's own affine form.
        return _as(torch.layer_norm(_float(x_BLD), width, scale, shift, eps), x_BLD)
    normed_BLD = torch.layer_norm(_float(x_BLD), width, eps=eps)
    parts = [torch.addcmul(mod[slot], normed_BLD[:, span], mod[slot + 1]) for span, mod in mods]
    return _as(join(parts), x_BLD)


def _gated(x_BLD: Tensor, y_BLD: Tensor, mods: list[_Mod], slot: int) -> Tensor:
    """`x + gate * y` in fp32, in the dtype of `x`. slot: of the gate"""
    if len(mods) == 1:
        gate = mods[0][1][slot]
        return _as(torch.addcmul(_float(x_BLD), gate, _float(y_BLD)), x_BLD)
    parts = [
        torch.addcmul(_float(x_BLD[:, span]), mod[slot], _float(y_BLD[:, span]))
        for span, mod in mods
    ]
    return _as(join(parts), x_BLD)

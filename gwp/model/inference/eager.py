"""The layers of a pass by torch's own operators: on a GPU, in bf16, and where there is no
compiler.

Shape legend: B batch, L tokens of a pass, D expert width, I inner width, H heads, h head width.
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
    """One expert of one layer: weights and biases of its linear maps, norms in fp32."""

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
    """What a pass meets in one layer; keys and values `[B, H, places, h]`.

    write: expert -> where its keys and values go, per run of places; seen: per segment of
    queries; text: expert -> its instruction
    """

    write: dict[str, list[tuple[slice, Tensor, Tensor]]]
    seen: list[tuple[Tensor, Tensor]]
    text: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Pass:
    """How some groups go through the layers beside a cache."""

    layout: Layout
    segments: list[tuple[int, int]]
    views: list[_View]


def _pack(block: ExpertBlock, scale: float) -> _Layer:
    joint, cross, feed = block.attn1, block.attn2, block.ffn.net

    def of(*modules: nn.Module) -> _Linear:
        found = [linear(module) for module in modules]
        weights, biases = [m.weight.detach() for m in found], [m.bias.detach() for m in found]
        return (
            (weights[0], biases[0]) if len(found) == 1 else (torch.cat(weights), torch.cat(biases))
        )

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
        self._eps = torch.tensor(config.eps, device=weight.device)
        scale = config.attention_head_dim**-0.5
        self.layers = [
            {e: _pack(block.expert(e), scale) for e in config.experts} for block in blocks
        ]

    def prepare(self, layout: Layout, cache: KVCache, text: TextKeys) -> Layers:
        """For passes of `layout` beside these buffers. Takes as long as two layers."""
        segments = layout.segments
        first = layout.order[0].place
        views = [
            _View(
                {
                    e: _runs(mine, cache.keys[i], cache.values[i])
                    for e, mine in layout.pieces.items()
                },
                [
                    (cache.keys[i][:, :, : first + end], cache.values[i][:, :, : first + end])
                    for _, end in segments
                ],
                {e: (text.keys[e][i], text.values[e][i]) for e in layout.pieces},
            )
            for i in range(self.config.num_layers)
        ]
        return partial(self._run, _Pass(layout, segments, views))

    def _run(
        self, through: _Pass, streams: dict[str, Tensor], noise: dict[Group, Noise], full: bool
    ) -> dict[str, Tensor]:
        parts = {e: _parts(mine, noise) for e, mine in through.layout.pieces.items()}
        for index, (layers, view) in enumerate(zip(self.layers, through.views, strict=True)):
            mods = {
                e: [(span, level.block(index, e)) for span, level in mine]
                for e, mine in parts.items()
            }
            rotation = through.layout.rotation
            queries = {
                e: self._project(layers[e], x, mods[e], rotation[e], view.write[e])
                for e, x in streams.items()
            }
            if not full and index == len(self.layers) - 1:
                # Only keys and values were wanted: what the last layer would make of them
                # nobody sees.
                break
            attended = self._attend(queries, through, view.seen)
            for e, x in streams.items():
                layer = layers[e]
                x = _gated(x, F.linear(attended[e], *layer.out), mods[e], 2)
                x = self._cross_attention(layer, x, *view.text[e])
                y = _modulated(x, mods[e], 3, self.config.eps)
                y = F.linear(F.gelu(F.linear(y, *layer.up), approximate="tanh"), *layer.down)
                streams[e] = _gated(x, y, mods[e], 5)
        return streams

    def _project(
        self,
        layer: _Layer,
        x: Tensor,
        mods: list["_Mod"],
        rotation: Tensor,
        write: list[tuple[slice, Tensor, Tensor]],
    ) -> Tensor:
        """Queries `[B, H, L_e, h]`; keys and values go into the cache."""
        inner, heads = self.config.width, self.config.num_attention_heads
        y = F.linear(_modulated(x, mods, 0, self.config.eps), *layer.qkv)
        qk = y[..., : 2 * inner].unflatten(-1, (2, inner))
        turn = torch.view_as_complex(rotation * inverse_rms(qk, self._eps)[..., None, None])
        pairs = torch.view_as_complex((qk * layer.qk_norm).unflatten(-1, (heads, -1, 2)))
        q, k = torch.view_as_real(pairs * turn).flatten(-2).permute(2, 0, 3, 1, 4)
        v = y[..., 2 * inner :].unflatten(-1, (heads, -1)).transpose(1, 2)
        for span, keys, values in write:
            keys.copy_(k[:, :, span])
            values.copy_(v[:, :, span])
        return _as(q, x)

    def _cross_attention(self, layer: _Layer, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = F.linear(layer_norm(x, layer.norm2, self.config.eps), *layer.text_q)
        q = (
            _as(q * inverse_rms(q, self._eps), x)
            .unflatten(-1, (self.config.num_attention_heads, -1))
            .transpose(1, 2)
        )
        return F.linear(attention(q, keys, values), *layer.text_out).add_(x)

    def _attend(
        self, queries: dict[str, Tensor], through: _Pass, seen: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Each segment of queries sees the cache up to its own end. Returns `[B, L_e, I]` per
        expert.
        """
        order = through.layout.order
        if len(order) == 1:
            return {e: attention(q, *seen[0]) for e, q in queries.items()}
        q = torch.cat([queries[p.expert][:, :, p.start : p.stop] for p in order], dim=2)
        out = join(
            [
                attention(q[:, :, a:b], *cache)
                for (a, b), cache in zip(through.segments, seen, strict=True)
            ]
        )
        if len(queries) == 1:
            return dict.fromkeys(queries, out)
        at = {p.group: p.place - order[0].place for p in order}
        return {
            e: join([out[:, at[p.group] : at[p.group] + p.stop - p.start] for p in mine])
            for e, mine in through.layout.pieces.items()
        }


def attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k) v from `[B, H, L, h]` and `[B, H, N, h]` to `[B, L, H * h]`; the scale is in
    the queries.
    """
    return F.scaled_dot_product_attention(q, keys, values, scale=1.0).transpose(1, 2).flatten(2)


# Tokens of a stream, and the six modulations of their noise.
_Mod = tuple[slice, tuple[Tensor, ...]]


def _runs(pieces: list[Piece], keys: Tensor, values: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """Spans of a stream that stand in one run of places, with that run."""
    spans: list[tuple[int, int, int]] = []
    for p in pieces:
        if spans and spans[-1][2] + spans[-1][1] - spans[-1][0] == p.place:
            spans[-1] = (spans[-1][0], p.stop, spans[-1][2])
        else:
            spans.append((p.start, p.stop, p.place))
    return [
        (slice(a, b), keys[:, :, at : at + b - a], values[:, :, at : at + b - a])
        for a, b, at in spans
    ]


def _parts(pieces: list[Piece], noise: dict[Group, Noise]) -> list[tuple[slice, Noise]]:
    """Spans of a stream that have one noise, with it."""
    spans: list[tuple[slice, Noise]] = []
    for p in pieces:
        level = noise[p.group]
        if spans and spans[-1][1] is level:
            spans[-1] = (slice(spans[-1][0].start, p.stop), level)
        else:
            spans.append((slice(p.start, p.stop), level))
    return spans


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype is like.dtype else x.to(like.dtype)


def _float(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def inverse_rms(x: Tensor, eps: Tensor) -> Tensor:
    """fp32 `1 / sqrt(mean(x^2) + eps)` over the last axis, kept."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()


def layer_norm(x: Tensor, affine: tuple[Tensor, Tensor] | None, eps: float) -> Tensor:
    """In fp32, in the dtype of `x`."""
    weight, bias = affine or (None, None)
    return _as(torch.layer_norm(_float(x), x.shape[-1:], weight, bias, eps), x)


def _modulated(x: Tensor, mods: list[_Mod], slot: int, eps: float) -> Tensor:
    """Layer norm, then the scale and shift of each span; fp32 inside, in the dtype of `x`."""
    shift, scale = mods[0][1][slot : slot + 2]
    if len(mods) == 1 and shift.ndim == 1:
        # One level for all tokens: the norm's own affine form.
        return _as(torch.layer_norm(_float(x), x.shape[-1:], scale, shift, eps), x)
    normed = torch.layer_norm(_float(x), x.shape[-1:], eps=eps)
    return _as(
        join([torch.addcmul(mod[slot], normed[:, span], mod[slot + 1]) for span, mod in mods]), x
    )


def _gated(x: Tensor, y: Tensor, mods: list[_Mod], slot: int) -> Tensor:
    """`x + gate * y` in fp32, in the dtype of `x`."""
    if len(mods) == 1:
        return _as(torch.addcmul(_float(x), mods[0][1][slot], _float(y)), x)
    return _as(
        join(
            [torch.addcmul(_float(x[:, span]), mod[slot], _float(y[:, span])) for span, mod in mods]
        ),
        x,
    )

"""The transformer arranged for inference: packed projections, modulation looked up, keys and values in buffers of fixed shape.

Same weights and same mathematics as `WorldActionTransformer`, for noise levels that are known beforehand (a solver's). A pass writes
the keys and values of its tokens into a `Cache` and sees what stands there before them: a prefix is computed once, and passes of
later token groups go on from it. No pass reads anything back from the device.

Shape legend: B batch, L tokens of a pass, N places of a cache, n noise levels, D expert width, I inner width, H heads, h head width.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwp.model.block import Block, ExpertBlock
from gwp.model.config import GROUPS, Group
from gwp.model.layers import unpatchify
from gwp.model.products import PackedLinear, attention
from gwp.model.transformer import SEGMENTS, Tokens, Velocity, WorldActionTransformer, rotary


@dataclass(frozen=True)
class Levels:
    """Modulation at known noise levels; the last one is clean. A scale is stored as 1 + scale.

    blocks: per layer, expert -> fp32 `[n, 6, D]`
    out:    expert -> fp32 `[n, 2, D]`
    """

    blocks: tuple[dict[str, Tensor], ...]
    out: dict[str, Tensor]

    @property
    def clean(self) -> int:
        return next(iter(self.out.values())).shape[0] - 1


class Noise:
    """The noise level of a group's tokens: one level for all, or rows of `levels` by int64 `[B, 1]` or `[B, L]`."""

    def __init__(self, levels: Levels, index: int | Tensor) -> None:
        self.levels, self.index = levels, index
        self.single = isinstance(index, int)
        # Views of one level are always the same; rows by tensor are looked up when they are needed.
        self._blocks = [{e: table[index].unbind(0) for e, table in layer.items()} for layer in levels.blocks] if self.single else None

    def block(self, layer: int, expert: str) -> tuple[Tensor, ...]:
        """Six of `[D]`, or of `[B, 1 | L, D]`."""
        return self._blocks[layer][expert] if self._blocks else self.levels.blocks[layer][expert][self.index].unbind(2)

    def out(self, expert: str) -> tuple[Tensor, ...]:
        """Two of `[D]`, or of `[B, 1 | L, D]`."""
        return self.levels.out[expert][self.index].unbind(0 if self.single else 2)


@dataclass(frozen=True)
class TextKeys:
    """Cross-attention keys and values of instructions: expert -> `[layers, B, H, L_t, h]`."""

    keys: dict[str, Tensor]
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Cache:
    """Keys and values of self-attention `[layers, B, H, N, h]`, and where in N each group's tokens stand."""

    keys: Tensor
    values: Tensor
    places: dict[Group, tuple[int, int]]


@dataclass(frozen=True)
class _Layer:
    """One expert of one layer; norms in fp32."""

    qkv: PackedLinear
    qk_norm: Tensor
    out: PackedLinear
    norm2: tuple[Tensor, Tensor]
    text_q: PackedLinear
    text_kv: PackedLinear
    text_norm: Tensor
    text_out: PackedLinear
    up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class _Piece:
    """Tokens of one group `[start, stop)` in their expert's stream; in the cache they stand from `place`."""

    expert: str
    group: Group
    start: int
    stop: int
    place: int


@dataclass(frozen=True)
class _View:
    """What a pass meets in one layer; keys and values `[B, H, places, h]`.

    write: expert -> where its keys and values go, per run of places; seen: per segment of queries; text: expert -> its instruction;
    keys that are seen are transposed `[B, H, h, places]`
    """

    write: dict[str, list[tuple[slice, Tensor, Tensor]]]
    seen: list[tuple[Tensor, Tensor]]
    text: dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pass:
    """How some groups go through the model beside a cache. Made once, run at any noise: making it takes as long as two layers.

    order: pieces as they stand in the cache; segments: of their queries, each of which sees the cache up to its own end
    """

    pieces: dict[str, list[_Piece]]
    order: list[_Piece]
    segments: list[tuple[int, int]]
    rotation: dict[str, Tensor]
    layers: list[_View]
    embodiment: Tensor


def _pack(block: ExpertBlock, scale: float, int8: bool) -> _Layer:
    joint, cross, feed = block.attn1, block.attn2, block.ffn.net
    return _Layer(
        qkv=PackedLinear(joint.to_q, joint.to_k, joint.to_v, int8=int8),
        # Attention then needs no scale of its own.
        qk_norm=torch.stack([joint.norm_q.weight.float() * scale, joint.norm_k.weight.float()]),
        out=PackedLinear(_linear(joint.to_out[0]), int8=int8),
        norm2=(block.norm2.weight.float(), block.norm2.bias.float()),
        text_q=PackedLinear(cross.to_q, int8=int8),
        text_kv=PackedLinear(cross.to_k, cross.to_v, int8=int8),
        # No rotation stands between the two norms of cross-attention, so the query's weight may go into the cached keys.
        text_norm=cross.norm_k.weight.float() * cross.norm_q.weight.float() * scale,
        text_out=PackedLinear(_linear(cross.to_out[0]), int8=int8),
        up=PackedLinear(_linear(feed[0].get_submodule("proj")), int8=int8),
        down=PackedLinear(_linear(feed[2]), int8=int8),
    )


class FusedTransformer:
    """Inference with the weights of a model, shared where they need no packing. It holds no per-request state.

    The model itself is not kept: dropped by its owner, its blocks leave memory. Every method is to be called in
    `torch.inference_mode()`, with tensors on the model's device.

    int8: experts whose products are computed in 8 bits (CPU, fp32). Inputs are scaled by the largest number of a call, so that a
    result then depends on everything it is computed together with.
    """

    def __init__(self, model: WorldActionTransformer, int8: Collection[str] = ()) -> None:
        self.config = model.config
        self.dtype, self.device = model.proj_out.weight.dtype, model.proj_out.weight.device
        self._conditions = {e: model.condition(e) for e in self.config.experts}
        self._encoders = {"S": model.state_encoder or model.action_encoder, "A": model.action_encoder}
        self._patch_embedding, self._decoder, self._proj_out = model.patch_embedding, model.action_decoder, model.proj_out
        self._eps = torch.tensor(self.config.eps, device=self.device)
        self._rotations: dict[tuple[object, ...], Tensor] = {}
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        with torch.inference_mode():
            scale = self.config.attention_head_dim**-0.5
            self.layers = [{e: _pack(block.expert(e), scale, e in int8) for e in self.config.experts} for block in blocks]
        self._tables = [{e: block.expert(e).scale_shift_table for e in self.config.experts} for block in blocks]
        self._out_tables = dict(model.out_tables.items())

    def levels(self, sigmas: Tensor) -> Levels:
        """Modulation at noise levels fp32 `[n]`, and at 0 after them. Computed once per solver: it depends on nothing else."""
        known = torch.cat([sigmas.float().to(self.device), torch.zeros(1, device=self.device)])
        ones = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], device=self.device)[:, None]
        conditions = {e: condition.time(known[None] * 1000.0) for e, condition in self._conditions.items()}
        blocks = tuple({e: (table(conditions[e][1]) + ones)[0] for e, table in tables.items()} for tables in self._tables)
        out = {e: (table(conditions[e][0].unsqueeze(2)) + ones[:2])[0] for e, table in self._out_tables.items()}
        return Levels(blocks, out)

    def text_keys(self, text: Tensor) -> TextKeys:
        """From embeddings `[B, L_t, text_dim]`."""
        heads, inner = self.config.num_attention_heads, self.config.width
        keys, values = {}, {}
        for expert in self.config.experts:
            x = self._conditions[expert].text(text)
            projected = [layer[expert].text_kv(x).split(inner, dim=-1) for layer in self.layers]
            normed = [(k * (self._inverse_rms(k) * layer[expert].text_norm)).to(x.dtype)
                      for (k, _), layer in zip(projected, self.layers, strict=True)]
            keys[expert] = torch.stack(normed).unflatten(-1, (heads, -1)).transpose(2, 3).contiguous()
            values[expert] = torch.stack([v for _, v in projected]).unflatten(-1, (heads, -1)).transpose(2, 3).contiguous()
        return TextKeys(keys, values)

    def cache(self, batch: int, counts: dict[Group, int]) -> Cache:
        """Zeros, with room for that many tokens of each group, in canonical order."""
        places: dict[Group, tuple[int, int]] = {}
        end = 0
        for group in (g for g in GROUPS if g in counts):
            places[group] = (end, end + counts[group])
            end += counts[group]
        shape = (self.config.num_layers, batch, self.config.num_attention_heads, end, self.config.attention_head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return Cache(keys, values, places)

    def prepare(self, tokens: Tokens, cache: Cache, text: TextKeys, embodiment: Tensor) -> Pass:
        """The pass of the groups in `tokens`, of which only shapes count, beside these buffers.

        The groups stand together in the cache, after those that were written before. embodiment: int64 `[B]`, row of the
        embodiment-specific projections, checked by the caller.
        """
        pieces: dict[str, list[_Piece]] = {}
        order = []
        present = tokens.present()
        for group in (g for g in GROUPS if g in present):
            mine = pieces.setdefault(self.config.expert_of[group], [])
            start, (place, end) = mine[-1].stop if mine else 0, cache.places[group]
            order.append(_Piece(self.config.expert_of[group], group, start, start + end - place, place))
            mine.append(order[-1])
        first = order[0].place
        groups = [[g for g in segment if g in present] for segment in SEGMENTS]
        ends = [max(cache.places[g][1] for g in segment) for segment in groups if segment]
        views = [
            _View(
                {e: _runs(mine, cache.keys[i], cache.values[i]) for e, mine in pieces.items()},
                [(cache.keys[i][:, :, :end].mT, cache.values[i][:, :, :end]) for end in ends],
                {e: (text.keys[e][i].mT, text.values[e][i]) for e in pieces},
            )
            for i in range(self.config.num_layers)
        ]
        segments = [(a - first, b - first) for a, b in zip([first, *ends], ends, strict=False)]
        rotation = {e: self._rotation(tokens, [p.group for p in mine]) for e, mine in pieces.items()}
        return Pass(pieces, order, segments, rotation, views, embodiment)

    def run(self, tokens: Tokens, noise: dict[Group, Noise], through: Pass, heads: Collection[Group] = ()) -> Velocity:
        """One pass over the groups in `tokens`; their keys and values are written into the cache. Returns the velocities of `heads`.

        Groups of one noise share one `Noise`.
        """
        embedded = self._embed(tokens, through.embodiment)
        streams = {e: _join([embedded[p.group] for p in mine]) for e, mine in through.pieces.items()}
        parts = {e: _parts(mine, noise) for e, mine in through.pieces.items()}
        for index, (layers, view) in enumerate(zip(self.layers, through.layers, strict=True)):
            mods = {e: [(span, level.block(index, e)) for span, level in mine] for e, mine in parts.items()}
            queries = {e: self._project(layers[e], x, mods[e], through.rotation[e], view.write[e]) for e, x in streams.items()}
            if not heads and index == len(self.layers) - 1:
                # Only keys and values were wanted: what the last layer would make of them nobody sees.
                break
            attended = self._attend(queries, through, view.seen)
            for e, x in streams.items():
                layer = layers[e]
                x = _gated(x, layer.out(attended[e]), mods[e], 2)
                x = self._cross_attention(layer, x, *view.text[e])
                y = _modulated(x, mods[e], 3, self.config.eps)
                streams[e] = _gated(x, layer.down(layer.up(y, gelu=True)), mods[e], 5)
        return self._heads(tokens, streams, through, noise, heads)

    def _embed(self, tokens: Tokens, embodiment: Tensor) -> dict[Group, Tensor]:
        encoded: dict[Group, Tensor] = {}
        for group, x in tokens.present().items():
            encoder = self._encoders.get(group)
            encoded[group] = encoder(x.to(self.dtype), embodiment) if encoder else self._patch_embedding(x)
        return encoded

    def _project(
        self, layer: _Layer, x: Tensor, mods: list["_Mod"], rotation: Tensor, write: list[tuple[slice, Tensor, Tensor]]
    ) -> Tensor:
        """Queries `[B, H, L_e, h]`; keys and values go into the cache."""
        inner, heads = self.config.width, self.config.num_attention_heads
        y = layer.qkv(_modulated(x, mods, 0, self.config.eps))
        qk = y[..., : 2 * inner].unflatten(-1, (2, inner))
        turn = torch.view_as_complex(rotation * self._inverse_rms(qk)[..., None, None])
        pairs = torch.view_as_complex((qk * layer.qk_norm).unflatten(-1, (heads, -1, 2)))
        q, k = torch.view_as_real(pairs * turn).flatten(-2).permute(2, 0, 3, 1, 4)
        v = y[..., 2 * inner :].unflatten(-1, (heads, -1)).transpose(1, 2)
        for span, keys, values in write:
            keys.copy_(k[:, :, span])
            values.copy_(v[:, :, span])
        return _as(q, x)

    def _inverse_rms(self, x: Tensor) -> Tensor:
        """fp32 `1 / sqrt(mean(x^2) + eps)` over the last axis, kept."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()

    def _cross_attention(self, layer: _Layer, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = layer.text_q(_layer_norm(x, layer.norm2, self.config.eps))
        q = _as(q * self._inverse_rms(q), x).unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)
        return layer.text_out(attention(q, keys, values), add=x)

    def _attend(self, queries: dict[str, Tensor], through: Pass, seen: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Each segment of queries sees the cache up to its own end. Returns `[B, L_e, I]` per expert."""
        if len(through.order) == 1:
            return {e: attention(q, *seen[0]) for e, q in queries.items()}
        q = torch.cat([queries[p.expert][:, :, p.start : p.stop] for p in through.order], dim=2)
        out = _join([attention(q[:, :, a:b], *cache) for (a, b), cache in zip(through.segments, seen, strict=True)])
        if len(queries) == 1:
            return dict.fromkeys(queries, out)
        at = {p.group: p.place - through.order[0].place for p in through.order}
        return {e: _join([out[:, at[p.group] : at[p.group] + p.stop - p.start] for p in mine]) for e, mine in through.pieces.items()}

    def _rotation(self, tokens: Tokens, groups: list[Group]) -> Tensor:
        """Cosine and sine `[L_e, 1, 1, h / 2, 2]`."""
        present = tokens.present()
        key = tuple((g, tuple(present[g].shape[1:])) for g in groups)
        if key not in self._rotations:
            tables = [rotary(self.config, g, present[g].shape) for g in groups]
            cos_sin = [torch.cat(parts) for parts in zip(*tables, strict=True)]
            self._rotations[key] = torch.stack(cos_sin, dim=-1)[:, None, None].to(self.device)
        return self._rotations[key]

    def _heads(
        self, tokens: Tokens, streams: dict[str, Tensor], through: Pass, noise: dict[Group, Noise], heads: Collection[Group]
    ) -> Velocity:
        result: dict[Group, Tensor] = {}
        for piece in (p for p in through.order if p.group in heads):
            shift, scale = noise[piece.group].out(piece.expert)
            x = streams[piece.expert][:, piece.start : piece.stop]
            y = torch.addcmul(shift, _layer_norm(x.float(), None, self.config.eps), scale).to(self.dtype)
            if piece.group == "A":
                result["A"] = self._decoder(y, through.embodiment)
            else:
                T, h, w = tokens.present()[piece.group].shape[2:]
                _, ph, pw = self.config.patch_size
                result[piece.group] = unpatchify(self._proj_out(y), T, h // ph, w // pw, self.config.patch_size)
        return Velocity(action=result.get("A"), future=result.get("F"), reference=result.get("R"))


# Tokens of a stream, and the six modulations of their noise.
_Mod = tuple[slice, tuple[Tensor, ...]]


def _runs(pieces: list[_Piece], keys: Tensor, values: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """Spans of a stream that stand in one run of places, with that run."""
    spans: list[tuple[int, int, int]] = []
    for p in pieces:
        if spans and spans[-1][2] + spans[-1][1] - spans[-1][0] == p.place:
            spans[-1] = (spans[-1][0], p.stop, spans[-1][2])
        else:
            spans.append((p.start, p.stop, p.place))
    return [(slice(a, b), keys[:, :, at : at + b - a], values[:, :, at : at + b - a]) for a, b, at in spans]


def _parts(pieces: list[_Piece], noise: dict[Group, Noise]) -> list[tuple[slice, Noise]]:
    """Spans of a stream that have one noise, with it."""
    spans: list[tuple[slice, Noise]] = []
    for p in pieces:
        level = noise[p.group]
        if spans and spans[-1][1] is level:
            spans[-1] = (slice(spans[-1][0].start, p.stop), level)
        else:
            spans.append((slice(p.start, p.stop), level))
    return spans


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype is like.dtype else x.to(like.dtype)


def _float(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def _layer_norm(x: Tensor, affine: tuple[Tensor, Tensor] | None, eps: float) -> Tensor:
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
    return _as(_join([torch.addcmul(mod[slot], normed[:, span], mod[slot + 1]) for span, mod in mods]), x)


def _gated(x: Tensor, y: Tensor, mods: list[_Mod], slot: int) -> Tensor:
    """`x + gate * y` in fp32, in the dtype of `x`."""
    if len(mods) == 1:
        return _as(torch.addcmul(_float(x), mods[0][1][slot], _float(y)), x)
    return _as(_join([torch.addcmul(_float(x[:, span]), mod[slot], _float(y[:, span])) for span, mod in mods]), x)

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
from torch.nn import functional as F

from gwp.model.block import Block, ExpertBlock
from gwp.model.config import GROUPS, Group
from gwp.model.layers import unpatchify
from gwp.model.transformer import SEGMENTS, Tokens, Velocity, WorldActionTransformer, rotary

# Numbers in a weight from which on packing pays; measured with 48 tokens.
PACKED = 1 << 18


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


@dataclass(frozen=True)
class Noise:
    """The noise level of a group's tokens: one level for all, or rows of `levels` by int64 `[B, 1]` or `[B, L]`."""

    levels: Levels
    index: int | Tensor

    def block(self, layer: int, expert: str) -> tuple[Tensor, ...]:
        """Six of `[1 | B, 1 | L, D]`."""
        return self._rows(self.levels.blocks[layer][expert])

    def out(self, expert: str) -> tuple[Tensor, ...]:
        """Two of `[1 | B, 1 | L, D]`."""
        return self._rows(self.levels.out[expert])

    def _rows(self, table: Tensor) -> tuple[Tensor, ...]:
        rows = table[self.index][None, None] if isinstance(self.index, int) else table[self.index]
        return rows.unbind(2)


@dataclass(frozen=True)
class TextKeys:
    """Cross-attention keys and values of instructions: expert -> `[layers, B, L_t, H, h]`."""

    keys: dict[str, Tensor]
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Cache:
    """Keys and values of self-attention `[layers, B, N, H, h]`, and where in N each group's tokens stand."""

    keys: Tensor
    values: Tensor
    places: dict[Group, tuple[int, int]]


class _Linear:
    """`x W^T + b`, with the weight in the layout that the machine multiplies fastest, and optionally tanh-GELU after it.

    fp32 on the CPU: MKL packs the weight anew in every call, which costs a small batch of tokens up to half its time; oneDNN takes it
    packed beforehand. Narrow weights gain nothing.
    """

    def __init__(self, *parts: nn.Linear) -> None:
        one = len(parts) == 1
        weight = parts[0].weight.detach() if one else torch.cat([part.weight for part in parts])
        self.bias = parts[0].bias.detach() if one else torch.cat([part.bias for part in parts])
        self.packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= PACKED and _can_pack()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        if self.packed:
            name, algorithm = ("gelu", "tanh") if gelu else ("none", "")
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
            return out
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if gelu else y


def _can_pack() -> bool:
    # What torch's own compiler calls; it may change with torch, and then the ordinary product does.
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@dataclass(frozen=True)
class _Layer:
    """One expert of one layer; norms in fp32."""

    qkv: _Linear
    qk_norm: Tensor
    out: _Linear
    norm2: tuple[Tensor, Tensor]
    text_q: _Linear
    text_kv: _Linear
    text_norm: Tensor
    text_out: _Linear
    up: _Linear
    down: _Linear


@dataclass(frozen=True)
class _Piece:
    """Tokens that stand together in their expert's stream `[start, stop)` and in the cache (from `place`), with one noise."""

    expert: str
    start: int
    stop: int
    place: int
    noise: Noise


@dataclass(frozen=True)
class _Plan:
    """One pass: pieces per expert, group -> (expert, start, stop) in its stream, first place of the pass, query segments."""

    pieces: dict[str, list[_Piece]]
    spans: dict[Group, tuple[str, int, int]]
    first: int
    segments: list[tuple[int, int]]


def _pack(block: ExpertBlock) -> _Layer:
    joint, cross, feed = block.attn1, block.attn2, block.ffn.net
    return _Layer(
        qkv=_Linear(joint.to_q, joint.to_k, joint.to_v),
        qk_norm=torch.stack([joint.norm_q.weight, joint.norm_k.weight]).float(),
        out=_Linear(_linear(joint.to_out[0])),
        norm2=(block.norm2.weight.float(), block.norm2.bias.float()),
        text_q=_Linear(cross.to_q),
        text_kv=_Linear(cross.to_k, cross.to_v),
        # No rotation stands between the two norms of cross-attention, so the query's weight may go into the cached keys.
        text_norm=cross.norm_k.weight.float() * cross.norm_q.weight.float(),
        text_out=_Linear(_linear(cross.to_out[0])),
        up=_Linear(_linear(feed[0].get_submodule("proj"))),
        down=_Linear(_linear(feed[2])),
    )


class FusedTransformer:
    """Inference with the weights of a model, shared where they need no packing. It holds no per-request state.

    The model itself is not kept: dropped by its owner, its blocks leave memory. Every method is to be called in
    `torch.inference_mode()`, with tensors on the model's device.
    """

    def __init__(self, model: WorldActionTransformer) -> None:
        self.config = model.config
        self.dtype, self.device = model.proj_out.weight.dtype, model.proj_out.weight.device
        self._conditions = {e: model.condition(e) for e in self.config.experts}
        self._encoders = {"S": model.state_encoder or model.action_encoder, "A": model.action_encoder}
        self._patch_embedding, self._decoder, self._proj_out = model.patch_embedding, model.action_decoder, model.proj_out
        self._eps = torch.tensor(self.config.eps, device=self.device)
        self._rotations: dict[tuple[object, ...], Tensor] = {}
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        with torch.inference_mode():
            self.layers = [{e: _pack(block.expert(e)) for e in self.config.experts} for block in blocks]
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
            keys[expert] = torch.stack(normed).unflatten(-1, (heads, -1))
            values[expert] = torch.stack([v for _, v in projected]).unflatten(-1, (heads, -1))
        return TextKeys(keys, values)

    def cache(self, batch: int, counts: dict[Group, int]) -> Cache:
        """Zeros, with room for that many tokens of each group, in canonical order."""
        places: dict[Group, tuple[int, int]] = {}
        end = 0
        for group in (g for g in GROUPS if g in counts):
            places[group] = (end, end + counts[group])
            end += counts[group]
        shape = (self.config.num_layers, batch, end, self.config.num_attention_heads, self.config.attention_head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return Cache(keys, values, places)

    def run(
        self, tokens: Tokens, noise: dict[Group, Noise], cache: Cache, text: TextKeys, embodiment: Tensor, heads: Collection[Group] = ()
    ) -> Velocity:
        """One pass over the groups in `tokens`; their keys and values are written into `cache`.

        The groups stand together in the cache, after those that were written before. embodiment: int64 `[B]`, row of the
        embodiment-specific projections, checked by the caller. Returns the velocities of the groups in `heads`.
        """
        embedded = self._embed(tokens, embodiment)
        plan = self._plan({g: x.shape[1] for g, x in embedded.items()}, noise, cache)
        streams = {e: _join([embedded[g] for g, span in plan.spans.items() if span[0] == e]) for e in plan.pieces}
        rotation = {e: self._rotation(tokens, [g for g, span in plan.spans.items() if span[0] == e]) for e in plan.pieces}
        for index, layers in enumerate(self.layers):
            keys, values = cache.keys[index], cache.values[index]
            mods = {e: [piece.noise.block(index, e) for piece in pieces] for e, pieces in plan.pieces.items()}
            queries = {e: self._project(layers[e], x, plan.pieces[e], mods[e], rotation[e], keys, values) for e, x in streams.items()}
            if not heads and index == len(self.layers) - 1:
                # Only keys and values were wanted: what the last layer would make of them nobody sees.
                break
            attended = _attend(queries, plan, keys, values)
            for e, x in streams.items():
                x = _gated(x, layers[e].out(attended[e]), plan.pieces[e], mods[e], 2)
                x = self._cross_attention(layers[e], x, text.keys[e][index], text.values[e][index])
                y = _modulated(x, plan.pieces[e], mods[e], 3, self.config.eps)
                streams[e] = _gated(x, layers[e].down(layers[e].up(y, gelu=True)), plan.pieces[e], mods[e], 5)
        return self._heads(tokens, streams, plan, noise, embodiment, heads)

    def _embed(self, tokens: Tokens, embodiment: Tensor) -> dict[Group, Tensor]:
        encoded: dict[Group, Tensor] = {}
        for group, x in tokens.present().items():
            encoder = self._encoders.get(group)
            encoded[group] = encoder(x.to(self.dtype), embodiment) if encoder else self._patch_embedding(x)
        return encoded

    def _plan(self, counts: dict[Group, int], noise: dict[Group, Noise], cache: Cache) -> _Plan:
        order = [g for g in GROUPS if g in counts]
        pieces: dict[str, list[_Piece]] = {}
        spans: dict[Group, tuple[str, int, int]] = {}
        for group in order:
            expert, place = self.config.expert_of[group], cache.places[group][0]
            mine = pieces.setdefault(expert, [])
            start = mine[-1].stop if mine else 0
            spans[group] = (expert, start, start + counts[group])
            if mine and mine[-1].noise is noise[group] and mine[-1].place + mine[-1].stop - mine[-1].start == place:
                start, place = mine[-1].start, mine[-1].place
                mine.pop()
            mine.append(_Piece(expert, start, spans[group][2], place, noise[group]))
        ends = [max(cache.places[g][1] for g in segment if g in counts) for segment in SEGMENTS if any(g in counts for g in segment)]
        first = cache.places[order[0]][0]
        return _Plan(pieces, spans, first, list(zip([first, *ends], ends, strict=False)))

    def _project(
        self, layer: _Layer, x: Tensor, pieces: list[_Piece], mods: list[tuple[Tensor, ...]], rotation: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Queries `[B, L_e, H, h]`; keys and values go into the cache."""
        inner = self.config.width
        y = layer.qkv(_modulated(x, pieces, mods, 0, self.config.eps))
        qk = y[..., : 2 * inner].unflatten(-1, (2, inner))
        turn = rotation * self._inverse_rms(qk).unsqueeze(-1)
        pairs = torch.view_as_complex((qk * layer.qk_norm).unflatten(-1, (keys.shape[-2], -1, 2)))
        q, k = torch.view_as_real(pairs * turn).flatten(-2).unbind(2)
        v = y[..., 2 * inner :].unflatten(-1, keys.shape[-2:])
        for piece in pieces:
            here = slice(piece.place, piece.place + piece.stop - piece.start)
            keys[:, here] = k[:, piece.start : piece.stop]
            values[:, here] = v[:, piece.start : piece.stop]
        return q.to(x.dtype)

    def _inverse_rms(self, x: Tensor) -> Tensor:
        """fp32 `1 / sqrt(mean(x^2) + eps)` over the last axis, kept."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()

    def _cross_attention(self, layer: _Layer, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = layer.text_q(_layer_norm(x, layer.norm2, self.config.eps))
        q = (q * self._inverse_rms(q)).to(x.dtype).unflatten(-1, keys.shape[-2:])
        out = F.scaled_dot_product_attention(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
        return layer.text_out(out.transpose(1, 2).flatten(2)).add_(x)

    def _rotation(self, tokens: Tokens, groups: list[Group]) -> Tensor:
        """Unit complex numbers `[L_e, 1, 1, h / 2]`."""
        present = tokens.present()
        key = tuple((g, tuple(present[g].shape[1:])) for g in groups)
        if key not in self._rotations:
            tables = [rotary(self.config, g, present[g].shape) for g in groups]
            cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
            self._rotations[key] = torch.complex(cos, sin)[:, None, None].to(self.device)
        return self._rotations[key]

    def _heads(
        self, tokens: Tokens, streams: dict[str, Tensor], plan: _Plan, noise: dict[Group, Noise], embodiment: Tensor,
        heads: Collection[Group],
    ) -> Velocity:
        result: dict[Group, Tensor] = {}
        for group in heads:
            expert, start, stop = plan.spans[group]
            shift, scale = noise[group].out(expert)
            y = torch.addcmul(shift, _layer_norm(streams[expert][:, start:stop].float(), None, self.config.eps), scale).to(self.dtype)
            if group == "A":
                result[group] = self._decoder(y, embodiment)
            else:
                T, h, w = tokens.present()[group].shape[2:]
                _, ph, pw = self.config.patch_size
                result[group] = unpatchify(self._proj_out(y), T, h // ph, w // pw, self.config.patch_size)
        return Velocity(action=result.get("A"), future=result.get("F"), reference=result.get("R"))


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _layer_norm(x: Tensor, affine: tuple[Tensor, Tensor] | None, eps: float) -> Tensor:
    """In fp32, in the dtype of `x`."""
    weight, bias = affine or (None, None)
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


def _modulated(x: Tensor, pieces: list[_Piece], mods: list[tuple[Tensor, ...]], slot: int, eps: float) -> Tensor:
    """Layer norm, then each piece's scale and shift; fp32 inside, in the dtype of `x`."""
    if len(pieces) == 1 and isinstance(pieces[0].noise.index, int):
        # One level for all tokens: the norm's own affine form.
        shift, scale = mods[0][slot].flatten(), mods[0][slot + 1].flatten()
        return F.layer_norm(x.float(), x.shape[-1:], scale, shift, eps).to(x.dtype)
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    parts = [torch.addcmul(mod[slot], normed[:, p.start : p.stop], mod[slot + 1]) for p, mod in zip(pieces, mods, strict=True)]
    return _join(parts).to(x.dtype)


def _gated(x: Tensor, y: Tensor, pieces: list[_Piece], mods: list[tuple[Tensor, ...]], slot: int) -> Tensor:
    """`x + gate * y` in fp32, in the dtype of `x`."""
    spans = [(slice(p.start, p.stop), mod[slot]) for p, mod in zip(pieces, mods, strict=True)]
    parts = [torch.addcmul(x[:, span].float(), gate, y[:, span].float()) for span, gate in spans]
    return _join(parts).to(x.dtype)


def _attend(queries: dict[str, Tensor], plan: _Plan, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
    """Each segment of queries sees the cache up to its own end. Returns `[B, L_e, I]` per expert."""
    order = sorted(((p.place, e, p) for e, pieces in plan.pieces.items() for p in pieces), key=lambda item: item[0])
    q = _join([queries[e][:, p.start : p.stop] for _, e, p in order]).transpose(1, 2)
    k, v = keys.transpose(1, 2), values.transpose(1, 2)
    parts = [
        F.scaled_dot_product_attention(q[:, :, a - plan.first : b - plan.first], k[:, :, :b], v[:, :, :b]).transpose(1, 2)
        for a, b in plan.segments
    ]
    out = _join(parts).flatten(2)
    return {
        e: _join([out[:, p.place - plan.first : p.place - plan.first + p.stop - p.start] for p in pieces])
        for e, pieces in plan.pieces.items()
    }

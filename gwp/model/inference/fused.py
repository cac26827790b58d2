"""The transformer arranged for inference: modulation looked up, keys and values in buffers of
fixed shape, layers at full speed.

Same weights and same mathematics as `WorldActionTransformer`, for noise levels that are known
beforehand (a solver's). A pass writes the keys and values of its tokens into a `KVCache` and
sees what stands there before them: a prefix is computed once, and passes of later token groups
go on from it. No pass reads anything back from the device.

The layers run in one of two ways: by compiled code (`gwp.model.inference.compiled`) in fp32 on
the CPU, else by torch's operators (`gwp.model.inference.eager`).
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwp.model.block import Attention, Block
from gwp.model.config import GROUPS, Group
from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.eager import EagerLayers, inverse_rms, layer_norm
from gwp.model.inference.layout import KVCache, Layers, Layout, Levels, Noise, Piece, TextKeys, join
from gwp.model.layers import unpatchify
from gwp.model.transformer import SEGMENTS, Tokens, Velocity, WorldActionTransformer, rotary
from gwp.native.build import library


@dataclass(frozen=True)
class Pass:
    """Some groups beside a cache, laid out once and run at any noise. One thread at a time.

    Where `FusedTransformer.any_batch`, it may be run for fewer observations: the first ones of
    the buffers.

    embodiment: int64 `[B]`
    """

    layout: Layout
    layers: Layers
    embodiment: Tensor


class FusedTransformer:
    """Inference with the weights of a model, shared where they need no packing. It holds no
    per-request state.

    The model itself is not kept: dropped by its owner, what is not shared leaves memory. Every
    method is to be called in `torch.inference_mode()`, with tensors on the model's device.
    """

    def __init__(self, model: WorldActionTransformer) -> None:
        self.config = model.config
        self.dtype, self.device = model.proj_out.weight.dtype, model.proj_out.weight.device
        self._conditions = {e: model.condition(e) for e in self.config.experts}
        self._encoders = {
            "S": model.state_encoder or model.action_encoder,
            "A": model.action_encoder,
        }
        self._patch_embedding, self._decoder, self._proj_out = (
            model.patch_embedding,
            model.action_decoder,
            model.proj_out,
        )
        self._eps = torch.tensor(self.config.eps, device=self.device)
        self._rotations: dict[tuple[object, ...], Tensor] = {}
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        compiled = (
            library("passes") if self.device.type == "cpu" and self.dtype is torch.float32 else None
        )
        with torch.inference_mode():
            self.layers = (
                NativeLayers(blocks, self.config, compiled)
                if compiled
                else EagerLayers(blocks, self.config)
            )
        self._text = [
            {e: _text_projection(block.expert(e).attn2) for e in self.config.experts}
            for block in blocks
        ]
        self._tables = [
            {e: block.expert(e).scale_shift_table for e in self.config.experts} for block in blocks
        ]
        self._out_tables = dict(model.out_tables.items())

    @property
    def any_batch(self) -> bool:
        """Whether a pass may be run for fewer observations than it was prepared for."""
        return isinstance(self.layers, NativeLayers)

    def levels(self, sigmas: Tensor) -> Levels:
        """Modulation at noise levels fp32 `[n]`, and at 0 after them. Computed once per solver:
        it depends on nothing else.
        """
        known = torch.cat([sigmas.float().to(self.device), torch.zeros(1, device=self.device)])
        ones = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], device=self.device)[:, None]
        conditions = {
            e: condition.time(known[None] * 1000.0) for e, condition in self._conditions.items()
        }
        blocks = {
            e: torch.stack([(tables[e](conditions[e][1]) + ones)[0] for tables in self._tables])
            for e in self.config.experts
        }
        out = {
            e: (table(conditions[e][0].unsqueeze(2)) + ones[:2])[0]
            for e, table in self._out_tables.items()
        }
        return Levels(blocks, out)

    def text_keys(self, text: Tensor) -> TextKeys:
        """From embeddings `[B, L_t, text_dim]`."""
        heads = self.config.num_attention_heads
        keys, values = {}, {}
        for expert in self.config.experts:
            x = self._conditions[expert].text(text)
            mine = [layer[expert] for layer in self._text]
            projected = [(to_k(x), norm) for to_k, _, norm in mine]
            normed = [(k * (inverse_rms(k, self._eps) * norm)).to(x.dtype) for k, norm in projected]
            keys[expert] = (
                torch.stack(normed).unflatten(-1, (heads, -1)).transpose(2, 3).contiguous()
            )
            values[expert] = (
                torch.stack([to_v(x) for _, to_v, _ in mine])
                .unflatten(-1, (heads, -1))
                .transpose(2, 3)
                .contiguous()
            )
        return TextKeys(keys, values)

    def cache(self, batch: int, counts: dict[Group, int]) -> KVCache:
        """Zeros, with room for that many tokens of each group, in canonical order."""
        places: dict[Group, tuple[int, int]] = {}
        end = 0
        for group in (g for g in GROUPS if g in counts):
            places[group] = (end, end + counts[group])
            end += counts[group]
        shape = (
            self.config.num_layers,
            batch,
            self.config.num_attention_heads,
            end,
            self.config.attention_head_dim,
        )
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return KVCache(keys, values, places)

    def prepare(self, tokens: Tokens, cache: KVCache, text: TextKeys, embodiment: Tensor) -> Pass:
        """The pass of the groups in `tokens`, of which only shapes count, beside these buffers.

        The groups stand together in the cache, after those that were written before.
        embodiment: int64 `[B]`, row of the embodiment-specific projections, checked by the
        caller.
        """
        pieces: dict[str, list[Piece]] = {}
        order = []
        present = tokens.present()
        for group in (g for g in GROUPS if g in present):
            mine = pieces.setdefault(self.config.expert_of[group], [])
            start, (place, stop) = mine[-1].stop if mine else 0, cache.places[group]
            segment = next(s for s in SEGMENTS if group in s)
            end = max(cache.places[g][1] for g in segment if g in present)
            order.append(
                Piece(self.config.expert_of[group], group, start, start + stop - place, place, end)
            )
            mine.append(order[-1])
        layout = Layout(
            pieces,
            order,
            {e: self._rotation(tokens, [p.group for p in mine]) for e, mine in pieces.items()},
        )
        return Pass(layout, self.layers.prepare(layout, cache, text), embodiment)

    def run(
        self,
        tokens: Tokens,
        noise: dict[Group, Noise],
        through: Pass,
        heads: Collection[Group] = (),
    ) -> Velocity:
        """One pass over the groups in `tokens`; their keys and values are written into the
        cache. Returns the velocities of `heads`.

        Groups of one noise share one `Noise`.
        """
        batch = next(iter(tokens.present().values())).shape[0]
        if batch > len(through.embodiment):
            raise ValueError(f"{batch} observations in a pass for {len(through.embodiment)}")
        ids = through.embodiment[:batch]
        embedded = self._embed(tokens, ids)
        streams = {
            e: join([embedded[p.group] for p in mine]) for e, mine in through.layout.pieces.items()
        }
        streams = through.layers(streams, noise, bool(heads))
        return self._heads(tokens, streams, through.layout, ids, noise, heads)

    def _embed(self, tokens: Tokens, embodiment: Tensor) -> dict[Group, Tensor]:
        encoded: dict[Group, Tensor] = {}
        for group, x in tokens.present().items():
            encoder = self._encoders.get(group)
            encoded[group] = (
                encoder(x.to(self.dtype), embodiment) if encoder else self._patch_embedding(x)
            )
        return encoded

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
        self,
        tokens: Tokens,
        streams: dict[str, Tensor],
        layout: Layout,
        embodiment: Tensor,
        noise: dict[Group, Noise],
        heads: Collection[Group],
    ) -> Velocity:
        result: dict[Group, Tensor] = {}
        for piece in (p for p in layout.order if p.group in heads):
            shift, scale = noise[piece.group].out(piece.expert)
            x = streams[piece.expert][:, piece.start : piece.stop]
            y = torch.addcmul(shift, layer_norm(x.float(), None, self.config.eps), scale).to(
                self.dtype
            )
            if piece.group == "A":
                result["A"] = self._decoder(y, embodiment)
            else:
                T, h, w = tokens.present()[piece.group].shape[2:]
                _, ph, pw = self.config.patch_size
                result[piece.group] = unpatchify(
                    self._proj_out(y), T, h // ph, w // pw, self.config.patch_size
                )
        return Velocity(action=result.get("A"), future=result.get("F"), reference=result.get("R"))


def _text_projection(cross: Attention) -> tuple[nn.Linear, nn.Linear, Tensor]:
    """To keys and values of an instruction, and what its normed keys are weighted with.

    No rotation stands between the two norms of cross-attention, so the query's weight and the
    scale go into the cached keys.
    """
    scale = cross.to_k.out_features // cross.heads
    return (
        cross.to_k,
        cross.to_v,
        cross.norm_k.weight.float() * cross.norm_q.weight.float() * scale**-0.5,
    )

"""The transformer arranged for inference: modulation looked up, keys and values in buffers of
fixed shape, layers at full speed.

Same weights and same mathematics as `WorldActionTransformer`, for noise levels that are known
beforehand (a solver's). A pass writes the keys and values of its tokens into a `KVCache` and
sees what stands there before them: a prefix is computed once, and passes of later token groups
go on from it. No pass reads anything back from the device.

The layers run in one of two ways: by compiled code (`gwp.model.inference.compiled`) in fp32 on
the CPU, else by torch's operators (`gwp.model.inference.eager`).

Shape legend: B observations, L tokens of an expert's stream, n noise levels, D expert width, I
inner width of attention, H heads, h head width, N tokens with room in the cache. A suffix says
the shape: `x_BLD` is `[B, L, D]`. Dicts go by expert or group and have none.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gwp.model.block import Attention, Block
from gwp.model.config import Group
from gwp.model.frames import read_out, with_frames
from gwp.model.inference.alone import alone, product
from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.eager import EagerLayers, inverse_rms, layer_norm
from gwp.model.inference.layout import KVCache, Layers, Layout, Levels, Noise, Piece, TextKeys, join
from gwp.model.layers import rotary, unpatchify
from gwp.model.modulation import ModulationTable
from gwp.model.transformer import Tokens, Velocity, WorldActionTransformer
from gwp.native.build import library


@dataclass(frozen=True)
class Pass:
    """Some groups beside a cache, laid out once and run at any noise. One thread at a time.

    `FusedTransformer.prepare` makes it; the solver runs it at every step. Where
    `FusedTransformer.any_batch`, it may be run for fewer observations: the first ones of the
    buffers.

    layout:     which tokens, and where they stand
    layers:     all layers, bound to the buffers of the cache and the instructions
    embodiment: int64 `[B]`
    """

    layout: Layout
    layers: Layers
    embodiment: Tensor


class FusedTransformer:
    """Inference with the weights of a model, shared where they need no packing. It holds no
    per-request state.

    With compiled layers an observation's numbers are, to the bit, those that it has alone.

    The model itself is not kept: dropped by its owner, what is not shared leaves memory. Every
    method is to be called in `torch.inference_mode()`, with tensors on the model's device.
    """

    def __init__(self, model: WorldActionTransformer) -> None:
        self.config = model.config
        self.dtype = model.proj_out.weight.dtype
        self.device = model.proj_out.weight.device
        experts = list(self.config.experts)

        self._conditions = {e: model.condition(e) for e in experts}
        self._out_tables = dict(model.out_tables.items())
        # A tensor on the device: `addcmul` adds to it, and what a CUDA graph records may meet
        # none of the host.
        self._eps = torch.tensor(self.config.eps, device=self.device)
        self._rotations: dict[tuple[object, ...], Tensor] = {}

        # Of the blocks: the layers, and what is computed once per solver or instruction.
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        on_cpu = self.device.type == "cpu" and self.dtype is torch.float32
        compiled = library("passes") if on_cpu else None
        with torch.inference_mode():
            self.layers = (
                NativeLayers(blocks, self.config, compiled)
                if compiled
                else EagerLayers(blocks, self.config)
            )

        # Around the blocks: what makes tokens, and what makes velocities of them.
        encoders = {"S": model.state_encoder or model.action_encoder, "A": model.action_encoder}
        self._encoders = {g: self._around(e) for g, e in encoders.items() if e is not None}
        self._patch_embedding = model.patch_embedding
        decoder = model.action_decoder
        self._decoder = None if decoder is None else self._around(decoder)
        self._proj_out = self._around(model.proj_out)

        self._text: dict[str, list[_TextProjection]] = {}
        self._tables: dict[str, list[ModulationTable]] = {}
        for e in experts:
            self._text[e] = [_TextProjection.of(block.expert(e).attn2) for block in blocks]
            self._tables[e] = [block.expert(e).scale_shift_table for block in blocks]

    @property
    def any_batch(self) -> bool:
        """Whether a pass may be run for fewer observations than it was prepared for."""
        return isinstance(self.layers, NativeLayers)

    def _around(self, module: nn.Module) -> nn.Module:
        # The compiled layers compute each observation as they would alone; so does all the rest.
        return alone(module) if self.any_batch else module

    def levels(self, sigmas_n: Tensor) -> Levels:
        """Modulation at noise levels fp32 `[n]`, and at 0 after them. Computed once per solver:
        it depends on nothing else.
        """
        clean = torch.zeros(1, device=self.device)
        known_n = torch.cat([sigmas_n.float().to(self.device), clean])
        # Scales are the second and the fifth vector (the second of a head), kept as 1 + scale.
        ones_6D = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0], device=self.device)[:, None]
        blocks: dict[str, Tensor] = {}
        out: dict[str, Tensor] = {}
        for expert, condition in self._conditions.items():
            temb_BnD, mod_Bn6D = condition.time(known_n[None] * 1000.0)
            layers = [(table(mod_Bn6D) + ones_6D)[0] for table in self._tables[expert]]
            blocks[expert] = torch.stack(layers)
            out[expert] = (self._out_tables[expert](temb_BnD.unsqueeze(2)) + ones_6D[:2])[0]
        return Levels(blocks, out)

    def text_keys(self, text_BLt: Tensor) -> TextKeys:
        """From embeddings `[B, L_t, text_dim]`."""
        keys: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for expert, layers in self._text.items():
            x_BLD = self._conditions[expert].text(text_BLt)
            keys[expert] = self._by_head([layer.keys(x_BLD, self._eps) for layer in layers])
            values[expert] = self._by_head([layer.to_v(x_BLD) for layer in layers])
        return TextKeys(keys, values)

    def _by_head(self, layers_BLI: list[Tensor]) -> Tensor:
        """Layers of `[B, L, I]` as `[layers, B, H, L, h]`, dense as the compiled layers walk it."""
        heads = self.config.num_attention_heads
        return torch.stack(layers_BLI).unflatten(-1, (heads, -1)).transpose(2, 3).contiguous()

    def cache(self, batch: int, counts: dict[Group, int]) -> KVCache:
        """Zeros, with room for that many tokens of each group, in canonical order."""
        spans: dict[Group, tuple[int, int]] = {}
        end = 0
        for group in (g for g in self.config.order if g in counts):
            spans[group] = (end, end + counts[group])
            end += counts[group]
        shape = (
            self.config.num_layers,
            batch,
            self.config.num_attention_heads,
            end,
            self.config.attention_head_dim,
        )
        # Zeros, not empty memory: recordings run on it before there is an observation.
        keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        values = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return KVCache(keys, values, spans)

    def prepare(self, tokens: Tokens, cache: KVCache, text: TextKeys, embodiment: Tensor) -> Pass:
        """The pass of the groups in `tokens`, of which only shapes count, beside these buffers.

        The groups stand together in the cache, after those that were written before.
        embodiment: int64 `[B]`, row of the embodiment-specific projections, checked by the
        caller.
        """
        pieces: dict[str, list[Piece]] = {}
        order: list[Piece] = []
        present = with_frames(self.config, tokens.present())
        for group in (g for g in self.config.order if g in present):
            expert = self.config.expert_of[group]
            stream = pieces.setdefault(expert, [])
            start = stream[-1].stop if stream else 0
            position, stop = cache.spans[group]
            # Tokens of a segment see each other; of those that are absent nobody sees anything.
            segment = self.config.segments[self.config.segment_of(group)]
            end = max(cache.spans[g][1] for g in segment if g in present)
            piece = Piece(expert, group, start, start + stop - position, position, end)
            order.append(piece)
            stream.append(piece)
        rotations: dict[str, Tensor] = {}
        for expert, stream in pieces.items():
            rotations[expert] = self._rotation({p.group: present[p.group] for p in stream})
        layout = Layout(pieces, order, rotations)
        return Pass(layout, self.layers.prepare(layout, cache, text), embodiment)

    def run(
        self,
        tokens: Tokens,
        noise: dict[Group, Noise],
        token_pass: Pass,
        heads: Collection[Group] = (),
    ) -> Velocity:
        """One pass over the groups in `tokens`; their keys and values are written into the
        cache. Returns the velocities of `heads`.

        Groups of one noise share one `Noise`.
        """
        batch = next(iter(tokens.present().values())).shape[0]
        if batch > len(token_pass.embodiment):
            raise ValueError(f"{batch} observations in a pass for {len(token_pass.embodiment)}")
        layout = token_pass.layout
        embodiment_B = token_pass.embodiment[:batch]

        present = with_frames(self.config, tokens.present())
        embedded = self._embed(present, embodiment_B)
        streams: dict[str, Tensor] = {}
        for expert, pieces in layout.pieces.items():
            streams[expert] = join([embedded[p.group] for p in pieces])
        streams = token_pass.layers(streams, noise, bool(heads))
        velocities = self._heads(present, streams, layout, embodiment_B, noise, heads)
        action = velocities.get("A")
        if action is not None and action.ndim == 5 and tokens.action is not None:
            action = read_out(action, *tokens.action.shape[1:])
        return Velocity(action, velocities.get("F"), velocities.get("R"))

    def _embed(self, present: dict[Group, Tensor], embodiment_B: Tensor) -> dict[Group, Tensor]:
        """Each group, vectors or frames, as tokens `[B, L, D]`."""
        embedded: dict[Group, Tensor] = {}
        for group, x in present.items():
            encoder = self._encoders.get(group)
            embedded[group] = (
                encoder(x.to(self.dtype), embodiment_B) if encoder else self._patches(x)
            )
        return embedded

    def _patches(self, latents_BCThw: Tensor) -> Tensor:
        embedding = self._patch_embedding
        if not self.any_batch:
            return embedding(latents_BCThw)
        patches_BLp = embedding.patches(latents_BCThw)
        return product(patches_BLp, embedding.weight.flatten(1), embedding.bias)

    def _rotation(self, stream: dict[Group, Tensor]) -> Tensor:
        """Cosine and sine `[L_e, 1, 1, h / 2, 2]` of groups behind each other."""
        key = tuple((g, tuple(x.shape[1:])) for g, x in stream.items())
        if key not in self._rotations:
            tables = [rotary(self.config, g, x.shape) for g, x in stream.items()]
            cos = torch.cat([cos for cos, _ in tables])
            sin = torch.cat([sin for _, sin in tables])
            # Side by side, a pair is a complex number, by which two channels are multiplied.
            cos_sin = torch.stack([cos, sin], dim=-1)
            self._rotations[key] = cos_sin[:, None, None].to(self.device)
        return self._rotations[key]

    def _heads(
        self,
        present: dict[Group, Tensor],
        streams: dict[str, Tensor],
        layout: Layout,
        embodiment_B: Tensor,
        noise: dict[Group, Noise],
        heads: Collection[Group],
    ) -> dict[Group, Tensor]:
        """Velocities of `heads`: vectors or frames, as the groups are embedded."""
        result: dict[Group, Tensor] = {}
        for piece in (p for p in layout.order if p.group in heads):
            shift, scale = noise[piece.group].out(piece.expert)
            x_BLD = streams[piece.expert][:, piece.start : piece.stop]
            normed_BLD = layer_norm(x_BLD.float(), None, self.config.eps)
            y_BLD = torch.addcmul(shift, normed_BLD, scale).to(self.dtype)
            if piece.group == "A" and self._decoder is not None:
                result["A"] = self._decoder(y_BLD, embodiment_B)
            else:
                T, h, w = present[piece.group].shape[2:]
                _, ph, pw = self.config.patch_size
                result[piece.group] = unpatchify(
                    self._proj_out(y_BLD), T, h // ph, w // pw, self.config.patch_size
                )
        return result


@dataclass(frozen=True)
class _TextProjection:
    """One layer's cross-attention to an instruction, up to its keys and values.

    weight: fp32 `[I]`, what normed keys are weighted with. No rotation stands between the two
    norms of cross-attention, so the query's weight and the scale go into the cached keys.
    """

    to_k: nn.Linear
    to_v: nn.Linear
    weight: Tensor

    @classmethod
    def of(cls, cross: Attention) -> "_TextProjection":
        head_dim = cross.to_k.out_features // cross.heads
        weight_I = cross.norm_k.weight.float() * cross.norm_q.weight.float() * head_dim**-0.5
        return cls(cross.to_k, cross.to_v, weight_I)

    def keys(self, x_BLD: Tensor, eps: Tensor) -> Tensor:
        """Normed and weighted keys `[B, L, I]`, in the dtype of `x`."""
        k_BLI = self.to_k(x_BLD)
        return (k_BLI * (inverse_rms(k_BLI, eps) * self.weight)).to(x_BLD.dtype)

"""A pass of acting as a plain module of fixed shape: what a compiler gets to work on.

Same weights and numbers as `gwp.model.inference`, for one observation, in a form that compilers
handle well: no buffer is written in place, nothing is complex, queries, keys and values are one
product. Rotated pairs stand half a head apart, which fuses better than interleaved ones: rows of
the weights of queries and keys are reordered for it, and no product of the two changes.

Shape legend: L tokens of a stream, N tokens before those of the pass, n rows of text, D expert
width, I inner width, H heads, h head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.block import Block, ExpertBlock
from gwp.model.config import GROUPS, Group, ModelConfig
from gwp.model.inference.eager import attention, linear
from gwp.model.inference.layout import Noise, TextKeys
from gwp.model.layers import ActionDecoder, ActionEncoder, EmbodimentLinear, unpatchify
from gwp.model.transformer import SEGMENTS, WorldActionTransformer, rotary


class PlainPass(nn.Module):
    """The tokens of `shapes` (group -> shape of its tensor in `Tokens`) through all layers.

    `forward(*inputs)` takes, one after another: the tensor of each group; of each of `experts`
    its instruction as `packed_text` gives it; where there are noisy tokens what `packed_level`
    gives; and, for a pass behind a prefix, what the pass over the prefix returned.

    Returns one Euler step further: actions, and the future where there is one. Without noisy
    tokens: keys and values `[2 layers, H, N, h]`, per layer keys, then values.
    """

    def __init__(
        self, model: WorldActionTransformer, shapes: dict[Group, Sequence[int]], clean: Noise
    ) -> None:
        super().__init__()
        self.config = config = model.config
        self.shapes = shapes
        self.noisy: list[Group] = [g for g in ("A", "F") if g in shapes]
        # Stream of each expert: its groups in canonical order, the clean ones first.
        self.members: dict[str, list[Group]] = {}
        for group in (g for g in GROUPS if g in shapes):
            self.members.setdefault(config.expert_of[group], []).append(group)
        self.experts = list(self.members)
        tables = {g: rotary(config, g, shape) for g, shape in shapes.items()}
        self.counts = {g: len(cos) for g, (cos, _) in tables.items()}
        self.rotations = nn.ModuleDict(
            {e: _Rotation([tables[g] for g in mine]) for e, mine in self.members.items()}
        )
        self.layers = nn.ModuleList(
            nn.ModuleDict({e: _Layer(block.expert(e), config) for e in self.experts})
            for block in model.blocks
            if isinstance(block, Block)
        )
        table = clean.levels.blocks
        self.clean = nn.ParameterDict(
            {e: _constant(table[e][:, clean.levels.clean]) for e in self.experts}
        )
        self.state = _Vectors(model.state_encoder or model.action_encoder)
        self.action = _Vectors(model.action_encoder)
        self.patches = model.patch_embedding
        self.decoder, self.proj_out = _Vectors(model.action_decoder), model.proj_out

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        rest = list(inputs)
        given = {g: rest.pop(0) for g in self.shapes}
        text = {e: rest.pop(0) for e in self.experts}
        level = [rest.pop(0) for _ in range(1 + 2 * len(self.experts))] if self.noisy else []
        past = rest.pop(0) if rest else None
        streams = self._embed(given)
        cache: list[Tensor] = []
        for i, module in enumerate(self.layers):
            # A ModuleDict, which torch types as if it held tensors.
            layer: Any = module
            mods = {e: self._modulation(e, i, level) for e in self.experts}
            projected = {
                e: layer[e].project(x, mods[e], self.rotations[e]) for e, x in streams.items()
            }
            q, k, v = (self._gather({e: p[j] for e, p in projected.items()}) for j in range(3))
            if past is not None:
                k = torch.cat([past[2 * i : 2 * i + 1], k], dim=2)
                v = torch.cat([past[2 * i + 1 : 2 * i + 2], v], dim=2)
            cache += [k, v]
            if not self.noisy and i == len(self.layers) - 1:
                # Nobody sees what the last layer would make of them.
                return torch.cat(cache)
            attended = self._scatter(self._attend(q, k, v))
            streams = {
                e: layer[e].rest(x, attended[e], mods[e], text[e][i]) for e, x in streams.items()
            }
        return tuple(given[g] + level[0] * self._head(g, streams, level) for g in self.noisy)

    def _embed(self, given: dict[Group, Tensor]) -> dict[str, Tensor]:
        encoders = {"S": self.state, "A": self.action, "R": self.patches, "F": self.patches}
        tokens = {g: encoders[g](x) for g, x in given.items()}
        return {e: torch.cat([tokens[g] for g in mine], 1) for e, mine in self.members.items()}

    def _modulation(self, expert: str, layer: int, level: list[Tensor]) -> Tensor:
        """`[6, D]`, or `[6, L, D]` where clean and noisy tokens stand in one stream."""
        mine, clean = self.members[expert], self.clean[expert][layer]
        noisy = [self.counts[g] for g in mine if g in self.noisy]
        if not noisy:
            return clean
        at_level = level[1 + self.experts.index(expert)][layer]
        if len(noisy) == len(mine):
            return at_level
        is_noisy = torch.arange(self._length(expert))[:, None] >= self._length(expert) - sum(noisy)
        return torch.where(is_noisy, at_level[:, None], clean[:, None])

    def _length(self, expert: str) -> int:
        return sum(self.counts[g] for g in self.members[expert])

    def _gather(self, by_expert: dict[str, Tensor]) -> Tensor:
        """`[1, H, L_e, h]` of each expert to canonical order `[1, H, L, h]`."""
        parts: dict[Group, Tensor] = {}
        for expert, x in by_expert.items():
            mine = self.members[expert]
            parts.update(zip(mine, x.split([self.counts[g] for g in mine], dim=2), strict=True))
        return torch.cat([parts[g] for g in self.shapes], dim=2)

    def _scatter(self, x: Tensor) -> dict[str, Tensor]:
        """`[1, L, I]` back to one tensor per expert."""
        parts = dict(zip(self.shapes, x.split(list(self.counts.values()), dim=1), strict=True))
        return {e: torch.cat([parts[g] for g in mine], 1) for e, mine in self.members.items()}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each segment sees what stands before it, and itself."""
        counts = [sum(self.counts.get(g, 0) for g in segment) for segment in SEGMENTS]
        end, done = k.shape[2] - q.shape[2], []
        for part, count in zip(q.split(counts, dim=2), counts, strict=True):
            end += count
            if count:
                done.append(attention(part, k[:, :, :end], v[:, :, :end]))
        return torch.cat(done, dim=1)

    def _head(self, group: Group, streams: dict[str, Tensor], level: list[Tensor]) -> Tensor:
        expert = self.config.expert_of[group]
        mine = self.members[expert]
        spans = streams[expert].split([self.counts[g] for g in mine], dim=1)
        shift, scale = level[1 + len(self.experts) + self.experts.index(expert)].unbind(0)
        x = spans[mine.index(group)]
        y = F.layer_norm(x, x.shape[-1:], scale, shift, self.config.eps)
        if group == "A":
            return self.decoder(y)
        _, _, T, rows, columns = self.shapes[group]
        _, ph, pw = patch = self.config.patch_size
        return unpatchify(self.proj_out(y), T, rows // ph, columns // pw, patch)


def packed_text(text: TextKeys, expert: str) -> Tensor:
    """Keys and values of one instruction as an expert sees them, `[layers, 2, 1, H, n, h]`."""
    return torch.stack([text.keys[expert], text.values[expert]], dim=1)


def packed_level(noise: Noise, experts: Sequence[str], delta: float) -> list[Tensor]:
    """Euler step `[1]`, modulation `[layers, 6, D]` per expert, that of the heads `[2, D]` each."""
    levels, i = noise.levels, noise.index
    blocks = [levels.blocks[e][:, i].clone() for e in experts]
    return [torch.tensor([delta]), *blocks, *(levels.out[e][i].clone() for e in experts)]


class _Layer(nn.Module):
    """One expert of one layer. Text keys carry the weight of the query's norm, as
    `FusedTransformer.text_keys` makes them.
    """

    def __init__(self, block: ExpertBlock, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.eps = config.num_attention_heads, config.eps
        joint, cross, feed = block.attn1, block.attn2, block.ffn.net
        q, k, v = linear(joint.to_q), linear(joint.to_k), linear(joint.to_v)
        order = torch.arange(config.width).view(self.heads, -1, 2).transpose(1, 2).flatten()
        self.qkv = _linear(
            torch.cat([q.weight[order], k.weight[order], v.weight]),
            torch.cat([q.bias[order], k.bias[order], v.bias]),
        )
        scale = config.attention_head_dim**-0.5
        self.q_norm = _constant(joint.norm_q.weight[order] * scale)
        self.k_norm = _constant(joint.norm_k.weight[order])
        self.out, self.norm = linear(joint.to_out[0]), block.norm2
        self.text_q, self.text_out = linear(cross.to_q), linear(cross.to_out[0])
        self.up, self.down = linear(feed[0].get_submodule("proj")), linear(feed[2])

    def project(self, x: Tensor, mod: Tensor, rotation: nn.Module) -> tuple[Tensor, ...]:
        """Queries, keys and values `[1, H, L, h]` of the stream `[1, L, D]`."""
        q, k, v = self.qkv(self._modulated(x, mod[0], mod[1])).chunk(3, dim=-1)
        normed = (self._rms(q) * self.q_norm, self._rms(k) * self.k_norm, v)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in normed)
        return rotation(q).transpose(1, 2), rotation(k).transpose(1, 2), v.transpose(1, 2)

    def rest(self, x: Tensor, attended: Tensor, mod: Tensor, text: Tensor) -> Tensor:
        """The stream after the layer; attended `[1, L, I]`, text `[2, 1, H, n, h]`."""
        x = x + mod[2] * self.out(attended)
        normed = F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.eps)
        q = self._rms(self.text_q(normed)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = x + self.text_out(attention(q, text[0], text[1]))
        y = F.gelu(self.up(self._modulated(x, mod[3], mod[4])), approximate="tanh")
        return x + mod[5] * self.down(y)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        if shift.ndim == 1:
            return F.layer_norm(x, x.shape[-1:], scale, shift, self.eps)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * scale + shift

    def _rms(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class _Rotation(nn.Module):
    """Rotates `[1, L, H, h]`, whose pairs stand half a head apart."""

    def __init__(self, tables: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.cos = _constant(torch.cat([cos for cos, _ in tables]).repeat(1, 2)[:, None])
        self.sin = _constant(torch.cat([sin for _, sin in tables]).repeat(1, 2)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-b, a], dim=-1) * self.sin


class _Vectors(nn.Module):
    """An encoder or decoder of vectors, with the weights of the first embodiment."""

    def __init__(self, coder: ActionEncoder | ActionDecoder) -> None:
        super().__init__()
        parts = (coder.in_proj, coder.mid_proj, coder.out_proj)
        self.parts = nn.ModuleList(
            _linear(p.weight[0].T, p.bias[0]) if isinstance(p, EmbodimentLinear) else p
            for p in parts
        )

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.parts
        return last(F.gelu(second(F.gelu(first(x)))))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = _constant(weight), _constant(bias)
    return made


def _constant(x: Tensor) -> nn.Parameter:
    """A copy that a compiler may freeze."""
    return nn.Parameter(x.detach().clone().contiguous(), requires_grad=False)

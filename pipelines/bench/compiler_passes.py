"""The passes of acting as plain modules of fixed shape: what a compiler gets to work on.

Same weights and numbers as `gwp.model.fused`, for one observation, in a form that compilers handle
well: no buffer is written in place, nothing is complex, queries, keys and values are one product.
Rotated pairs stand half a head apart, which fuses better than interleaved ones: rows of the weights
of queries and keys are reordered for it, and no product of the two changes.

Shape legend: L tokens of a stream, N tokens of the prefix, n rows of text, D expert width, I inner
width, H heads, h head width, p actions, d channels, C latent channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.block import Block, ExpertBlock
from gwp.model.config import Group, ModelConfig
from gwp.model.eager import attention, linear
from gwp.model.layers import (
    ActionDecoder,
    ActionEncoder,
    EmbodimentLinear,
    action_rotary,
    visual_rotary,
)
from gwp.model.layout import TextKeys
from gwp.model.transformer import WorldActionTransformer
from gwp.policy.engine.solver import Solver


class PrefixPass(nn.Module):
    """Keys and values `[2 layers, H, N, h]` of state and reference: per layer keys, then values.

    `forward(state [1, 1, d], reference [1, C, 1, h, w], *text)`; text as `packed_text` gives it for
    each of `experts`.
    """

    def __init__(self, model: WorldActionTransformer, solver: Solver) -> None:
        super().__init__()
        config, levels = model.config, solver.clean.levels
        groups: tuple[Group, ...] = ("S", "R")
        self.experts = list(dict.fromkeys(config.expert_of[g] for g in groups))
        self.state = _Vectors(model.state_encoder or model.action_encoder)
        self.patch_embedding = model.patch_embedding
        self.layers = nn.ModuleList(
            nn.ModuleList(_Layer(expert, config) for expert in _experts(block, self.experts))
            for block in model.blocks
        )
        _, rows, columns = solver.shapes.latent
        _, ph, pw = config.patch_size
        width = config.attention_head_dim
        tables = {
            "S": action_rotary(width, range(1)),
            "R": visual_rotary(width, range(1), rows // ph, columns // pw),
        }
        rotations = []
        for expert in self.experts:
            mine = [tables[g] for g in groups if config.expert_of[g] == expert]
            rotations.append(_Rotation([cos for cos, _ in mine], [sin for _, sin in mine]))
        self.rotations = nn.ModuleList(rotations)
        self.modulation = nn.ParameterList(
            _constant(levels.blocks[expert][:, levels.clean]) for expert in self.experts
        )

    def forward(self, state: Tensor, reference: Tensor, *text: Tensor) -> Tensor:
        embedded = [self.state(state), self.patch_embedding(reference)]
        streams = embedded if len(self.experts) == 2 else [torch.cat(embedded, dim=1)]
        lengths = [x.shape[1] for x in streams]
        cache = []
        for i, layer in enumerate(self.layers):
            mods = [modulation[i] for modulation in self.modulation]
            projected = [
                expert.project(x, mod, rotation)
                for expert, x, mod, rotation in zip(
                    layer, streams, mods, self.rotations, strict=True
                )
            ]
            q, k, v = (torch.cat(parts, dim=2) for parts in zip(*projected, strict=True))
            cache += [k, v]
            if i == len(self.layers) - 1:
                # Nobody sees what the last layer would make of them.
                break
            attended = attention(q, k, v).split(lengths, dim=1)
            streams = [
                expert.rest(x, seen, mod, keys_values[i])
                for expert, x, seen, mod, keys_values in zip(
                    layer, streams, attended, mods, text, strict=True
                )
            ]
        return torch.cat(cache)


class StepPass(nn.Module):
    """One Euler step from actions `[1, p, d]` to the next.

    `forward(actions, modulation [layers, 6, D], out_modulation [2, D], delta [1], prefix, text)`;
    prefix from `PrefixPass`, text of `expert` as `packed_text` gives it.
    """

    def __init__(self, model: WorldActionTransformer, solver: Solver) -> None:
        super().__init__()
        config = model.config
        self.expert, self.eps = config.expert_of["A"], config.eps
        self.encoder, self.decoder = _Vectors(model.action_encoder), _Vectors(model.action_decoder)
        self.layers = nn.ModuleList(
            _Layer(expert, config)
            for block in model.blocks
            for expert in _experts(block, [self.expert])
        )
        cos, sin = action_rotary(config.attention_head_dim, range(1, 1 + solver.shapes.chunk))
        self.rotation = _Rotation([cos], [sin])

    def forward(
        self, actions: Tensor, modulation: Tensor, out_modulation: Tensor, delta: Tensor,
        prefix: Tensor, text: Tensor,
    ) -> Tensor:
        x = self.encoder(actions)
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(x, modulation[i], self.rotation)
            keys = torch.cat([prefix[2 * i : 2 * i + 1], k], dim=2)
            values = torch.cat([prefix[2 * i + 1 : 2 * i + 2], v], dim=2)
            x = layer.rest(x, attention(q, keys, values), modulation[i], text[i])
        shift, scale = out_modulation[0], out_modulation[1]
        y = F.layer_norm(x, x.shape[-1:], scale, shift, self.eps)
        return actions + delta * self.decoder(y)


def packed_text(text: TextKeys, expert: str) -> Tensor:
    """Keys and values of one instruction as an expert sees them, `[layers, 2, 1, H, n, h]`."""
    return torch.stack([text.keys[expert], text.values[expert]], dim=1)


class _Layer(nn.Module):
    """One expert of one layer. Text keys carry the weight of the query's norm, as `text_keys` makes
    them."""

    def __init__(self, block: ExpertBlock, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.eps = config.num_attention_heads, config.eps
        joint, cross, feed = block.attn1, block.attn2, block.ffn.net
        q, k, v = linear(joint.to_q), linear(joint.to_k), linear(joint.to_v)
        pairs = torch.arange(config.width).view(self.heads, -1, 2)
        order = pairs.transpose(1, 2).flatten()
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

    def project(
        self, x: Tensor, mod: Tensor, rotation: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[1, H, L, h]` of the stream `[1, L, D]`; mod `[6, D]`."""
        qkv = self.qkv(self._modulated(x, mod[0], mod[1]))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self._normed(qkv))
        return (
            rotation(q).transpose(1, 2), rotation(k).transpose(1, 2), v.transpose(1, 2),
        )

    def rest(self, x: Tensor, attended: Tensor, mod: Tensor, text: Tensor) -> Tensor:
        """The stream after the layer; attended `[1, L, I]`, text `[2, 1, H, n, h]`."""
        x = x + mod[2] * self.out(attended)
        normed = F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.eps)
        q = self._rms(self.text_q(normed)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = x + self.text_out(attention(q, text[0], text[1]))
        y = F.gelu(self.up(self._modulated(x, mod[3], mod[4])), approximate="tanh")
        return x + mod[5] * self.down(y)

    def _normed(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.chunk(3, dim=-1)
        return self._rms(q) * self.q_norm, self._rms(k) * self.k_norm, v

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], scale, shift, self.eps)

    def _rms(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class _Rotation(nn.Module):
    """Rotates `[1, L, H, h]`, whose pairs stand half a head apart."""

    def __init__(self, cos: Sequence[Tensor], sin: Sequence[Tensor]) -> None:
        super().__init__()
        self.cos = _constant(torch.cat(list(cos)).repeat(1, 2)[:, None])
        self.sin = _constant(torch.cat(list(sin)).repeat(1, 2)[:, None])

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
        for part in self.parts[:-1]:
            x = F.gelu(part(x))
        return self.parts[-1](x)


def _experts(block: nn.Module, names: Sequence[str]) -> list[ExpertBlock]:
    assert isinstance(block, Block)
    return [block.expert(name) for name in names]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight, made.bias = _constant(weight), _constant(bias)
    return made


def _constant(x: Tensor) -> nn.Parameter:
    """A copy that a compiler may freeze."""
    return nn.Parameter(x.detach().clone().contiguous(), requires_grad=False)

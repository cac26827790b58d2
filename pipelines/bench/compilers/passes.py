"""A pass of acting as a plain module of fixed shape: what a compiler gets to work on.

It is the model's own blocks, for one observation, without what acting computes once and keeps:
embeddings of noise levels, keys of the instruction. Queries, keys and values in one product and
rotated pairs half a head apart made OpenVINO no faster.

Shape legend: L tokens of a stream, N tokens before those of the pass, m noise levels of a stream,
D expert width, H heads, h head width, n rows of text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.model.block import Block, TokenOrder
from gwp.model.config import Group
from gwp.model.layers import rotary, unpatchify
from gwp.model.modulation import Modulation
from gwp.model.transformer import WorldActionTransformer


@dataclass(frozen=True)
class _Span:
    """Tokens of a group in the stream of their expert."""

    expert: str
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start


class PlainPass(nn.Module):
    """The tokens of `shapes` (group -> shape of its tensor in `Tokens`) behind `before` others.

    `forward(*inputs)`, as `inputs` gives them, returns one Euler step further: actions, and the
    future where there is one. Of a pass without either: keys and values `[2 layers, 1, L, H, h]`,
    per layer keys, then values.
    """

    # Buffers, for the type checker.
    cos: Tensor
    sin: Tensor
    embodiment: Tensor

    def __init__(
        self, model: WorldActionTransformer, shapes: Mapping[Group, Sequence[int]], before: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.shapes = {g: shapes[g] for g in model.config.order if g in shapes}
        self.noisy = [g for g in self.shapes if g in ("A", "F")]
        tables = [rotary(model.config, g, shape) for g, shape in self.shapes.items()]
        # Where each group stands in the stream of its expert, groups in canonical order.
        self.spans: dict[Group, _Span] = {}
        lengths: dict[str, int] = {}
        for group, (cos, _) in zip(self.shapes, tables, strict=True):
            expert = model.config.expert_of[group]
            start = lengths.get(expert, 0)
            lengths[expert] = start + len(cos)
            self.spans[group] = _Span(expert, start, lengths[expert])
        self.experts = list(lengths)
        # Query segments: first and end among the own tokens, and how many keys they see.
        self.bounds: list[tuple[int, int, int]] = []
        end = 0
        for segment in model.config.segments:
            start = end
            end += sum(self.spans[g].count for g in segment if g in self.spans)
            if end > start:
                self.bounds.append((start, end, before + end))
        self.register_buffer("cos", torch.cat([cos for cos, _ in tables]))
        self.register_buffer("sin", torch.cat([sin for _, sin in tables]))
        self.register_buffer("embodiment", torch.zeros(1, dtype=torch.long))
        # Level 0 is clean and 1 noisy, where a stream has both.
        self.runs: dict[str, tuple[tuple[int, int, int], ...]] = {}
        for expert in self.experts:
            mine = [(g in self.noisy, s.count) for g, s in self.spans.items() if s.expert == expert]
            both = len({noisy for noisy, _ in mine}) == 2
            self.runs[expert] = tuple((int(noisy and both), 1, count) for noisy, count in mine)

    def inputs(
        self, given: Mapping[Group, Tensor], text: Tensor, sigma: float, delta: float, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """What `forward` takes: the tensor of each group; per expert keys and values of the
        instruction `[layers, 2, 1, n, H, h]`, and both embeddings of its noise levels; the Euler
        step `[1]`; for a pass behind a prefix what the pass over the prefix returned.

        text: `[1, n, text_dim]`; sigma: noise level of actions and future
        """
        conditions = {e: self.model.condition(e) for e in self.experts}
        projected = {e: condition.text(text) for e, condition in conditions.items()}
        blocks = [block for block in self.model.blocks if isinstance(block, Block)]
        layers = [block.text_kv(projected) for block in blocks]
        inputs = [given[g] for g in self.shapes]
        for expert, condition in conditions.items():
            noisy = any(self.spans[g].expert == expert for g in self.noisy)
            both = any(level for level, _, _ in self.runs[expert])
            # The model counts noise in thousandths; a clean token is at 0.
            levels = [0.0, sigma] if both else [sigma if noisy else 0.0]
            keys = [torch.stack(layer[expert]) for layer in layers]
            inputs += [torch.stack(keys), *condition.time(torch.tensor([levels]) * 1000.0)]
        return (*inputs, torch.tensor([delta]), *past)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        # Taken in the order in which `inputs` packs them.
        rest = list(inputs)
        given = {g: rest.pop(0) for g in self.shapes}
        text, time, mods = {}, {}, {}
        for expert in self.experts:
            text[expert] = rest.pop(0)
            time[expert] = rest.pop(0)
            mods[expert] = Modulation(rest.pop(0), self.runs[expert])
        delta = rest.pop(0)
        past = rest.pop(0) if rest else None
        tokens = {g: self._embedded(g, x) for g, x in given.items()}
        streams = {}
        for expert in self.experts:
            mine = [x for g, x in tokens.items() if self.spans[g].expert == expert]
            streams[expert] = torch.cat(mine, dim=1)
        pieces = tuple((s.expert, s.start, s.stop) for s in self.spans.values())
        # Lengths of streams are not read by blocks, only their names.
        order = TokenOrder(pieces, tuple(self.bounds), self.cos, self.sin)
        # Keys and values of earlier tokens are in `past`, those of these tokens go here.
        cache: list[Tensor] = []
        for i, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            seen = None if past is None else (past[2 * i], past[2 * i + 1])
            keys = {e: (packed[i, 0], packed[i, 1]) for e, packed in text.items()}
            streams, kv = block(streams, mods, keys, order, seen)
            cache += kv
        if not self.noisy:
            return torch.stack(cache)
        return tuple(
            given[g] + delta * self._velocity(g, streams[self.spans[g].expert], time)
            for g in self.noisy
        )

    def _embedded(self, group: Group, x: Tensor) -> Tensor:
        model = self.model
        if group in ("R", "F"):
            return model.patch_embedding(x)
        own = model.state_encoder if group == "S" else None
        encoder = own or model.action_encoder
        assert encoder is not None
        return encoder(x, self.embodiment)

    def _velocity(self, group: Group, stream: Tensor, time: dict[str, Tensor]) -> Tensor:
        span, config = self.spans[group], self.model.config
        x = stream[:, span.start : span.stop]
        # The last level of a stream is that of its noisy tokens.
        table = self.model.out_tables[span.expert]
        shift, scale = table(time[span.expert][:, -1:, None]).unbind(2)
        y = F.layer_norm(x, x.shape[-1:], eps=config.eps) * (1 + scale) + shift
        if group == "A":
            assert self.model.action_decoder is not None
            return self.model.action_decoder(y, self.embodiment)
        T, rows, columns = self.shapes[group][2:]
        _, ph, pw = config.patch_size
        latent = self.model.proj_out(y)
        return unpatchify(latent, T, rows // ph, columns // pw, config.patch_size)

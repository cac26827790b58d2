"""The world-action transformer: token groups with their own noise levels, experts as a mapping
from group to weights.

Shape legend: B batch, L tokens, D width, C latent channels, T latent frames, h w latent rows
and columns, p actions, d channels.
Sources: block-causal visibility and heads as in the GWP-0 and GWP-0.5 papers; Wan 2.2
transformer for the visual part.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwp.errors import GwpError
from gwp.model import recompute
from gwp.model.block import Block, TokenOrder
from gwp.model.config import Group, ModelConfig
from gwp.model.frames import read_out, with_frames
from gwp.model.layers import (
    ActionDecoder,
    ActionEncoder,
    ConditionEmbedder,
    PatchEmbedding,
    rotary,
    unpatchify,
)
from gwp.model.modulation import Modulation, ModulationTable


@dataclass(frozen=True)
class Tokens:
    """What goes into one pass. A group that is None is absent.

    state      fp `[B, 1, d]`            S
    reference  fp `[B, C, 1, h, w]`      R, latent of the current canvas
    action     fp `[B, p, d]`            A
    future     fp `[B, C, T, h, w]`      F, latents after the reference
    video_only bool `[B]`                samples whose S and A no other token sees: what is
                                         computed of their R and F is what it is without those
                                         groups. None: there are none
    """

    state: Tensor | None = None
    reference: Tensor | None = None
    action: Tensor | None = None
    future: Tensor | None = None
    video_only: Tensor | None = None

    def present(self) -> dict[Group, Tensor]:
        """The groups that are there, by name."""
        pairs: dict[Group, Tensor | None] = {
            "S": self.state,
            "R": self.reference,
            "A": self.action,
            "F": self.future,
        }
        return {group: x for group, x in pairs.items() if x is not None}


@dataclass(frozen=True)
class Context:
    """Keys and values of tokens that no later token can change, per layer, and the projected
    text. `WorldActionTransformer.extend` makes one; later passes take it as their beginning.

    kv:         per layer (k, v) `[B, n, H, h]`
    text:       per layer expert -> (k, v) `[B, L_t, H, h]`
    groups:     the groups inside, in canonical order: what comes first in `ModelConfig.order`
    embodiment: int64 `[B]`, row of the embodiment-specific projections
    """

    kv: tuple[tuple[Tensor, Tensor], ...]
    text: tuple[dict[str, tuple[Tensor, Tensor]], ...]
    groups: tuple[Group, ...]
    embodiment: Tensor


@dataclass(frozen=True)
class Velocity:
    """Predicted velocities (noise minus data) of the groups that were asked for."""

    action: Tensor | None = None
    future: Tensor | None = None
    reference: Tensor | None = None


@dataclass
class _Pass:
    """Everything about one pass that does not depend on the layer.

    present:    the groups as they are embedded, in canonical order: vectors or frames
    streams:    expert -> embedded tokens `[B, L_e, D_e]` of its groups in canonical order
    modulation: expert -> the noise of its tokens
    temb:       group -> embedding of its noise fp32 `[B, 1 | tokens, D_e]`, for its head
    layout:     where the tokens stand
    spans:      group -> (expert, start, stop) in its expert's stream
    """

    present: dict[Group, Tensor]
    streams: dict[str, Tensor]
    modulation: dict[str, Modulation]
    temb: dict[Group, Tensor]
    layout: TokenOrder
    spans: dict[Group, tuple[str, int, int]] = field(default_factory=dict)


class WorldActionTransformer(nn.Module):
    """GWP-0 and GWP-0.5 by one implementation; see `ModelConfig` for the two mappings.

    There is no mutable per-request state: caches are values (`Context`) that the caller holds.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        widths = {name: width for name, (width, _) in config.experts.items()}
        visual_width = widths[config.expert_of["F"]]
        action_width = widths[config.expert_of["A"]]
        # Every constructor draws its weights: their order is part of what a seed means.
        self.patch_embedding = PatchEmbedding(config.in_channels, visual_width, config.patch_size)
        self.conditions = nn.ModuleDict(
            {n: ConditionEmbedder(w, config.freq_dim, config.text_dim) for n, w in widths.items()}
        )
        shape = (config.num_embodiments, config.action_channels, action_width)
        # Latent frames of actions have the video's embedding and head.
        own = config.actions == "tokens"
        self.action_encoder = ActionEncoder(*shape) if own else None
        self.action_decoder = ActionDecoder(*shape) if own else None
        # GWP-0 passes the state through the action encoder; GWP-0.5 has an encoder of its own.
        self.state_encoder = ActionEncoder(*shape) if config.family == "gwp05" else None
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        self.blocks = nn.ModuleList(
            [Block(config.experts, heads, head_dim, config.eps) for _ in range(config.num_layers)]
        )
        self.out_tables = nn.ModuleDict({n: ModulationTable(2, w) for n, w in widths.items()})
        self.proj_out = nn.Linear(visual_width, config.token_width)
        # Switched on by the training engine.
        self.gradient_checkpointing: recompute.Recompute = False
        # Plain attribute, not a buffer: an engine that casts the module to bf16 must leave the
        # tables in fp32.
        self._rotary: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        tokens: Tokens,
        noise: dict[Group, Tensor],
        text: Tensor | None = None,
        embodiment: Tensor | None = None,
        context: Context | None = None,
        heads: Collection[Group] = ("A", "F"),
    ) -> Velocity:
        """Velocities of the groups in `heads` that are present.

        noise:      group -> noise level in [0, 1], `[B]` or `[B, tokens]`; a group left out is clean
        text:       `[B, L_t, text_dim]`; not with a context, which holds it already
        embodiment: int64 `[B]`, row of the embodiment-specific projections; None: row 0
        context:    from `extend`; its groups must not be given again
        """
        run, out, _ = self._run(tokens, noise, text, embodiment, context, every_text=False)
        return self._heads(tokens, run, out, self._embodiment(tokens, embodiment, context), heads)

    def extend(
        self,
        tokens: Tokens,
        noise: dict[Group, Tensor] | None = None,
        text: Tensor | None = None,
        embodiment: Tensor | None = None,
        context: Context | None = None,
    ) -> Context:
        """The context after these tokens: keys and values that later passes reuse (the prefix
        S, R; then clean actions, or a clean future).
        """
        _, _, (kv, text_kv) = self._run(
            tokens, noise or {}, text, embodiment, context, every_text=True
        )
        groups = (*(context.groups if context else ()), *self._present(tokens))
        return Context(
            tuple(kv), tuple(text_kv), groups, self._embodiment(tokens, embodiment, context)
        )

    def _run(
        self,
        tokens: Tokens,
        noise: dict[Group, Tensor],
        text: Tensor | None,
        embodiment: Tensor | None,
        context: Context | None,
        every_text: bool,
    ) -> tuple[
        _Pass,
        dict[str, Tensor],
        tuple[list[tuple[Tensor, Tensor]], list[dict[str, tuple[Tensor, Tensor]]]],
    ]:
        if tokens.video_only is not None and (every_text or context is not None):
            raise ValueError("a context holds the state for every sample; none may be video only")
        run = self._embed(tokens, noise, self._embodiment(tokens, embodiment, context), context)
        # A context has the keys of its text, of every layer.
        if (text is None) == (context is None):
            raise ValueError("give text or a context, one of the two")
        # A prefix without the state still needs the action expert's text for the passes after it.
        wanted = list(self.conditions) if every_text else list(run.streams)
        projected = {n: self.condition(n).text(text) for n in wanted} if text is not None else {}
        streams = run.streams
        kv: list[tuple[Tensor, Tensor]] = []
        text_kv: list[dict[str, tuple[Tensor, Tensor]]] = []
        for i, block in enumerate(self.blocks):
            cache = context.kv[i] if context else None
            assert isinstance(block, Block)
            layer_text = context.text[i] if context else block.text_kv(projected)
            args = (streams, run.modulation, layer_text, run.layout, cache)
            streams, layer_kv = recompute.run(
                block, self.gradient_checkpointing, i, len(self.blocks), *args
            )
            # With those of the cache in front, as a later pass takes them.
            kv.append(layer_kv)
            text_kv.append(layer_text)
        return run, streams, (kv, text_kv)

    def _embodiment(
        self, tokens: Tokens, embodiment: Tensor | None, context: Context | None
    ) -> Tensor:
        if embodiment is None and context is not None:
            return context.embodiment
        x = next(iter(tokens.present().values()))
        if embodiment is None:
            return torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        # Only on the CPU: elsewhere reading the largest back would wait for the device.
        if (
            embodiment.device.type == "cpu"
            and embodiment.numel()
            and int(embodiment.max()) >= self.config.num_embodiments
        ):
            raise GwpError(
                f"embodiment id {int(embodiment.max())} is out of range; the model has "
                f"{self.config.num_embodiments}"
            )
        return embodiment.expand(x.shape[0])

    def _embed(
        self,
        tokens: Tokens,
        noise: dict[Group, Tensor],
        embodiment: Tensor,
        context: Context | None,
    ) -> _Pass:
        config = self.config
        present = with_frames(config, self._present(tokens))
        cached = context.groups if context else ()
        # Cached keys stand before these and have not seen them: what follows must be of segments
        # behind theirs.
        if cached and config.segment_of(next(iter(present))) <= config.segment_of(cached[-1]):
            raise ValueError(
                f"groups {tuple(present)} must follow the context's {cached} in the segments "
                f"{config.segments}"
            )
        embedded = {g: self._embedded(g, x, embodiment) for g, x in present.items()}
        streams: dict[str, Tensor] = {}
        modulation: dict[str, Modulation] = {}
        temb: dict[Group, Tensor] = {}
        spans: dict[Group, tuple[str, int, int]] = {}
        # A stream per expert that is there: its groups behind each other, in canonical order.
        for expert in dict.fromkeys(config.expert_of[g] for g in present):
            members = [g for g in present if config.expert_of[g] == expert]
            streams[expert] = torch.cat([embedded[g] for g in members], dim=1)

            # Each noise level is embedded once, however many tokens have it.
            levels = [_level(noise.get(g), embedded[g]) for g in members]
            # The published embedding counts noise from 0 to 1000.
            t, mod = self.condition(expert).time(torch.cat(levels, dim=1) * 1000.0)
            runs: list[tuple[int, int, int]] = []
            first = start = 0
            for g, level in zip(members, levels, strict=True):
                own, n = level.shape[1], embedded[g].shape[1]
                runs.append((first, own, n))
                # Heads are modulated too, each by the noise of its own group.
                temb[g] = t[:, first : first + own]
                spans[g] = (expert, start, start + n)
                first += own
                start += n
            modulation[expert] = Modulation(mod, tuple(runs))
        layout = self._layout(tokens, present, spans, context)
        return _Pass(present, streams, modulation, temb, layout, spans)

    def _present(self, tokens: Tokens) -> dict[Group, Tensor]:
        """The groups that are there, in canonical order."""
        present = tokens.present()
        return {group: present[group] for group in self.config.order if group in present}

    def _embedded(self, group: Group, x: Tensor, embodiment: Tensor) -> Tensor:
        """One group, vectors or frames, as tokens `[B, tokens, D_e]`."""
        if x.ndim == 5:
            return self.patch_embedding(x)
        encoder = self.action_encoder
        if group == "S" and self.state_encoder is not None:
            encoder = self.state_encoder
        assert encoder is not None
        return encoder(x.to(self.proj_out.weight.dtype), embodiment)

    def condition(self, expert: str) -> ConditionEmbedder:
        """The embedding of noise level and text that an expert uses."""
        embedder = self.conditions[expert]
        assert isinstance(embedder, ConditionEmbedder)
        return embedder

    def _layout(
        self,
        tokens: Tokens,
        present: dict[Group, Tensor],
        spans: dict[Group, tuple[str, int, int]],
        context: Context | None,
    ) -> TokenOrder:
        order = list(present)
        cached = context.kv[0][0].shape[1] if context else 0
        # Absent groups leave no gap; the cache, if any, stands before position 0.
        bounds: list[tuple[int, int, int]] = []
        position = 0
        for segment in self.config.segments:
            n = sum(spans[g][2] - spans[g][1] for g in segment if g in spans)
            if n:
                bounds.append((position, position + n, cached + position + n))
                position += n
        tables = [self._rotary_of(g, x) for g, x in present.items()]
        return TokenOrder(
            pieces=tuple(spans[g] for g in order),
            bounds=tuple(bounds),
            cos=torch.cat([cos for cos, _ in tables]),
            sin=torch.cat([sin for _, sin in tables]),
            seen=_seen(tokens, {g: spans[g][2] - spans[g][1] for g in order}),
        )

    def _rotary_of(self, group: Group, x: Tensor) -> tuple[Tensor, Tensor]:
        # The same few shapes come at every step; their tables are kept.
        key = (group, tuple(x.shape[1:]), x.device)
        if key not in self._rotary:
            cos, sin = rotary(self.config, group, x.shape)
            self._rotary[key] = (cos.to(x.device), sin.to(x.device))
        return self._rotary[key]

    def _heads(
        self,
        tokens: Tokens,
        run: _Pass,
        out: dict[str, Tensor],
        embodiment: Tensor,
        heads: Collection[Group],
    ) -> Velocity:
        result: dict[Group, Tensor] = {}
        for group in heads:
            # The state is given, never predicted: it has no head.
            if group not in run.spans or group == "S":
                continue
            expert, start, stop = run.spans[group]
            x = out[expert][:, start:stop]
            # Heads have no gate: two vectors, from the embedding and not its projection.
            shift, scale = self.out_tables[expert](run.temb[group].unsqueeze(2)).unbind(2)
            normed = F.layer_norm(x.float(), (x.shape[-1],), eps=self.config.eps)
            y = (normed * (1 + scale) + shift).to(x.dtype)
            if group == "A" and self.action_decoder is not None:
                # Actions leave by a projection of the robot's own, frames by one for all.
                result[group] = self.action_decoder(y, embodiment)
                continue
            T, h, w = run.present[group].shape[2:]
            _, ph, pw = self.config.patch_size
            frames = unpatchify(self.proj_out(y), T, h // ph, w // pw, self.config.patch_size)
            result[group] = frames
            if group == "A" and tokens.action is not None:
                result[group] = read_out(frames, *tokens.action.shape[1:])
        return Velocity(action=result.get("A"), future=result.get("F"), reference=result.get("R"))


def _seen(tokens: Tokens, lengths: dict[Group, int]) -> Tensor | None:
    """`TokenOrder.seen` of groups of these lengths, in canonical order."""
    if tokens.video_only is None:
        return None
    # Those of a sample that is video only see R, too: a query without any key has no result.
    acting_B = ~tokens.video_only
    parts = [
        (acting_B if g in ("S", "A") else torch.ones_like(acting_B))[:, None].expand(-1, n)
        for g, n in lengths.items()
    ]
    return torch.cat(parts, dim=1)[:, None, None]


def _level(level: Tensor | None, tokens_BLD: Tensor) -> Tensor:
    """A group's noise level fp32 `[B, 1]` or `[B, tokens]`; clean where none is given."""
    if level is None:
        return torch.zeros(tokens_BLD.shape[0], 1, device=tokens_BLD.device)
    if level.ndim == 2 and level.shape[1] not in (1, tokens_BLD.shape[1]):
        raise ValueError(
            f"{level.shape[1]} noise levels of a group of {tokens_BLD.shape[1]} tokens"
        )
    return level.float().unsqueeze(1) if level.ndim == 1 else level.float()

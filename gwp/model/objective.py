"""What a training step optimises: which groups are present, their noise levels, and the masked
losses.

A stage is a distribution over modes (video, ac-wm, wam) plus loss weights; nothing here knows
stages by name. Shape legend: B batch, p actions, d channels, C latent channels, T latent frames
(reference first), h w latent rows and columns.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from gwp.model.config import Group, ModelConfig
from gwp.model.flow import add_noise, draw_sigma
from gwp.model.transformer import Tokens, WorldActionTransformer

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModesConfig(BaseModel):
    """Shares of the training modes, relative to each other. Samples without actions are always
    `video`.
    """

    model_config = _CONFIG

    video: float = Field(default=0.0, ge=0)
    """Future video from the reference alone; no state or action tokens. Drawn for a whole
    global batch.
    """
    ac_wm: float = Field(default=0.0, ge=0)
    """Action-conditioned world model: clean actions, only the future is learnt. Drawn per
    sample.
    """
    wam: float = Field(default=1.0, ge=0)
    """World-action model: noisy actions and noisy future, both learnt. Drawn per sample."""

    @model_validator(mode="after")
    def _some(self) -> "ModesConfig":
        if self.video + self.ac_wm + self.wam <= 0:
            raise ValueError("at least one of video, ac_wm, wam must be above 0")
        return self


class ObjectiveConfig(BaseModel):
    """Modes, noise and loss weights of a stage."""

    model_config = _CONFIG

    modes: ModesConfig = ModesConfig()
    """Which tokens are present and clean, as shares."""
    action_weight: float = Field(default=1.0, ge=0)
    """Weight of the action loss. The GWP-0 paper states 5 : 1, the released trainers use 1 : 1."""
    video_weight: float = Field(default=1.0, ge=0)
    """Weight of the future-video loss. 0 drops the future tokens from training."""
    action_shift: float = Field(default=5.0, gt=0)
    """Shift of the action noise levels towards noise."""
    video_shift: float = Field(default=2.0, gt=0)
    """Shift of the future noise levels towards noise (released: 2 for GWP-0.5, 5 for GWP-0)."""
    shared_noise: bool = False
    """One noise level per sample for actions and future (GWP-0)."""
    chunk_prefix: float = Field(default=0.0, ge=0, le=1)
    """Share of samples whose first actions are clean, as in real-time chunking."""
    max_prefix: int = Field(default=0, ge=0)
    """Longest clean action prefix, control steps."""
    masking: Literal["valid", "published"] = "valid"
    """`valid`: losses only over real steps and dimensions. `published`: over padding too, with
    the clean reference frame in the denominator of the video loss, as the released trainers do;
    for continuing published weights.
    """

    @model_validator(mode="after")
    def _prefix(self) -> "ObjectiveConfig":
        if self.chunk_prefix > 0 and self.max_prefix == 0:
            raise ValueError(
                "chunk_prefix needs max_prefix, the longest clean prefix in control steps"
            )
        return self


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the model's device; the training loop fills it, `training_losses` is
    what reads it.

    latents:    fp32 `[B, C, T, h, w]`, reference first
    state:      fp32 `[B, 1, d]`
    actions:    fp32 `[B, p, d]`
    step_valid: bool `[B, p]`, False past the end of an episode
    dim_valid:  bool `[B, d]`, False where a robot has fewer channels than the model
    text:       `[B, L_t, text_dim]`
    embodiment: int64 `[B]`
    """

    latents: Tensor
    state: Tensor
    actions: Tensor
    step_valid: Tensor
    dim_valid: Tensor
    text: Tensor
    embodiment: Tensor


@dataclass(frozen=True)
class Losses:
    """`total` carries the gradient; `action` and `video` are detached means, None when the
    group was absent.
    """

    total: Tensor
    action: Tensor | None
    video: Tensor | None


def draw_video_only(modes: ModesConfig, has_action: bool, generator: torch.Generator) -> bool:
    """Whether a whole global batch trains video only. One draw for all ranks: their graphs must
    be the same.
    """
    share = modes.video / (modes.video + modes.ac_wm + modes.wam)
    return bool(torch.rand((), generator=generator) < share) or not has_action


def training_losses(
    model: WorldActionTransformer,
    batch: Batch,
    objective: ObjectiveConfig,
    video_only: bool,
    generator: torch.Generator,
) -> Losses:
    """Losses of one micro-batch; all randomness comes from `generator` (CPU)."""
    B = batch.latents.shape[0]
    device = batch.latents.device

    # Drawn on the CPU and in this order, whatever the mode uses of it: one seed then gives the
    # same numbers on every device and in every mode.
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    sigma_f = draw_sigma(B, objective.video_shift, generator)
    sigma_a = draw_sigma(B, objective.action_shift, generator)
    if objective.shared_noise:
        sigma_f = sigma_a
    reference, clean_future = batch.latents[:, :, :1], batch.latents[:, :, 1:]
    # Without weight the future costs nothing, but a video batch has nothing else to learn.
    with_future = clean_future.shape[2] > 0 and (objective.video_weight > 0 or video_only)
    future_noise = draw(*clean_future.shape)
    action_noise = draw(*batch.actions.shape)
    future = add_noise(clean_future, future_noise, sigma_f.to(device)) if with_future else None
    noise: dict[Group, Tensor] = {"F": sigma_f.to(device)} if with_future else {}
    if video_only:
        # What this leaves without a gradient gets one of zeros from `idle_loss`.
        tokens = Tokens(reference=reference, future=future)
        out = model(tokens, noise, batch.text, batch.embodiment, heads=("F",))
        video = _video_loss(out.future, future_noise - clean_future, objective)
        return Losses(
            objective.video_weight * video if objective.video_weight else video,
            None,
            video.detach(),
        )

    # With actions: levels and masks per action, then both losses out of one pass.
    level, learnt = _action_levels(batch, objective, sigma_a, generator)
    tokens = Tokens(
        batch.state, reference, add_noise(batch.actions, action_noise, level.to(device)), future
    )
    out = model(tokens, {"A": level.to(device), **noise}, batch.text, batch.embodiment)
    action = _action_loss(
        out.action, action_noise - batch.actions, batch, learnt.to(device), objective
    )
    total = objective.action_weight * action
    if with_future:
        video = _video_loss(out.future, future_noise - clean_future, objective)
        return Losses(total + objective.video_weight * video, action.detach(), video.detach())
    return Losses(total, action.detach(), None)


def _action_levels(
    batch: Batch, objective: ObjectiveConfig, sigma: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise level per action `[B, p]` and which of them are learnt bool `[B, p]` (CPU)."""
    # `video` is no share here: it was drawn for the whole global batch.
    B, p = batch.actions.shape[:2]
    modes = objective.modes
    # ac-wm: all actions of the sample are clean, and none is learnt.
    clean = torch.rand(B, generator=generator) < modes.ac_wm / (modes.ac_wm + modes.wam)
    # Cloned, because rows of `expand` share memory and single actions are set below.
    level = torch.where(clean, torch.zeros_like(sigma), sigma)[:, None].expand(B, p).clone()
    learnt = (~clean)[:, None].expand(B, p).clone()
    # Real-time chunking: so are the first ones of some samples; one action at least is left.
    prefixed = torch.rand(B, generator=generator) < objective.chunk_prefix
    length = torch.randint(0, min(objective.max_prefix, p - 1) + 1, (B,), generator=generator)
    committed = prefixed[:, None] & (torch.arange(p) < length[:, None])
    level[committed] = 0.0
    return level, learnt & ~committed


def _action_loss(
    predicted: Tensor | None,
    target: Tensor,
    batch: Batch,
    learnt: Tensor,
    objective: ObjectiveConfig,
) -> Tensor:
    assert predicted is not None
    error = (predicted.float() - target).square()
    if objective.masking == "published":
        weight = learnt[:, :, None].expand_as(error).float()
    else:
        weight = ((learnt & batch.step_valid)[:, :, None] & batch.dim_valid[:, None, :]).float()
    # Where all actions are clean nothing is learnt: 0, not NaN.
    return (error * weight).sum() / weight.sum().clamp(min=1.0)


def _video_loss(predicted: Tensor | None, target: Tensor, objective: ObjectiveConfig) -> Tensor:
    assert predicted is not None
    loss = (predicted.float() - target).square().mean()
    if objective.masking == "published":
        # The mean of the released trainers has the reference frame in it, whose error is 0.
        T = target.shape[2] + 1
        return loss * (T - 1) / T
    return loss


def idle_loss(model: WorldActionTransformer, batch_text: Tensor) -> Tensor:
    """Zero, through every parameter. Added where a step leaves some unused: sharding engines
    need the same graph on all ranks, and ZeRO-3 would otherwise apply the gradient of an
    earlier step again.

    batch_text: `[*, L_t, text_dim]`, only its last two sizes and device matter.
    """
    config = _config(model)
    device = batch_text.device
    # The smallest pass that has every group: one token of each.
    _, ph, pw = config.patch_size
    # Of robot 0: indexing gives the rows of the others a gradient, too, of zeros.
    vector = torch.zeros(1, 1, config.action_channels, device=device)
    latent = torch.zeros(1, config.in_channels, 1, ph, pw, device=device)
    out = model(
        Tokens(vector, latent, vector, latent),
        {},
        torch.zeros(1, *batch_text.shape[-2:], device=device),
    )
    assert out.action is not None
    assert out.future is not None
    return (out.action.float().sum() + out.future.float().sum()) * 0.0


def _config(model: WorldActionTransformer) -> ModelConfig:
    # An engine that wraps the model keeps it as `module`.
    inner = getattr(model, "module", model)
    assert isinstance(inner, WorldActionTransformer)
    return inner.config

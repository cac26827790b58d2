"""What a training step optimises: which groups are present, their noise levels, and the masked
losses.

A stage is a distribution over modes (video, ac-wm, wam) plus loss weights; nothing here knows
stages by name. Shape legend: B batch, p actions, d channels, C latent channels, T latent frames
(reference first), h w latent rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from gwp.model.config import Group, ModelConfig
from gwp.model.draws import Levels, draw_levels
from gwp.model.flow import add_noise
from gwp.model.transformer import Tokens, WorldActionTransformer

_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModesConfig(BaseModel):
    """Shares of the training modes, relative to each other. Samples without actions are always
    `video`.
    """

    model_config = _CONFIG

    video: float = Field(default=0.0, ge=0)
    """Future video from the reference alone, which sees no state or action. Drawn for a whole
    global batch; per sample with `data.batches: mixed`.
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
    """Weight of the action loss. GWP-0 has 5 (its paper), GWP-0.5 has 1 (its released trainer; so
    has that of GWP-0).
    """
    video_weight: float = Field(default=1.0, ge=0)
    """Weight of the future-video loss. 0 drops the future tokens from training, and with them
    all that samples without actions could teach.
    """
    action_shift: float = Field(default=5.0, gt=0)
    """Shift of the action noise levels towards noise (released: 5 for both families)."""
    video_shift: float = Field(default=2.0, gt=0)
    """Shift of the future noise levels towards noise (released: 2 for GWP-0.5, 5 for GWP-0, which
    has 5 here, too).
    """
    shared_noise: bool = False
    """One noise level per sample for actions and future; true for GWP-0, as released."""
    chunk_prefix: float = Field(default=0.0, ge=0, le=1)
    """Share of samples whose first actions are clean, as in real-time chunking."""
    max_prefix: int = Field(default=0, ge=0)
    """Longest clean action prefix, control steps."""
    text_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of samples whose instruction is kept from the model, which sees zeros (released: 0)."""
    masking: Literal["valid", "published"] = "valid"
    """`valid`: losses only over real steps and dimensions. `published`: over padding too, with
    the clean reference frame in the denominator of the video loss, as the released trainers do;
    for continuing published weights.
    """
    timesteps: Literal["exact", "bf16"] = "exact"
    """`bf16`: the model is told noise levels rounded to bf16 (steps of 4 of 1000), as the released
    trainers do; what is mixed is exact all the same.
    """

    @model_validator(mode="after")
    def _learns(self) -> "ObjectiveConfig":
        if self.video_weight == 0 and self.modes.video + self.modes.ac_wm > 0:
            raise ValueError(
                "video_weight 0 leaves nothing to learn in the modes video and ac_wm; set "
                "both to 0, or give video_weight"
            )
        return self

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
    ok:         bool `[B]`, False where a sample could not be read: it holds its place and counts
                for nothing, so that every rank runs the same graph whatever its data
    """

    latents: Tensor
    state: Tensor
    actions: Tensor
    step_valid: Tensor
    dim_valid: Tensor
    text: Tensor
    embodiment: Tensor
    ok: Tensor


@dataclass(frozen=True)
class Counts:
    """What the losses of a global batch are divided by: what is learnt in it, over all of its
    micro-batches and ranks. Means of the means of parts would weigh a part with little to learn
    as much as one with much.

    action: numbers of actions that are learnt; video: samples
    """

    action: float
    video: float


@dataclass(frozen=True)
class Losses:
    """The part of a micro-batch in the losses of its global batch: those are the sums over all
    parts.

    `total` carries the gradient; all else is detached, and `action` and `video` are None when the
    group was absent.

    action_each: fp32 `[B]`, sums of the errors of what is learnt of each sample's actions
    video_each:  fp32 `[B]`, the error of each sample's video
    counts_each: fp32 `[2, B]`, by what they are divided: numbers of actions that are learnt, and 1
                 for each sample that counts
    """

    total: Tensor
    action: Tensor | None
    video: Tensor | None
    action_each: Tensor | None
    video_each: Tensor | None
    counts_each: Tensor


def draw_video_only(modes: ModesConfig, has_action: bool, generator: torch.Generator) -> bool:
    """Whether a whole global batch trains video only, where batches are of one kind; `generator`
    is that of its first position in the plan. One draw for all ranks: their graphs must be the
    same.
    """
    return bool(torch.rand((), generator=generator) < _video_share(modes)) or not has_action


def _video_share(modes: ModesConfig) -> float:
    return modes.video / (modes.video + modes.ac_wm + modes.wam)


def levels_of(
    objective: ObjectiveConfig,
    seed: int,
    positions: Sequence[int],
    chunk: int,
    labelled: Sequence[bool] | None = None,
) -> Levels:
    """Modes and noise levels of the samples at these positions of the plan.

    labelled: which of them have actions, where batches are mixed: each draws whether it is video
    only. None: where they are of one kind, that is drawn for a whole batch (`draw_video_only`)
    """
    modes = objective.modes
    acting = modes.ac_wm + modes.wam
    return draw_levels(
        seed,
        positions,
        chunk,
        shifts=(objective.action_shift, objective.video_shift),
        shared=objective.shared_noise,
        # With `video` alone all batches are video only, and no action is looked at.
        clean_share=modes.ac_wm / acting if acting else 0.0,
        prefix_share=objective.chunk_prefix,
        max_prefix=objective.max_prefix,
        untold_share=objective.text_dropout,
        video_share=0.0 if labelled is None else _video_share(modes),
        labelled=labelled,
    )


def action_weights(
    objective: ObjectiveConfig, levels: Levels, step_valid: Tensor, dim_valid: Tensor, ok: Tensor
) -> Tensor:
    """Which numbers of the actions are learnt: fp32 `[B, p, d]` of 0 and 1.

    step_valid: bool `[B, p]`; dim_valid: bool `[B, d]`; ok: bool `[B]`, as in `Batch`.
    """
    learnt = levels.learnt.to(ok.device) & ok[:, None]
    if objective.masking == "published":
        return learnt[:, :, None].expand(*step_valid.shape, dim_valid.shape[1]).float()
    return ((learnt & step_valid)[:, :, None] & dim_valid[:, None, :]).float()


def counts_of(weights: Tensor, ok: Tensor) -> Counts:
    """What one micro-batch adds to the counts of its global batch: `weights` of
    `action_weights`, and `ok` of the batch.
    """
    return Counts(float(weights.sum(dtype=torch.float64)), float(ok.sum()))


def training_losses(
    model: WorldActionTransformer,
    batch: Batch,
    objective: ObjectiveConfig,
    video_only: bool,
    levels: Levels,
    noise: tuple[Tensor, Tensor],
    counts: Counts | None = None,
) -> Losses:
    """Losses of one micro-batch, as its part in those of a global batch with these `counts`;
    None: the micro-batch is all of it.

    video_only: of all samples, which then cost no state and actions; those of `levels` are so
    among others. Both come to the same.
    noise: of the future fp32 `[B, C, T - 1, h, w]` and of the actions fp32 `[B, p, d]`
    """
    device = batch.latents.device
    weights = action_weights(objective, levels, batch.step_valid, batch.dim_valid, batch.ok)
    if counts is None:
        counts = counts_of(weights, batch.ok)
    future_noise, action_noise = (part.to(device) for part in noise)
    reference, clean_future = batch.latents[:, :, :1], batch.latents[:, :, 1:]
    # Without weight the future costs nothing; a pass of video alone has nothing else, though.
    with_future = clean_future.shape[2] > 0 and (objective.video_weight > 0 or video_only)
    text = batch.text
    if objective.text_dropout:
        text = text * levels.told.to(device)[:, None, None]
    sigma = levels.future.to(device)
    future = add_noise(clean_future, future_noise, sigma) if with_future else None
    noisy: dict[Group, Tensor] = {"F": _told(sigma, objective)} if with_future else {}
    if video_only:
        # What this leaves without a gradient gets one of zeros from `idle_loss`.
        tokens = Tokens(reference=reference, future=future)
        out = model(tokens, noisy, text, batch.embodiment, heads=("F",))
        errors = _video_errors(out.future, future_noise - clean_future, batch.ok, objective)
        loss = errors.sum() / max(counts.video, 1.0)
        seen = torch.stack([torch.zeros_like(errors), batch.ok.float()])
        return Losses(
            objective.video_weight * loss, None, loss.detach(), None, errors.detach(), seen
        )

    # With actions: both losses out of one pass.
    level = levels.action.to(device)
    state, actions, alone = batch.state, batch.actions, None
    # Read from the host: without such samples attention takes no mask.
    if levels.video_only.any():
        alone = levels.video_only.to(device)
        # Whatever stands there: a mask takes 0 times it, which not every number makes 0.
        state = state.masked_fill(alone[:, None, None], 0.0)
        actions = actions.masked_fill(alone[:, None, None], 0.0)
    noisy_actions = add_noise(actions, action_noise, level)
    tokens = Tokens(state, reference, noisy_actions, future, alone)
    if _config(model).actions == "latent-frame":
        # A token holds values of many actions, which have one level: no prefix is clean.
        level = level[:, 0]
    out = model(tokens, {"A": _told(level, objective), **noisy}, text, batch.embodiment)
    assert out.action is not None
    error = (out.action.float() - (action_noise - actions)).square()
    # Where all actions are clean nothing is learnt: 0, not NaN.
    of_actions = (error * weights).flatten(1).sum(1)
    action = of_actions.sum() / max(counts.action, 1.0)
    total = objective.action_weight * action
    each: Tensor | None = None
    video: Tensor | None = None
    if with_future:
        each = _video_errors(out.future, future_noise - clean_future, batch.ok, objective)
        video = each.sum() / max(counts.video, 1.0)
        total = total + objective.video_weight * video
        each, video = each.detach(), video.detach()
    seen = torch.stack([weights.flatten(1).sum(1), batch.ok.float()])
    return Losses(total, action.detach(), video, of_actions.detach(), each, seen)


def _told(level: Tensor, objective: ObjectiveConfig) -> Tensor:
    """What the model is told of noise levels, in their shape."""
    if objective.timesteps == "exact":
        return level
    # Rounded where the released trainers do, as timesteps of 0 to 1000.
    return (level * 1000).to(torch.bfloat16).float() / 1000


def _video_errors(
    predicted: Tensor | None, target: Tensor, ok: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """fp32 `[B]`, 0 where a sample does not count."""
    assert predicted is not None
    # A mean over each sample: all of a global batch have one shape.
    of_sample = (predicted.float() - target).square().flatten(1).mean(1) * ok
    if objective.masking == "published":
        # The mean of the released trainers has the reference frame in it, whose error is 0.
        T = target.shape[2] + 1
        return of_sample * (T - 1) / T
    return of_sample


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

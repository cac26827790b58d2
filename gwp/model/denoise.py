"""Denoising: act (actions, and the future where they see it), imagine (future given actions),
joint (both together).

Shape legend: B batch, p actions, d channels, C latent channels, T future latent frames, h w
latent rows and columns.
"""

import itertools

import torch
from torch import Tensor

from gwp.model.flow import add_noise, euler, hold_padding, solver_sigmas
from gwp.model.transformer import Context, Tokens, Velocity, WorldActionTransformer


def observe(
    model: WorldActionTransformer,
    state: Tensor,
    reference: Tensor,
    text: Tensor,
    embodiment: Tensor | None = None,
) -> Context:
    """The prefix: state `[B, 1, d]` and reference latent `[B, C, 1, h, w]` with text, computed
    once per observation.
    """
    # No noise is named: both are clean.
    return model.extend(Tokens(state=state, reference=reference), text=text, embodiment=embodiment)


def _prefix_noise(sigma: Tensor, noise: Tensor, committed: Tensor | None) -> Tensor:
    """Noise level per action `[B, p]`: 0 on committed actions (real-time chunking), sigma
    elsewhere.
    """
    level = sigma.expand(noise.shape[:2])
    return level if committed is None else torch.where(committed, torch.zeros_like(level), level)


def act(
    model: WorldActionTransformer,
    context: Context,
    noise: Tensor,
    steps: int = 10,
    shift: float = 5.0,
    prefix: Tensor | None = None,
    committed: Tensor | None = None,
    padding: Tensor | None = None,
    future: Tensor | None = None,
) -> Tensor:
    """Denoise an action chunk from `noise` fp32 `[B, p, d]`.

    future: noise `[B, C, T, h, w]` of the future, for models whose actions see it: `joint` ones
    denoise both together, `video-first` ones the future and then the actions; else it is absent.
    prefix `[B, p, d]` and committed bool `[B, p]`: actions already given to the robot are clean
    tokens and are returned as given. In latent frames, whose tokens hold values of many actions,
    they are shown at the noise of the others instead.
    padding: bool `[B, d]`, channels that a robot does not have: see `gwp.model.flow.hold_padding`
    """

    visibility = model.config.visibility
    if model.config.acts_with_future and future is None:
        raise ValueError(f"a model that is {visibility} acts with a future: give its noise")
    if visibility == "video-first" and future is not None:
        # Its clean keys are computed once; every step of the actions sees them.
        clean = imagine(model, context, None, future, steps, shift)
        context = model.extend(Tokens(future=clean), context=context)
    beside = future if visibility == "joint" else None
    in_frames = model.config.actions == "latent-frame"

    def clamp(x_Bpd: Tensor, sigma: Tensor) -> Tensor:
        if committed is None or prefix is None:
            return x_Bpd
        given = add_noise(prefix, noise, sigma) if in_frames else prefix
        return torch.where(committed.unsqueeze(-1), given, x_Bpd)

    def velocities(x_Bpd: Tensor, sigma: Tensor) -> Velocity:
        # One level for all actions is embedded once; with a prefix each has its own.
        level = of_action = sigma.expand(x_Bpd.shape[0])
        if committed is not None and not in_frames:
            of_action = _prefix_noise(sigma, noise, committed)
        # The step before has moved the promised actions, too.
        tokens = Tokens(action=clamp(x_Bpd, sigma), future=beside)
        return model(tokens, {"A": of_action, "F": level}, context=context)

    x = noise
    sigmas = solver_sigmas(steps, shift).to(x.device)
    for now, after in itertools.pairwise(sigmas):
        out = velocities(x, now)
        assert out.action is not None
        x = x + (after - now) * out.action.float()
        if beside is not None:
            assert out.future is not None
            beside = beside + (after - now) * out.future.float()
        x = hold_padding(x, noise, padding, after)
    return clamp(x, sigmas[-1])


def imagine(
    model: WorldActionTransformer,
    context: Context,
    actions: Tensor | None,
    noise: Tensor,
    steps: int = 10,
    shift: float = 5.0,
) -> Tensor:
    """Denoise future latents from `noise` `[B, C, T, h, w]`, given the prefix and clean actions
    `[B, p, d]` (or none). The future of a model that is `video-first` sees no actions.
    """
    beside: Tensor | None = None
    if model.config.visibility == "joint":
        # They see the future, so that their keys change with it.
        beside = actions
    elif model.config.visibility == "action-centred" and actions is not None:
        # Clean actions are computed once; every step of the future sees their keys.
        context = model.extend(Tokens(action=actions), context=context)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        tokens = Tokens(action=beside, future=x)
        out = model(tokens, {"F": sigma.expand(x.shape[0])}, context=context).future
        assert out is not None
        return out

    return euler(noise, velocity, steps, shift)


def joint(
    model: WorldActionTransformer,
    tokens: Tokens,
    text: Tensor,
    action_noise: Tensor,
    future_noise: Tensor,
    embodiment: Tensor | None = None,
    steps: int = 10,
    shift: float = 5.0,
    context: Context | None = None,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoise actions and future together. `tokens` holds state and reference; with a context
    they are not run again. padding: as in `act`
    """
    action = action_noise
    future = future_noise
    sigmas = solver_sigmas(steps, shift).to(action.device)
    for now, after in itertools.pairwise(sigmas):
        level = now.expand(action.shape[0])
        # The context's groups must not be given again.
        given = Tokens() if context else tokens
        full = Tokens(given.state, given.reference, action, future)
        out = model(full, {"A": level, "F": level}, None if context else text, embodiment, context)
        assert out.action is not None
        assert out.future is not None
        # Both in fp32 and by the same step, as `euler` does.
        action = action + (after - now) * out.action.float()
        action = hold_padding(action, action_noise, padding, after)
        future = future + (after - now) * out.future.float()
    return action, future

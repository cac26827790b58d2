"""The Euler solver over a fused model: prefix, action steps, imagined futures, joint denoising.

What acting takes follows the model's visibility: actions alone; actions and future together; or
the future first, which the actions then read.

It stands beneath `policy` (one robot) and `batching` (many) and knows of neither.

Shape legend: B observations, p actions, d model channels of an action, C latent channels, T
future latent frames, h w latent rows and columns, L_t rows of an instruction, H heads, N tokens
with room in the cache. A suffix says the shape: `x_Bpd` is `[B, p, d]`. Actions, velocities and
latents are fp32.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.config import Group
from gwp.model.cost import tokens_of
from gwp.model.flow import hold_padding, solver_sigmas
from gwp.model.inference.fused import FusedTransformer, Pass
from gwp.model.inference.layout import KVCache, Noise, TextKeys
from gwp.model.transformer import Tokens

_ACTION: tuple[Group, ...] = ("A",)
_FUTURE: tuple[Group, ...] = ("F",)


@dataclass(frozen=True)
class Shapes:
    """Token counts, fixed by the policy: they never change between requests.

    chunk:  actions, p
    latent: (C, h, w) of one latent frame
    future: latent frames after the reference, T
    """

    chunk: int
    latent: tuple[int, int, int]
    future: int


@dataclass(frozen=True)
class Prefix:
    """What a policy knows of B observations, computed once for whatever is asked afterwards.

    `Solver.observe` makes it; `act`, `imagine` and the engine's steps go on from it, and write
    the keys and values of their own tokens behind those of the observation: one thread at a
    time.

    cache       keys and values of state and reference `[layers, B, H, N, h]`, with space for
                actions and future
    text        cross-attention keys and values of the instructions `[layers, B, H, L_t, h]`
    embodiment  int64 `[B]`, row of the embodiment-specific projections
    """

    cache: KVCache
    text: TextKeys
    embodiment: Tensor

    def rows(self, start: int, stop: int) -> "Prefix":
        """Some observations, as views."""
        cache, text = self.cache, self.text
        return Prefix(
            KVCache(cache.keys[:, start:stop], cache.values[:, start:stop], cache.spans),
            TextKeys(_rows(text.keys, start, stop), _rows(text.values, start, stop)),
            self.embodiment[start:stop],
        )

    def take(self, text: TextKeys, embodiment: Tensor, cache: KVCache | None = None) -> None:
        """Copy these into the buffers.

        Of the text what the experts with a buffer here see; of `cache` the observation.
        """
        self.embodiment.copy_(embodiment)
        for buffers, given in ((self.text.keys, text.keys), (self.text.values, text.values)):
            for expert, buffer in buffers.items():
                buffer.copy_(given[expert])
        if cache is not None:
            # Keys of actions and future are written anew by each pass.
            end = self.cache.observed
            self.cache.keys[..., :end, :].copy_(cache.keys[..., :end, :])
            self.cache.values[..., :end, :].copy_(cache.values[..., :end, :])


class Solver:
    """`steps` Euler steps at the noise levels of `gwp.model.flow.solver_sigmas`.

    It holds no per-request state.

    The policy makes one; policy, recordings and engine share it. Call its methods in
    `torch.inference_mode()`.
    """

    def __init__(
        self, model: FusedTransformer, shapes: Shapes, steps: int = 10, shift: float = 5.0
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.steps = steps
        # Actions that see the future need one when they are denoised.
        self.with_future = model.config.acts_with_future
        self._in_frames = model.config.actions == "latent-frame"
        sigmas = solver_sigmas(steps, shift)
        with torch.inference_mode():
            # The last level, 0, is added there.
            self._levels = model.levels(sigmas[:-1])
            # Kept, because groups of one noise have to share one object.
            self._noise = [Noise(self._levels, i) for i in range(steps + 1)]
        self.clean = self._noise[-1]
        # One row more than there are steps: a slot that is done stays where it is.
        delta = torch.cat([sigmas[1:] - sigmas[:-1], torch.zeros(1)])
        self._delta = delta.to(model.device)
        # For rows that take their steps together: a number of the host, so that no pass reads
        # one back from the device.
        self._delta_host = [float(x) for x in delta]
        # The level that each step ends at; a slot that is done stays clean.
        after = torch.cat([sigmas[1:], torch.zeros(1)])
        self._after = after.to(model.device)
        self._after_host = [float(x) for x in after]
        self._sigma_host = [float(x) for x in sigmas]

    @property
    def acting_experts(self) -> tuple[str, ...]:
        """Those that look at the text again after the prefix."""
        of_action = self.model.config.expert_of["A"]
        return tuple(self.model.config.experts) if self.with_future else (of_action,)

    def cache(self, batch: int, future: bool = True) -> KVCache:
        """Zeros for keys and values of `batch` observations, of their actions, and of a future."""
        _, h, w = self.shapes.latent
        # The observation, and all that may be asked of it afterwards.
        frames = 1 + self.shapes.future if future else 1
        counts = tokens_of(self.model.config, (frames, h, w), self.shapes.chunk)
        return self.model.cache(batch, counts)

    def empty(
        self, batch: int, text_rows: int, experts: Collection[str], future: bool = True
    ) -> Prefix:
        """Buffers for `batch` observations; instructions have `text_rows` rows, for `experts`."""
        model, config = self.model, self.model.config
        heads, head_width = config.num_attention_heads, config.attention_head_dim
        shape = (config.num_layers, batch, heads, text_rows, head_width)
        keys = {e: torch.zeros(shape, dtype=model.dtype, device=model.device) for e in experts}
        values = {e: torch.zeros(shape, dtype=model.dtype, device=model.device) for e in experts}
        ids_B = torch.zeros(batch, dtype=torch.long, device=model.device)
        return Prefix(self.cache(batch, future), TextKeys(keys, values), ids_B)

    def observe(
        self,
        state_B1d: Tensor,
        reference_BC1hw: Tensor,
        text: TextKeys,
        embodiment_B: Tensor,
        cache: KVCache | None = None,
    ) -> Prefix:
        """The prefix of B observations, from their states, reference latents and instructions.

        cache: zeros of `cache` to write into; None: new ones, with space for a future
        """
        cache = cache or self.cache(state_B1d.shape[0])
        tokens = Tokens(state=state_B1d, reference=reference_BC1hw)
        prefix_pass = self.model.prepare(tokens, cache, text, embodiment_B)
        # No head: only the keys and values that it writes are wanted.
        self.model.run(tokens, {"S": self.clean, "R": self.clean}, prefix_pass)
        return Prefix(cache, text, embodiment_B)

    def acting(self, prefix: Prefix) -> Pass:
        """The pass of the action tokens beside a prefix; made once for all steps."""
        shape_Bpd = (
            len(prefix.embodiment),
            self.shapes.chunk,
            self.model.config.action_channels,
        )
        # Only its shape counts: on the meta device it takes no memory.
        return self._prepare(prefix, Tokens(action=torch.empty(shape_Bpd, device="meta")))

    def act(
        self,
        prefix: Prefix,
        noise_Bpd: Tensor,
        given_Bpd: Tensor | None = None,
        committed_Bp: Tensor | None = None,
        padding_Bd: Tensor | None = None,
        future_BCThw: Tensor | None = None,
    ) -> Tensor:
        """Actions `[B, p, d]` from noise; all rows take their steps together.

        future: noise of the future, where `with_future`; the prefix then has space for one
        given, committed (bool): actions already promised to the robot are clean tokens and come
            back as given; in latent frames, whose tokens hold values of many actions, they are
            shown at the noise of the others
        padding (bool): channels that a robot does not have, held at their noise as training
            shows them (`hold_padding`); None: all are integrated
        """
        if self.with_future:
            if future_BCThw is None:
                raise ValueError("actions of this model see the future: acting needs its noise")
            if self.model.config.visibility == "joint":
                given = (padding_Bd, given_Bpd, committed_Bp)
                acted, _ = self._together(prefix, Tokens(), noise_Bpd, future_BCThw, *given)
                return acted
            future = self.imagine(prefix, None, future_BCThw)
            # Denoised, it goes into the cache, where the actions see it at every step.
            whole = self._prepare(prefix, Tokens(future=future))
            self.model.run(Tokens(future=future), {"F": self.clean}, whole)
        x_Bpd = noise_Bpd
        action_pass = self.acting(prefix)
        for step in range(self.steps):
            level = self.level(step)
            if committed_Bp is not None:
                # The level after the last step is that of clean tokens.
                level = self.levels(torch.where(committed_Bp, self.steps, step))
            # The step before has moved the promised actions, too.
            x_Bpd = _keep(x_Bpd, given_Bpd, committed_Bp)
            x_Bpd = x_Bpd + self._delta_host[step] * self.velocity(action_pass, x_Bpd, level)
            x_Bpd = hold_padding(x_Bpd, noise_Bpd, padding_Bd, self._after_host[step])
        return _keep(x_Bpd, given_Bpd, committed_Bp)

    def future_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one observation's future."""
        C, h, w = self.shapes.latent
        return C, self.shapes.future, h, w

    def level(self, step: int) -> Noise:
        """The noise of all tokens of a group at one step."""
        return self._noise[step]

    def levels(self, steps: Tensor) -> Noise:
        """The noise of rows or tokens, each at a step of its own, int64 `[B, 1]` or `[B, p]`.

        After the last step: clean.
        """
        return Noise(self._levels, steps)

    def velocity(self, action_pass: Pass, x_Bpd: Tensor, noise: Noise) -> Tensor:
        """Velocity of the actions `[B, p, d]`. action_pass: of `acting`"""
        out = self.model.run(Tokens(action=x_Bpd), {"A": noise}, action_pass, _ACTION)
        assert out.action is not None
        return out.action.float()

    def advance(self, x_Bpd: Tensor, velocity_Bpd: Tensor, step_B: Tensor) -> Tensor:
        """Euler update `[B, p, d]` of rows, each at a step of its own, int64; done ones stay."""
        return x_Bpd + self._delta[step_B][:, None, None] * velocity_Bpd

    def hold(self, x_Bpd: Tensor, noise_Bpd: Tensor, padding_Bd: Tensor, step_B: Tensor) -> Tensor:
        """`hold_padding` of rows `[B, p, d]` that have each taken a step of its own, int64."""
        return hold_padding(x_Bpd, noise_Bpd, padding_Bd, self._after[step_B][:, None, None])

    def imagine(self, prefix: Prefix, actions_Bpd: Tensor | None, noise_BCThw: Tensor) -> Tensor:
        """Future latents `[B, C, T, h, w]` from noise, given clean actions and the prefix.

        Where the model is video-first its future sees no actions, whatever they are; else they are
        needed.
        """
        visibility = self.model.config.visibility
        if actions_Bpd is None and visibility != "video-first":
            raise ValueError(f"the future of a model that is {visibility} needs actions")
        # Tokens that stand beside the future at every step.
        beside: Tensor | None = None
        if visibility == "joint":
            # What actions are to the future depends on the future, which they see.
            beside = actions_Bpd
        elif visibility == "action-centred":
            # Clean actions go into the cache first, where the future sees them at every step.
            self.model.run(Tokens(action=actions_Bpd), {"A": self.clean}, self.acting(prefix))
        x_BCThw = noise_BCThw
        future_pass = self._prepare(prefix, Tokens(action=beside, future=noise_BCThw))
        for step in range(self.steps):
            noise: dict[Group, Noise] = {"A": self.clean, "F": self.level(step)}
            out = self.model.run(Tokens(action=beside, future=x_BCThw), noise, future_pass, _FUTURE)
            assert out.future is not None
            x_BCThw = x_BCThw + self._delta_host[step] * out.future.float()
        return x_BCThw

    def joint(
        self,
        prefix: Prefix,
        tokens: Tokens,
        noise_Bpd: Tensor,
        noise_BCThw: Tensor,
        use_prefix: bool = False,
        padding_Bd: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Actions `[B, p, d]` and future `[B, C, T, h, w]` denoised together, whatever sees what,
        for comparison.

        As the field does it, state and reference in `tokens` are run again at every step;
        `use_prefix` takes them from the prefix. padding: as in `act`
        """
        again = Tokens() if use_prefix else Tokens(tokens.state, tokens.reference)
        return self._together(prefix, again, noise_Bpd, noise_BCThw, padding_Bd)

    def _together(
        self,
        prefix: Prefix,
        again: Tokens,
        noise_Bpd: Tensor,
        noise_BCThw: Tensor,
        padding_Bd: Tensor | None,
        given_Bpd: Tensor | None = None,
        committed_Bp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """again: state and reference where they are run at every step; those that are absent stay
        in the cache as they are. The rest as in `act`.
        """
        x_Bpd = noise_Bpd
        x_BCThw = noise_BCThw
        state, reference = again.state, again.reference
        joint_pass = self._prepare(prefix, Tokens(state, reference, x_Bpd, x_BCThw))
        for step in range(self.steps):
            level = of_action = self.level(step)
            if committed_Bp is not None and not self._in_frames:
                of_action = self.levels(torch.where(committed_Bp, self.steps, step))
            noise: dict[Group, Noise] = {"S": self.clean, "R": self.clean, "A": of_action}
            noise["F"] = level
            shown_Bpd = given_Bpd
            if given_Bpd is not None and self._in_frames:
                shown_Bpd = torch.lerp(given_Bpd, noise_Bpd, self._sigma_host[step])
            x_Bpd = _keep(x_Bpd, shown_Bpd, committed_Bp)
            present = Tokens(state, reference, x_Bpd, x_BCThw)
            out = self.model.run(present, noise, joint_pass, (*_ACTION, *_FUTURE))
            assert out.action is not None
            assert out.future is not None
            x_Bpd = x_Bpd + self._delta_host[step] * out.action.float()
            x_Bpd = hold_padding(x_Bpd, noise_Bpd, padding_Bd, self._after_host[step])
            x_BCThw = x_BCThw + self._delta_host[step] * out.future.float()
        return _keep(x_Bpd, given_Bpd, committed_Bp), x_BCThw

    def _prepare(self, prefix: Prefix, tokens: Tokens) -> Pass:
        return self.model.prepare(tokens, prefix.cache, prefix.text, prefix.embodiment)


def _keep(x_Bpd: Tensor, given_Bpd: Tensor | None, committed_Bp: Tensor | None) -> Tensor:
    if given_Bpd is None or committed_Bp is None:
        return x_Bpd
    return torch.where(committed_Bp.unsqueeze(-1), given_Bpd, x_Bpd)


def _rows(by_expert: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {expert: tensor[:, start:stop] for expert, tensor in by_expert.items()}

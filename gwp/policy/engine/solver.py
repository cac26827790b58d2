"""The Euler solver over a fused model: prefix, action steps, imagined futures, and the joint
baseline.

Shape legend: B batch, p actions, d channels, C latent channels, T future latent frames, h w
latent rows and columns.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.config import Group
from gwp.model.flow import solver_sigmas
from gwp.model.inference.fused import FusedTransformer, Pass
from gwp.model.inference.layout import KVCache, Noise, TextKeys
from gwp.model.transformer import Tokens

_ACTION: tuple[Group, ...] = ("A",)
_FUTURE: tuple[Group, ...] = ("F",)


@dataclass(frozen=True)
class Shapes:
    """Token counts are fixed by the policy: canvas, chunk and imagined frames never change
    between requests.

    latent: (C, h, w) of one latent frame; future: latent frames after the reference
    """

    chunk: int
    latent: tuple[int, int, int]
    future: int


@dataclass(frozen=True)
class Prefix:
    """What a policy knows of B observations: keys and values of state and reference, with room
    for actions and future.
    """

    cache: KVCache
    text: TextKeys
    embodiment: Tensor

    def rows(self, start: int, stop: int) -> "Prefix":
        """Some observations, as views."""
        cache, text = self.cache, self.text
        return Prefix(
            KVCache(cache.keys[:, start:stop], cache.values[:, start:stop], cache.places),
            TextKeys(
                *(
                    {e: t[:, start:stop] for e, t in side.items()}
                    for side in (text.keys, text.values)
                )
            ),
            self.embodiment[start:stop],
        )

    def take(self, text: TextKeys, embodiment: Tensor, cache: KVCache | None = None) -> None:
        """Copy these into the buffers: the text of the experts that have room here, and of
        `cache` what comes before the actions.
        """
        self.embodiment.copy_(embodiment)
        for mine, theirs in ((self.text.keys, text.keys), (self.text.values, text.values)):
            for expert, tensor in mine.items():
                tensor.copy_(theirs[expert])
        if cache is not None:
            # Keys of actions and future are written anew by each pass.
            end = self.cache.places["A"][0]
            self.cache.keys[..., :end, :].copy_(cache.keys[..., :end, :])
            self.cache.values[..., :end, :].copy_(cache.values[..., :end, :])


class Solver:
    """`steps` Euler steps at the noise levels of `gwp.model.flow.solver_sigmas`. It holds no
    per-request state.
    """

    def __init__(
        self, model: FusedTransformer, shapes: Shapes, steps: int = 10, shift: float = 5.0
    ) -> None:
        self.model, self.shapes, self.steps = model, shapes, steps
        sigmas = solver_sigmas(steps, shift)
        with torch.inference_mode():
            self._levels = model.levels(sigmas[:-1])
            self._noise = [Noise(self._levels, i) for i in range(steps + 1)]
        self.clean = self._noise[-1]
        # One row more than there are steps: a slot that is done stays where it is.
        delta = torch.cat([sigmas[1:] - sigmas[:-1], torch.zeros(1)])
        self._delta, self._delta_host = delta.to(model.device), [float(x) for x in delta]

    def cache(self, batch: int, future: bool = True) -> KVCache:
        """Room for the keys and values of `batch` observations."""
        _, h, w = self.shapes.latent
        _, ph, pw = self.model.config.patch_size
        tokens = (h // ph) * (w // pw)
        counts: dict[Group, int] = {"S": 1, "R": tokens, "A": self.shapes.chunk}
        return self.model.cache(
            batch, counts | ({"F": tokens * self.shapes.future} if future else {})
        )

    def empty(
        self, batch: int, text_rows: int, experts: Collection[str], future: bool = True
    ) -> Prefix:
        """Buffers for `batch` observations, with instructions of `text_rows` rows as these
        experts see them.
        """
        model, config = self.model, self.model.config
        shape = (
            config.num_layers,
            batch,
            config.num_attention_heads,
            text_rows,
            config.attention_head_dim,
        )
        sides = [
            {e: torch.zeros(shape, dtype=model.dtype, device=model.device) for e in experts}
            for _ in range(2)
        ]
        ids = torch.zeros(batch, dtype=torch.long, device=model.device)
        return Prefix(self.cache(batch, future), TextKeys(*sides), ids)

    def observe(
        self,
        state: Tensor,
        reference: Tensor,
        text: TextKeys,
        embodiment: Tensor,
        cache: KVCache | None = None,
    ) -> Prefix:
        """State `[B, 1, d]` and reference latent `[B, C, 1, h, w]`, once per observation."""
        cache, tokens = (
            cache or self.cache(state.shape[0]),
            Tokens(state=state, reference=reference),
        )
        self.model.run(
            tokens,
            {"S": self.clean, "R": self.clean},
            self.model.prepare(tokens, cache, text, embodiment),
        )
        return Prefix(cache, text, embodiment)

    def acting(self, prefix: Prefix) -> Pass:
        """The pass of the action tokens beside a prefix; made once for all steps."""
        B, p, d = len(prefix.embodiment), self.shapes.chunk, self.model.config.action_channels
        return self._prepare(prefix, Tokens(action=torch.empty(B, p, d, device="meta")))

    def act(
        self,
        prefix: Prefix,
        noise: Tensor,
        given: Tensor | None = None,
        committed: Tensor | None = None,
    ) -> Tensor:
        """Actions fp32 `[B, p, d]` from `noise`; all rows take their steps together.

        given `[B, p, d]`, committed bool `[B, p]`: actions already promised to the robot are
        clean tokens and come back as given.
        """
        x, through = noise, self.acting(prefix)
        for step in range(self.steps):
            level = self.level(step)
            if committed is not None:
                level = self.levels(torch.where(committed, self.steps, step))
            x = _keep(x, given, committed)
            x = x + self._delta_host[step] * self.velocity(through, x, level)
        return _keep(x, given, committed)

    def level(self, step: int) -> Noise:
        """The noise of all tokens of a group at one step."""
        return self._noise[step]

    def levels(self, steps: Tensor) -> Noise:
        """The noise of rows or tokens that are each at a step of their own: int64 `[B, 1]` or
        `[B, L]`; after the last step: clean.
        """
        return Noise(self._levels, steps)

    def velocity(self, through: Pass, x: Tensor, noise: Noise) -> Tensor:
        """fp32 `[B, p, d]`."""
        out = self.model.run(Tokens(action=x), {"A": noise}, through, _ACTION).action
        assert out is not None
        return out.float()

    def advance(self, x: Tensor, velocity: Tensor, step: Tensor) -> Tensor:
        """Euler update of rows that are each at a step of their own, int64 `[B]`; rows that are
        done stay.
        """
        return x + self._delta[step][:, None, None] * velocity

    def imagine(self, prefix: Prefix, actions: Tensor, noise: Tensor) -> Tensor:
        """Future latents fp32 `[B, C, T, h, w]` from `noise`, given clean actions `[B, p, d]`;
        the prefix is not run again.
        """
        self.model.run(Tokens(action=actions), {"A": self.clean}, self.acting(prefix))
        x, through = noise, self._prepare(prefix, Tokens(future=noise))
        for step in range(self.steps):
            out = self.model.run(Tokens(future=x), {"F": self.level(step)}, through, _FUTURE).future
            assert out is not None
            x = x + self._delta_host[step] * out.float()
        return x

    def joint(
        self,
        prefix: Prefix,
        tokens: Tokens,
        action_noise: Tensor,
        future_noise: Tensor,
        use_prefix: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Actions and future denoised together, for comparison.

        As the field does it, state and reference in `tokens` are run again at every step;
        `use_prefix` takes them from the prefix.
        """
        action, future = action_noise, future_noise
        state, reference = (None, None) if use_prefix else (tokens.state, tokens.reference)
        through = self._prepare(prefix, Tokens(state, reference, action, future))
        for step in range(self.steps):
            level = self.level(step)
            noise: dict[Group, Noise] = {"S": self.clean, "R": self.clean, "A": level, "F": level}
            out = self.model.run(
                Tokens(state, reference, action, future), noise, through, (*_ACTION, *_FUTURE)
            )
            assert out.action is not None
            assert out.future is not None
            action = action + self._delta_host[step] * out.action.float()
            future = future + self._delta_host[step] * out.future.float()
        return action, future

    def _prepare(self, prefix: Prefix, tokens: Tokens) -> Pass:
        return self.model.prepare(tokens, prefix.cache, prefix.text, prefix.embodiment)


def _keep(x: Tensor, given: Tensor | None, committed: Tensor | None) -> Tensor:
    return (
        x if given is None or committed is None else torch.where(committed.unsqueeze(-1), given, x)
    )

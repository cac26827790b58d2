"""What `gwp bench act` times of the solver: acting with and without cached keys, imagining, joint
decoding, and the parts of acting, all from the same random observations.

Shape legend: B observations, p actions, d model channels, C latent channels, T future latent
frames, h w latent rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gwp.model.config import Group
from gwp.model.inference.layout import Noise
from gwp.model.transformer import Tokens
from gwp.policy.solver import Prefix, Solver
from pipelines.bench.act.floor import bare_step


@dataclass(frozen=True)
class Inputs:
    """Random tensors of B observations, from which every case starts: `draw` makes it, `cases`
    and `acting` use it. fp32, on the model's device.

    state     `[B, 1, d]`
    reference `[B, C, 1, h, w]`, latents of the picture that the robot sees
    action    `[B, p, d]`, noise
    future    `[B, C, T, h, w]`, noise
    prefix    what the solver made of state, reference and a random instruction
    """

    state: Tensor
    reference: Tensor
    action: Tensor
    future: Tensor
    prefix: Prefix

    @classmethod
    def draw(cls, solver: Solver, batch: int, text_rows: int) -> "Inputs":
        model = solver.model
        # On the CPU, so that the numbers are the same on every device.
        generator = torch.Generator().manual_seed(0)
        C, h, w = solver.shapes.latent
        d = model.config.action_channels

        def randn(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, generator=generator).to(model.device)

        state = randn(1, d)
        reference = randn(C, 1, h, w)
        text = randn(text_rows, model.config.text_dim)
        ids = torch.zeros(batch, dtype=torch.long, device=model.device)
        prefix = solver.observe(state, reference, model.text_keys(text), ids)
        action = randn(solver.shapes.chunk, d)
        future = randn(C, solver.shapes.future, h, w)
        return cls(state, reference, action, future, prefix)

    def observe(self, solver: Solver) -> Prefix:
        """The prefix once more, into the same buffers, as a recorded graph has to."""
        prefix = self.prefix
        return solver.observe(
            self.state, self.reference, prefix.text, prefix.embodiment, prefix.cache
        )


def acting(solver: Solver, inputs: Inputs) -> Callable[[], Tensor]:
    """A whole chunk of actions: the prefix, then all steps, of the future too where the actions
    see it.
    """

    def act() -> Tensor:
        inputs.observe(solver)
        return solver.act(inputs.prefix, inputs.action, future_BCThw=inputs.future)

    return act


def _uncached(solver: Solver, inputs: Inputs) -> Callable[[], Tensor]:
    """The same chunk where every step computes the prefix anew, as a model without a cache of
    keys would.
    """
    prefix = inputs.prefix
    visibility = solver.model.config.visibility
    observed = Tokens(inputs.state, inputs.reference)
    if visibility == "joint":
        return lambda: solver.joint(prefix, observed, inputs.action, inputs.future)[0]

    def denoised(tokens: Tokens, group: Group) -> Tokens:
        """`tokens` with this group, noise in them, after all steps; the others are clean."""
        through = solver.model.prepare(tokens, prefix.cache, prefix.text, prefix.embodiment)
        noise: dict[Group, Noise] = dict.fromkeys(tokens.present(), solver.clean)
        field = "action" if group == "A" else "future"
        for step in range(solver.steps):
            noise[group] = solver.level(step)
            velocity = getattr(solver.model.run(tokens, noise, through, (group,)), field)
            # Even steps: their lengths cost nothing, so they need not be the solver's.
            x = tokens.present()[group] - velocity.float() / solver.steps
            tokens = replace(tokens, **{field: x})
        return tokens

    def act() -> Tensor:
        tokens = observed
        if visibility == "video-first":
            tokens = denoised(replace(tokens, future=inputs.future), "F")
        acted = denoised(replace(tokens, action=inputs.action), "A").action
        assert acted is not None
        return acted

    return act


def cases(solver: Solver, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Name of a case, as in the report's `ms` -> the work."""
    prefix = inputs.prefix
    observed = Tokens(inputs.state, inputs.reference)

    def joint_cached() -> object:
        return solver.joint(
            inputs.observe(solver), observed, inputs.action, inputs.future, use_prefix=True
        )

    # All cases write into one cache: what it holds does not change how long they take.
    found: dict[str, Callable[[], object]] = {
        "act": acting(solver, inputs),
        "act_uncached": _uncached(solver, inputs),
        # As the field does it, with state and reference anew at every step.
        "joint": lambda: solver.joint(prefix, observed, inputs.action, inputs.future),
        "joint_cached": joint_cached,
        "imagine": lambda: solver.imagine(prefix, inputs.action, inputs.future),
        "prefix": lambda: inputs.observe(solver),
    }
    if not solver.with_future:
        # Laid out once, as the solver does it for all its steps.
        through = solver.acting(prefix)
        found["step"] = lambda: solver.velocity(through, inputs.action, solver.level(0))
        found["bare_step"] = bare_step(solver, prefix)
    return found

"""What `gwp bench act` times of the solver: acting with and without cached keys, imagining, joint
decoding, and the parts of acting, all from the same random observations.

Shape legend: B observations, p actions, d model channels, C latent channels, T future latent
frames, h w latent rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.config import Group
from gwp.model.inference.layout import Noise
from gwp.model.transformer import Tokens
from gwp.policy.solver import Prefix, Solver
from pipelines.bench.act.floor import bare_step

_ACTION: tuple[Group, ...] = ("A",)


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
    """A whole chunk of actions: the prefix, then all steps."""

    def act() -> Tensor:
        inputs.observe(solver)
        return solver.act(inputs.prefix, inputs.action)

    return act


def _uncached(solver: Solver, inputs: Inputs) -> Callable[[], Tensor]:
    """The same chunk where every step computes the prefix anew, as a model without a cache of
    keys would.
    """
    prefix = inputs.prefix

    def act() -> Tensor:
        x = inputs.action
        tokens = Tokens(inputs.state, inputs.reference, x)
        through = solver.model.prepare(tokens, prefix.cache, prefix.text, prefix.embodiment)
        for step in range(solver.steps):
            noise: dict[Group, Noise] = {
                "S": solver.clean,
                "R": solver.clean,
                "A": solver.level(step),
            }
            tokens = Tokens(inputs.state, inputs.reference, x)
            velocity = solver.model.run(tokens, noise, through, _ACTION).action
            assert velocity is not None
            # Even steps: their lengths cost nothing, so they need not be the solver's.
            x = x - velocity.float() / solver.steps
        return x

    return act


def cases(solver: Solver, inputs: Inputs) -> dict[str, Callable[[], object]]:
    """Name of a case, as in the report's `ms` -> the work."""
    prefix = inputs.prefix
    observed = Tokens(inputs.state, inputs.reference)
    # Laid out once, as the solver does it for all its steps.
    through = solver.acting(prefix)

    def joint_cached() -> object:
        return solver.joint(
            inputs.observe(solver), observed, inputs.action, inputs.future, use_prefix=True
        )

    # All cases write into one cache: what it holds does not change how long they take.
    return {
        "act": acting(solver, inputs),
        "act_uncached": _uncached(solver, inputs),
        # As the field does it, with state and reference anew at every step.
        "joint": lambda: solver.joint(prefix, observed, inputs.action, inputs.future),
        "joint_cached": joint_cached,
        "imagine": lambda: solver.imagine(prefix, inputs.action, inputs.future),
        "prefix": lambda: inputs.observe(solver),
        "step": lambda: solver.velocity(through, inputs.action, solver.level(0)),
        "bare_step": bare_step(solver, prefix),
    }

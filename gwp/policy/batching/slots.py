"""Rows of a batch that robots come and go in: buffers of fixed size, allocated once.

Shape legend: n rows, p actions, d model channels. A suffix says the shape: `x_npd` is
`[n, p, d]`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gwp.model.inference.fused import Pass
from gwp.policy.inputs import Batch
from gwp.policy.solver import Prefix, Solver


@dataclass(frozen=True)
class Slots:
    """One row per robot. The `ModelRunner` makes it once; encoding fills rows, steps advance
    them.

    x          fp32 `[n, p, d]`, the chunk being denoised; noise is what it began as
    future     fp32 `[n, C, T, h, w]`, noise of the future, where acting denoises one; else None
    padding    bool `[n, d]`, channels that the robot does not have and that are held at their noise
    given      fp32 `[n, p, d]`, actions already promised; committed bool `[n, p]` says which
    step       int64 `[n]`, Euler steps taken, never more than there are: a row that is done stays
    prefix     keys and values of the observation, of its text, and the embodiment
    """

    x: Tensor
    noise: Tensor
    padding: Tensor
    given: Tensor
    committed: Tensor
    step: Tensor
    prefix: Prefix
    future: Tensor | None = None

    @classmethod
    def empty(cls, solver: Solver, count: int, text_rows: int) -> "Slots":
        """Buffers for `count` robots and instructions of `text_rows` rows."""
        model, config = solver.model, solver.model.config
        p, d = solver.shapes.chunk, config.action_channels
        return cls(
            x=torch.zeros(count, p, d, device=model.device),
            noise=torch.zeros(count, p, d, device=model.device),
            padding=torch.zeros(count, d, dtype=torch.bool, device=model.device),
            given=torch.zeros(count, p, d, device=model.device),
            committed=torch.zeros(count, p, dtype=torch.bool, device=model.device),
            # As if all were done: rows that nobody holds stay where they are.
            step=torch.full((count,), solver.steps, device=model.device),
            # While acting only what is denoised looks at the text again.
            prefix=solver.empty(count, text_rows, solver.acting_experts, future=solver.with_future),
            future=torch.zeros(count, *solver.future_shape(), device=model.device)
            if solver.with_future
            else None,
        )

    def rows(self, start: int, stop: int) -> "Slots":
        """Some rows, as views."""
        return Slots(
            self.x[start:stop],
            self.noise[start:stop],
            self.padding[start:stop],
            self.given[start:stop],
            self.committed[start:stop],
            self.step[start:stop],
            self.prefix.rows(start, stop),
            None if self.future is None else self.future[start:stop],
        )

    def move(self, source: int, target: int) -> None:
        """Row `source` replaces row `target`."""
        numbers = (self.x, self.noise, self.padding, self.given, self.committed, self.step)
        of_future = () if self.future is None else (self.future,)
        for tensor in (*numbers, *of_future, self.prefix.embodiment):
            tensor[target] = tensor[source]
        # Keys of the actions are written anew by each step; those of the observation come before
        # them.
        end = self.prefix.cache.observed
        for tensor in (self.prefix.cache.keys, self.prefix.cache.values):
            tensor[:, target, :, :end] = tensor[:, source, :, :end]
        for side in (self.prefix.text.keys, self.prefix.text.values):
            for tensor in side.values():
                tensor[:, target] = tensor[:, source]


def fill(slots: Slots, batch: Batch, prefix: Prefix) -> None:
    """Put new observations into all rows of `slots`: whatever stood there before is gone."""
    slots.prefix.take(prefix.text, prefix.embodiment, prefix.cache)
    slots.x.copy_(batch.noise)
    slots.noise.copy_(batch.noise)
    if batch.padding is None:
        slots.padding.zero_()
    else:
        slots.padding.copy_(batch.padding)
    if slots.future is not None and batch.future is not None:
        slots.future.copy_(batch.future)
    slots.step.zero_()
    slots.committed.zero_()
    if batch.given is not None and batch.committed is not None:
        slots.given.copy_(batch.given)
        slots.committed.copy_(batch.committed)


def step(solver: Solver, slots: Slots, action_pass: Pass, with_committed: bool) -> None:
    """One Euler step of every row, whatever step each is at. Rows that are done stay as they are.

    action_pass: `Solver.acting` of the rows
    """
    step_n1 = slots.step.unsqueeze(1)
    x_npd = slots.x
    if with_committed:
        # Promised actions are clean tokens, whatever step the others of their row are at.
        level = solver.levels(torch.where(slots.committed, solver.steps, step_n1))
        x_npd = _keep(slots, x_npd)
    else:
        level = solver.levels(step_n1)
    x_npd = solver.advance(x_npd, solver.velocity(action_pass, x_npd, level), slots.step)
    x_npd = solver.hold(x_npd, slots.noise, slots.padding, slots.step)
    if with_committed:
        x_npd = _keep(slots, x_npd)
    slots.x.copy_(x_npd)
    # One write: a count past the last step, left by a call that broke off, would index past the
    # noise levels in every later step that computes this row.
    slots.step.copy_((slots.step + 1).clamp_(max=solver.steps))


def whole(solver: Solver, slots: Slots, with_committed: bool) -> None:
    """All steps of every row at once, for models whose actions see the future: what they denoise
    changes from step to step, or is one after the other. Rows that are done are computed again.
    """
    given, committed = (slots.given, slots.committed) if with_committed else (None, None)
    done = solver.act(slots.prefix, slots.noise, given, committed, slots.padding, slots.future)
    slots.x.copy_(done)
    slots.step.fill_(solver.steps)


def _keep(slots: Slots, x_npd: Tensor) -> Tensor:
    return torch.where(slots.committed.unsqueeze(-1), slots.given, x_npd)

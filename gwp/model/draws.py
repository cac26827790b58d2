"""What training draws at random for a sample: its mode, noise levels and noise.

Every draw belongs to a sample, by the seed of the run and the sample's position in the plan. So
it is the same whatever batch, worker or device takes the sample, and a run is the same run on any
number of workers.
Shape legend: B batch, p actions, d channels, C latent channels, T latent frames (reference
first), h w latent rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwp.model.flow import draw_sigma

_BATCH, _LEVELS, _NOISE, _STATE = 0, 1, 2, 3
"""Streams of random numbers that must not coincide."""


@dataclass(frozen=True)
class Levels:
    """How noisy the parts of each sample are; `draw_levels` makes it, `training_losses` reads it.

    future: fp32 `[B]`
    action: fp32 `[B, p]`, 0 where an action is given clean
    learnt: bool `[B, p]`, False where an action is given
    told:   bool `[B]`, False where the instruction is kept from the model
    video_only: bool `[B]`, True where a sample of a pass with actions has none, or takes none: all
            of them are given, and nothing may see them
    """

    future: Tensor
    action: Tensor
    learnt: Tensor
    told: Tensor
    video_only: Tensor

    def of(self, rows: slice) -> "Levels":
        """Those of some samples."""
        return Levels(
            self.future[rows],
            self.action[rows],
            self.learnt[rows],
            self.told[rows],
            self.video_only[rows],
        )


def generator(seed: int, position: int, stream: int = _BATCH) -> torch.Generator:
    """Random numbers on the CPU for one place of the plan; by default those of the global batch
    that begins there.
    """
    state = np.random.SeedSequence((seed, position, stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def draw_levels(
    seed: int,
    positions: Sequence[int],
    chunk: int,
    *,
    shifts: tuple[float, float],
    shared: bool,
    clean_share: float,
    prefix_share: float,
    max_prefix: int,
    untold_share: float = 0.0,
    video_share: float = 0.0,
    labelled: Sequence[bool] | None = None,
) -> Levels:
    """Noise levels of the samples at these positions of the plan.

    chunk: p; shifts: of the levels of actions and of future, towards noise; shared: one level
    per sample for both; clean_share: of samples whose actions are all given; prefix_share: of
    those whose first 0 to `max_prefix` actions are; untold_share: of those without instruction;
    video_share: of those that are video only, beside those that are not `labelled`; None: all are.
    """
    future, action, learnt, told, video_only = [], [], [], [], []
    for position, has_action in zip(positions, labelled or [True] * len(positions), strict=True):
        draw = generator(seed, position, _LEVELS)
        # All of it and in this order, whatever is used: one seed gives the same in every mode.
        of_action = draw_sigma(1, shifts[0], draw)
        of_future = draw_sigma(1, shifts[1], draw)
        clean = bool(torch.rand((), generator=draw) < clean_share)
        prefixed = bool(torch.rand((), generator=draw) < prefix_share)
        # One action at least is left to learn.
        length = int(torch.randint(0, min(max_prefix, chunk - 1) + 1, (), generator=draw))
        told.append(torch.rand((), generator=draw) >= untold_share)
        alone = bool(torch.rand((), generator=draw) < video_share) or not has_action
        video_only.append(alone)
        given = chunk if clean or alone else length if prefixed else 0
        future.append(of_action if shared else of_future)
        # Kept apart from the levels: one that is drawn may be 0, too, and is learnt.
        learnt.append(torch.arange(chunk) >= given)
        action.append(torch.where(learnt[-1], of_action, 0.0))
    return Levels(
        torch.cat(future),
        torch.stack(action),
        torch.stack(learnt),
        torch.stack(told),
        torch.tensor(video_only),
    )


def draw_noise(
    seed: int, positions: Sequence[int], future: Sequence[int], actions: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Noise of the samples at these positions: fp32 `[B, *future]` and `[B, *actions]`."""
    of_future, of_actions = [], []
    for position in positions:
        draw = generator(seed, position, _NOISE)
        # Actions first: their shape is that of the robot, the other follows the canvas.
        of_actions.append(torch.randn(*actions, generator=draw))
        of_future.append(torch.randn(*future, generator=draw))
    return torch.stack(of_future), torch.stack(of_actions)


def disturbed(state: Tensor, std: float, seed: int, positions: Sequence[int]) -> Tensor:
    """The states `[B, 1, d]` of the samples at these positions with noise of this std. Numbers that
    are 0 stay: they are of dimensions that a robot does not have, or that do not move.
    """
    if std == 0:
        return state
    noise = [torch.randn(state.shape[1:], generator=generator(seed, p, _STATE)) for p in positions]
    return state + std * torch.stack(noise).to(state) * (state != 0)

"""Flow matching: noise levels, the mix of data and noise, velocity targets, and the Euler
solver.

sigma is the noise fraction: `x_sigma = sigma * noise + (1 - sigma) * data`, and the target
velocity is `noise - data`. Shift and solver follow the released GigaWorld-Policy configuration.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def shifted(u: Tensor, shift: float) -> Tensor:
    """Push uniform levels towards noise: `shift * u / (1 + (shift - 1) * u)`."""
    return shift * u / (1 + (shift - 1) * u)


def draw_sigma(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Training noise levels fp32 `[count]`: uniform, shifted, on the grid of 1/1000 that the
    model was trained on.
    """
    return (shifted(torch.rand(count, generator=generator), shift) * 1000).round() / 1000


def add_noise(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`sigma` `[B]` or `[B, n]` (n = data.shape[1]) broadcast over the trailing axes of `data`."""
    sigma = sigma.reshape(sigma.shape + (1,) * (data.ndim - sigma.ndim)).to(data.dtype)
    return sigma * noise + (1 - sigma) * data


def hold_padding(x: Tensor, noise: Tensor, padding: Tensor | None, sigma: Tensor | float) -> Tensor:
    """`x` `[B, p, d]` with the channels that a robot does not have as training shows them at this
    level: their data are zeros, so sigma times their noise, and no velocity is learnt for them.

    noise: what `x` began as; padding: bool `[B, d]`, None: every channel is integrated; sigma: a
    number, or broadcastable to `x`
    """
    if padding is None:
        return x
    return torch.where(padding[:, None], sigma * noise, x)


def solver_sigmas(steps: int, shift: float = 5.0) -> Tensor:
    """Noise levels `[steps + 1]` of the Euler solver, from 1 to 0.

    The shift is applied twice to the end point, as in diffusers'
    `FlowMatchEulerDiscreteScheduler`; published weights were sampled so, and with 10 steps at
    shift 5 the last level before 0 is 0.024414.
    """
    # 1/1000 is the lowest level of training. Here it is shifted once, below once more.
    low = shift * 0.001 / (1 + (shift - 1) * 0.001)
    # Rounded to fp32 at the end, as the published scheduler does.
    grid = torch.linspace(1.0, low, steps, dtype=torch.float64)
    return torch.cat([shifted(grid, shift), torch.zeros(1, dtype=torch.float64)]).float()


def euler(
    x: Tensor, velocity: Callable[[Tensor, Tensor], Tensor], steps: int, shift: float = 5.0
) -> Tensor:
    """Integrate from noise `x` (any shape) to data; `velocity(x, sigma)` gets a 0-d fp32 sigma.
    State stays in fp32.
    """
    sigmas = solver_sigmas(steps, shift).to(x.device)
    for now, after in itertools.pairwise(sigmas):
        # In bf16 a small step would be rounded away.
        x = x + (after - now) * velocity(x, now).float()
    return x

"""What a simulator offers to a rollout."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from gwp.protocol.messages import Observation


class Simulator(Protocol):
    """One task of one simulated robot, stepped from outside; `gwp.sim.metaworld.Env` is one.

    task: its name
    """

    task: str

    def reset(self, seed: int) -> None:
        """Begin anew; the same seed gives the same start, whatever was done before."""

    def observe(self) -> Observation:
        """What the robot sends now."""

    def step(self, action: np.ndarray) -> bool:
        """One control step with an action `[d]`, robot units; True when the task is fulfilled."""

    def expert_action(self) -> np.ndarray:
        """What a scripted expert would do now, float32 `[d]`."""

    def close(self) -> None:
        """Give back what it holds."""


MakeSimulator = Callable[[str], Simulator]
"""Task -> simulator. For processes of their own it has to be a function of a module."""

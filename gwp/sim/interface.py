"""What a simulator offers to a rollout, and what is known of a benchmark before one is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.errors import GwpError
from gwp.protocol.messages import Observation

UNSHIFTED = "none"
SIZE = 64
"""Side of the square pictures where nothing else is asked for, pixels."""


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


MakeSimulator = Callable[[str, int, str], Simulator]
"""Task, side of the pictures (pixels), shift -> simulator. Processes of their own call it, so it
has to be a function or a class of a module.
"""


@dataclass(frozen=True)
class Benchmark:
    """Tasks of one simulated robot, and all that rollouts and recordings have to know of them.

    name:       as the command line says it
    extra:      of the distribution, which brings the simulator
    embodiment: the robot; what an observation holds, and what an action is
    tasks:      name -> instruction
    held:       `[d]`, true for actions that are zero while the robot holds; the others keep their
                last value
    make:       makes one of its tasks
    steps:      control steps of an episode unless told otherwise
    max_steps:  control steps that the simulator allows between two resets
    noise:      std of what a recorder adds to an expert's actions unless told otherwise
    shifts:     ways to differ from what was recorded, `none` first
    shifted:    shift -> the tasks that have it, where not all do
    """

    name: str
    extra: str
    embodiment: Embodiment
    tasks: Mapping[str, str]
    held: tuple[bool, ...]
    make: MakeSimulator
    steps: int
    max_steps: int
    noise: float = 0.2
    shifts: tuple[str, ...] = (UNSHIFTED,)
    shifted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Keys of an observation's pictures."""
        return tuple(self.embodiment.cameras.values())

    def check(self, tasks: list[str], shift: str = UNSHIFTED) -> None:
        """GwpError unless these are tasks of this benchmark, each named once, and all of them have
        the shift.
        """
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown or not tasks:
            raise GwpError(
                f"tasks {', '.join(unknown) or '(none)'}: choose from {', '.join(self.tasks)}"
            )
        if len(set(tasks)) < len(tasks):
            raise GwpError(f"tasks {', '.join(tasks)}: name each task once")
        if shift not in self.shifts:
            raise GwpError(f"shift {shift}: {self.name} has {', '.join(self.shifts)}")
        having = self.shifted.get(shift, tuple(self.tasks))
        if without := [task for task in tasks if task not in having]:
            raise GwpError(f"shift {shift}: {', '.join(without)} cannot; {', '.join(having)} can")

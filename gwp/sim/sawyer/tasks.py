"""Meta-World's tasks as this project names them, and where their things may lie at the start."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Starts:
    """A box that starts are drawn from, uniformly, metres.

    low, high: x, y, z of the object, and then of the goal where Meta-World draws that, too
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def holds(self, start: np.ndarray) -> bool:
        """Whether a start `[3]` or `[6]` lies in it."""
        return bool((start >= self.low).all() and (start <= self.high).all())


@dataclass(frozen=True)
class Wide:
    """Wider starts of a task that a blind robot wins with Meta-World's own.

    starts: of training and judging
    beyond: a larger box; what is in it and not in `starts` is the shifted split. Meta-World's
            expert wins in both
    """

    starts: Starts
    beyond: Starts


TASKS: dict[str, str] = {
    "button-press-topdown-v3": "press the button from above",
    "button-press-v3": "press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "door-close-v3": "close the door",
    "door-open-v3": "open the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "handle-press-v3": "press the handle down",
    "handle-pull-v3": "pull the handle up",
    "plate-slide-v3": "slide the plate into the goal",
    "push-v3": "push the puck to the goal",
    "reach-v3": "reach the goal",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}
"""Task -> instruction, with Meta-World's own starts."""


def _wide(y: float, y_high: float, z: float, slack: float = 0.0) -> Wide:
    """30 cm to either side and from y on, 38 cm beyond. slack: how far Meta-World varies z."""
    return Wide(
        Starts((-0.3, y, z - slack), (0.3, y_high, z + slack)),
        Starts((-0.38, y - 0.03, z - slack), (0.38, y_high, z + slack)),
    )


WIDE: dict[str, Wide] = {
    "button-press-topdown-v3": _wide(0.7, 0.9, 0.115),
    "button-press-v3": _wide(0.75, 0.9, 0.115),
    "coffee-button-v3": _wide(0.75, 0.9, 0.0, 0.001),
    "drawer-open-v3": _wide(0.8, 0.9, 0.0),
    "faucet-close-v3": _wide(0.7, 0.85, 0.0),
    "faucet-open-v3": _wide(0.7, 0.85, 0.0),
    "handle-pull-v3": _wide(0.75, 0.9, 0.0, 0.001),
    "window-open-v3": _wide(0.7, 0.9, 0.16),
}
"""Tasks that need eyes: with these starts an expert's actions replayed from another start win at
most one time in ten, and the expert nearly always (docs/evaluation.md has the rates).
"""

"""The robot's own limits: they hold whatever a policy or a network does."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Guard:
    """Holds targets within positions and speeds.

    lower, upper: float32 `[d]`, robot units
    step:         float32 `[d]`, largest change between two targets, robot units
    stopped:      targets that were changed
    """

    lower: np.ndarray
    upper: np.ndarray
    step: np.ndarray
    stopped: int = 0

    def __call__(self, action: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The nearest target `[d]` that is allowed after `last`. ValueError for one that is not
        finite: there is none near it.
        """
        if action.shape != last.shape or not np.isfinite(action).all():
            raise ValueError(f"no action of {len(last)} finite numbers came: {action}")
        near = np.clip(action, last - self.step, last + self.step)
        allowed: np.ndarray = np.clip(near, self.lower, self.upper).astype(np.float32)
        self.stopped += not np.allclose(allowed, action, atol=1e-5)
        return allowed

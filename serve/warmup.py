"""An observation that fits an embodiment, for the first pass of a fresh replica."""

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.protocol.messages import Observation


def observation_for(embodiment: Embodiment, side: int = 64) -> Observation:
    """Grey images and a state of zeros."""
    grey = np.full((side, side, 3), 128, np.uint8)
    return Observation(
        images=dict.fromkeys(embodiment.cameras.values(), grey),
        state=np.zeros(len(embodiment.state_names), np.float32),
        embodiment=embodiment.name,
    )

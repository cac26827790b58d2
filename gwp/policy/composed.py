"""An observation as far as it goes without a model: checked, and its pictures one canvas."""

from dataclasses import dataclass, replace

import numpy as np

from gwp.data.canvas import compose
from gwp.data.robot.embodiment import Embodiment
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import Observation


@dataclass(frozen=True)
class ComposedObservation:
    """What crosses from a gateway to a replica: pictures of any size have become the few kB that
    the model sees.

    `compose_observation` makes it, in a gateway or in the process of the model; an `Engine` takes
    it as it takes an observation.

    observation: as `PolicyContract.admit` gives it, without its pictures
    canvas:      uint8 `[1, H, W, 3]`, camera views composed
    """

    observation: Observation
    canvas: np.ndarray


def compose_observation(observation: Observation, contract: PolicyContract) -> ComposedObservation:
    """Check an observation and compose its pictures. ObservationError when it does not fit."""
    admitted, embodiment = contract.admit(observation)
    return ComposedObservation(
        replace(admitted, images={}), _canvas(admitted.images, embodiment, contract)
    )


def _canvas(
    images: dict[str, np.ndarray], embodiment: Embodiment, contract: PolicyContract
) -> np.ndarray:
    views = {slot: images[camera][None] for slot, camera in embodiment.cameras.items()}
    return compose(views, contract.canvas, None)

"""Two arms of six joints and a gripper each, at 50 Hz, with three cameras (the layout of ALOHA).

python -m gwp.client.examples.bimanual ws://policy-host:8000 --prompt "fold the towel"

It runs on `FakeArms`; put your driver in its place: `positions()`, `pictures()`, `command()`.
"""

import sys
from typing import Any

import numpy as np

from gwp.client.examples.fake_arms import FakeArms
from gwp.client.examples.guard import Guard
from gwp.client.examples.loop import main, options
from gwp.protocol.messages import Observation

FPS = 50.0
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS)
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
_SPEED = np.array([3.0] * 6 + [5.0], np.float32)
"""rad/s; of a gripper its whole ways a second."""
_LOWER = np.array([-3.1, -1.8, -1.6, -3.1, -1.8, -3.1, 0.0], np.float32)
_UPPER = np.array([3.1, 1.9, 1.6, 3.1, 2.1, 3.1, 1.0], np.float32)


class Bimanual:
    """Both arms as one robot of 14 numbers."""

    def __init__(self, arms: FakeArms) -> None:
        self._arms = arms
        self.guard = Guard(np.tile(_LOWER, 2), np.tile(_UPPER, 2), np.tile(_SPEED, 2) / FPS)
        self._target = arms.positions()

    @property
    def description(self) -> dict[str, Any]:
        """What the robot announces at the handshake."""
        return {
            "fps": FPS,
            "action_names": list(NAMES),
            "state_names": list(NAMES),
            "cameras": list(CAMERAS),
        }

    def observe(self, prompt: str) -> Observation:
        """Pictures of three cameras and 14 positions."""
        return Observation(self._arms.pictures(), self._arms.positions(), prompt)

    def send(self, action: np.ndarray) -> None:
        """Move towards 14 positions, float32, rad and ways of a gripper."""
        self._target = self.guard(action, self._target)
        self._arms.command(self._target)

    def hold(self) -> None:
        """Keep the last target: the joints are position-controlled."""
        self._arms.command(self._target)


if __name__ == "__main__":
    sys.exit(main(Bimanual(FakeArms(len(NAMES), CAMERAS)), options().parse_args()))

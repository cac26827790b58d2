"""Two arms that are not there: what a driver of a bimanual robot offers, in a few lines."""

import numpy as np

_FOLLOWS = 0.4
"""Share of the way to its target that a joint goes in one control step."""


class FakeArms:
    """Joints that follow their targets with a lag, and cameras that see them do it.

    commands: every target that came, float32 `[14]`
    """

    def __init__(self, joints: int = 14, cameras: tuple[str, ...] = (), seed: int = 0) -> None:
        self._cameras = cameras
        self._random = np.random.default_rng(seed)
        self._at = np.zeros(joints, np.float32)
        self.commands: list[np.ndarray] = []

    def positions(self) -> np.ndarray:
        """Where the joints are, float32 `[14]`, rad; grippers from 0 (closed) to 1."""
        return self._at.copy()

    def pictures(self) -> dict[str, np.ndarray]:
        """Camera -> uint8 `[120, 160, 3]`, RGB."""
        return {name: self._picture(i) for i, name in enumerate(self._cameras)}

    def command(self, targets: np.ndarray) -> None:
        """Set the targets of all joints, float32 `[14]`."""
        self.commands.append(np.array(targets, np.float32))
        self._at += _FOLLOWS * (self.commands[-1] - self._at)

    def _picture(self, camera: int) -> np.ndarray:
        picture = np.full((120, 160, 3), 40 + 30 * camera, np.uint8)
        picture += self._random.integers(0, 8, picture.shape, np.uint8)
        # A bar for each joint.
        for joint, angle in enumerate(self._at):
            height = int(np.clip(60 + 20 * angle, 1, 119))
            picture[:height, 10 + 10 * joint : 16 + 10 * joint, camera % 3] = 220
        return picture

"""A scripted expert for two arms: the right one takes the cube to the middle, the left one takes it
over.

It plans the whole episode from where the cube lies, in joint angles, as ALOHA's own demonstrations
were scripted (Zhao et al. 2023, section V), and leans against the friction that holds arms back.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gwp.errors import GwpError

SIDES = ("left", "right")
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
GRIPPERS = (6, 13)
"""Entries of an action that are grippers: 0 closed, 1 open."""

_MEET = np.array([0.0, 0.5, 0.25])
"""Where the cube changes hands, metres."""
_CUBE_HEIGHT = 0.02
_FROM_SITE = 0.02
"""How far the fingers grasp behind the site in front of them, metres."""
_TILT = np.deg2rad(65.0)
"""How steeply the right hand points down."""
_LEAN = 0.5
"""What is added of the angle that an arm lags behind."""


@dataclass(frozen=True)
class Waypoint:
    """Where a hand is at a control step: `[3]` metres, quaternion `[4]` (w first), opening 0..1."""

    step: int
    place: np.ndarray
    turn: np.ndarray
    opening: float


class Plan:
    """The expert of one episode."""

    def __init__(self, physics: Any, start: np.ndarray) -> None:
        """`physics`: of dm_control; it is not changed. `start`: its state when the episode began.
        GwpError where an arm cannot reach the cube.
        """
        scratch = physics.copy(share_model=True)
        with scratch.reset_context():
            scratch.set_state(start)
        hands = {side: _hand(scratch, side) for side in SIDES}
        cube = np.array([*scratch.named.data.qpos["red_box_joint"][:2], _CUBE_HEIGHT])
        ways = {"left": _left(hands["left"]), "right": _right(hands["right"], cube)}
        halves = [_joints(scratch, side, ways[side]) for side in SIDES]
        self._actions = np.concatenate(halves, axis=1)

    def action(self, step: int, state: np.ndarray) -> np.ndarray:
        """What to do at a control step in a state `[14]`: float32 `[14]`."""
        wanted = self._actions[min(step, len(self._actions) - 1)]
        lag = wanted - state
        lag[list(GRIPPERS)] = 0
        return (wanted + _LEAN * lag).astype(np.float32)


def _hand(physics: Any, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a hand grasps, and its quaternion."""
    site = physics.named.data.site_xpos[_site(side)].copy()
    turn = physics.named.data.xquat[f"vx300s_{side}/gripper_link"].copy()
    return site - _FROM_SITE * _forward(turn), turn


def _site(side: str) -> str:
    return f"cali_{side}_site1"


def _forward(turn: np.ndarray) -> np.ndarray:
    """The direction `[3]` in which a hand points."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(turn, scalar_first=True).apply([1.0, 0.0, 0.0])


def _left(start: tuple[np.ndarray, np.ndarray]) -> list[Waypoint]:
    # Fingers above and below, where those of the right hand are not.
    across = np.array([np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0])
    beside, away = _MEET - np.array([0.12, 0, 0]), _MEET - np.array([0.1, 0, 0])
    return [
        Waypoint(0, *start, 0.0),
        Waypoint(100, beside, across, 1.0),
        Waypoint(200, beside, across, 1.0),
        Waypoint(240, _MEET, across, 1.0),
        Waypoint(270, _MEET, across, 0.0),
        Waypoint(290, _MEET, across, 0.0),
        Waypoint(330, away, across, 0.0),
    ]


def _right(start: tuple[np.ndarray, np.ndarray], cube: np.ndarray) -> list[Waypoint]:
    from scipy.spatial.transform import Rotation

    level = Rotation.from_quat(start[1], scalar_first=True)
    turn = (level * Rotation.from_rotvec([0, _TILT, 0])).as_quat(scalar_first=True)
    return [
        Waypoint(0, *start, 0.0),
        Waypoint(70, cube + np.array([0, 0, 0.08]), turn, 1.0),
        Waypoint(100, cube, turn, 1.0),
        Waypoint(110, cube, turn, 1.0),
        Waypoint(140, cube, turn, 0.0),
        Waypoint(190, _MEET, turn, 0.0),
        Waypoint(280, _MEET, turn, 0.0),
        Waypoint(290, _MEET, turn, 1.0),
        Waypoint(330, _MEET + np.array([0.1, 0, 0.05]), turn, 1.0),
    ]


def _joints(scratch: Any, side: str, way: list[Waypoint]) -> np.ndarray:
    """`[steps, 7]`: angles of an arm and the opening of its gripper, through the waypoints."""
    from dm_control.utils import inverse_kinematics
    from scipy.spatial.transform import Rotation, Slerp

    known = np.array([point.step for point in way])
    steps = np.arange(known[-1] + 1)
    turns = Rotation.from_quat([point.turn for point in way], scalar_first=True)
    quats = Slerp(known, turns)(steps).as_quat(scalar_first=True)
    places = np.stack(
        [np.interp(steps, known, [point.place[axis] for point in way]) for axis in range(3)], axis=1
    )
    openings = np.interp(steps, known, [point.opening for point in way])
    names = [f"vx300s_{side}/{joint}" for joint in ARM_JOINTS]
    rows = []
    for place, quat, opening in zip(places, quats, openings, strict=True):
        found = inverse_kinematics.qpos_from_site_pose(
            scratch,
            _site(side),
            place + _FROM_SITE * _forward(quat),
            quat,
            names,
            tol=1e-3,
            inplace=True,
        )
        if not found.success:
            raise GwpError(f"the {side} arm cannot reach {place.round(3).tolist()}")
        rows.append([*(scratch.named.data.qpos[name].item() for name in names), opening])
    return np.array(rows)

"""A scripted expert that takes a thing and puts it into or onto another one.

It knows where things are and what shape they have, looks at each step anew, so that it copes with
noise, and begins again when it has lost the thing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gwp.sim.libero.shapes import Shapes

STEP = 0.05
"""What an action of 1 asks the hand to move, metres."""
TURN = 0.5
"""What an action of 1 asks it to turn, radians."""
OPEN, CLOSE = -1.0, 1.0

_WIDEST = 0.07
"""Of what fits between the fingers, metres."""
_ANGLES = np.linspace(0, np.pi, 24, endpoint=False)
_DEEP, _DEEP_RIM = 0.04, 0.025
"""How far below the top fingers grasp a thing, and a rim; metres."""
_ABOVE_GROUND = 0.012
"""How far above what a thing stands on the finger tips stay, metres."""
_RIM = 0.006
"""How far inside its outermost points a rim is grasped, metres."""
_BESIDE = 0.03
"""How far outside of a rim a finger goes down, metres."""
_CLEAR = 0.04
"""How far above what is in the way things are carried, metres."""
_WIDE = 0.06
"""How far to either side something is in the way, metres."""
_OVER, _AT, _OVER_GOAL, _AT_GOAL = 0.015, 0.01, 0.008, 0.006
"""How near is near enough: over the thing, at it, over the goal, and at it; metres."""
_STEPS_TO_CLOSE = _STEPS_TO_OPEN = 8
_STEPS_TO_LOWER = 40
"""Control steps after which the fingers have closed, or opened, or the thing lies on something."""
_SLIPPED = 0.05
"""How far a thing moves in the hand before it counts as lost, metres."""
_LEVEL = 0.1
"""How far the hand may be turned wrongly when it goes down, radians."""
_GAIN = 1.5
"""What is asked of the controller of the way that is left: it lags."""
_MOST_TURN = 0.5


@dataclass(frozen=True)
class Hand:
    """Where the hand is.

    place:   between the finger tips `[3]`, metres
    fingers: unit vector `[3]` from one finger to the other
    down:    unit vector `[3]` in which it points
    """

    place: np.ndarray
    fingers: np.ndarray
    down: np.ndarray


class Expert:
    """The expert of one episode."""

    def __init__(self, data: Any, shapes: Shapes, thing: int, goal: int, inside: bool) -> None:
        """`thing`, `goal`: bodies. `inside`: whether the thing goes into the goal, else onto it."""
        self._data, self._shapes = data, shapes
        self._thing, self._goal, self._inside = thing, goal, inside
        self._phases = {
            "choose": self._choose,
            "reach": self._reach,
            "close": self._close,
            "lift": self._lift,
            "carry": self._carry,
            "lower": self._lower,
            "open": self._open,
        }
        self._phase = "choose"
        self._steps = 0
        # In the frame of the thing: where to grasp it, and along which line.
        self._grasp = self._line = np.zeros(3)
        # As it is now, and as it was when the hand closed: a thing may turn between the fingers.
        self._wanted = np.zeros(3)
        self._held = np.zeros(3)
        self._height = 0.0

    def action(self, hand: Hand) -> np.ndarray:
        """What to do now, float32 `[7]`."""
        target, gripper = self._phases[self._phase](hand)
        self._steps += 1
        move = np.clip(_GAIN * (target - hand.place) / STEP, -1, 1)
        turn = np.clip(_GAIN * _turn(hand, self._wanted) / TURN, -_MOST_TURN, _MOST_TURN)
        return np.array([*move, *turn, gripper], np.float32)

    def _next(self, phase: str, hand: Hand) -> tuple[np.ndarray, float]:
        self._phase, self._steps = phase, 0
        return self._phases[phase](hand)

    def _choose(self, hand: Hand) -> tuple[np.ndarray, float]:
        """How to grasp the thing from where it is now."""
        points = self._shapes.points(self._thing)
        place, line = self._across(points, hand)
        turn = self._turn_of_thing()
        self._grasp = turn.T @ (place - self._data.xpos[self._thing])
        self._line = turn.T @ line
        top = self._shapes.highest(hand.place, place, _WIDE, self._thing)
        self._height = max(points[:, 2].max(), top) + _CLEAR
        return self._next("reach", hand)

    def _across(self, points: np.ndarray, hand: Hand) -> tuple[np.ndarray, np.ndarray]:
        """Where to grasp, and along which line: across the whole thing with the least turn where
        it fits between the fingers, else at its rim.
        """
        top, bottom = points[:, 2].max(), points[:, 2].min()
        best = (np.inf, np.zeros(3), np.zeros(3))
        for angle in _ANGLES:
            line = np.array([np.cos(angle), np.sin(angle), 0.0])
            along = points @ line
            middle = (points.max(0) + points.min(0)) / 2
            middle += line * ((along.max() + along.min()) / 2 - middle @ line)
            turned = np.arccos(min(1.0, abs(float(line @ hand.fingers))))
            if np.ptp(along) < _WIDEST and turned < best[0]:
                best = (turned, middle, line)
        if np.isfinite(best[0]):
            height = max(top - _DEEP, bottom + _ABOVE_GROUND)
            return np.array([*best[1][:2], height]), best[2]
        return self._at_rim(points, hand)

    def _at_rim(self, points: np.ndarray, hand: Hand) -> tuple[np.ndarray, np.ndarray]:
        middle = (points.max(0) + points.min(0)) / 2
        radius = np.ptp(points[:, :2], axis=0).mean() / 2
        top = points[:, 2].max()
        best = (np.inf, np.zeros(3), np.zeros(3))
        for angle in (*_ANGLES, *(_ANGLES + np.pi)):
            line = np.array([np.cos(angle), np.sin(angle), 0.0])
            outside = middle + line * (radius + _BESIDE)
            blocked = self._shapes.highest(outside, outside, 0.01, self._thing)
            above = max(0.0, blocked - (top - _DEEP_RIM - _ABOVE_GROUND))
            turned = np.arccos(min(1.0, abs(float(line @ hand.fingers))))
            cost = turned + 1e3 * above
            if cost < best[0]:
                best = (cost, middle + line * (radius - _RIM), line)
        return np.array([*best[1][:2], top - _DEEP_RIM]), best[2]

    def _reach(self, hand: Hand) -> tuple[np.ndarray, float]:
        """Above the thing, then down to it."""
        target = self._grasp_now()
        self._wanted = self._fingers()
        beside = np.linalg.norm((target - hand.place)[:2])
        turned = np.linalg.norm(_turn(hand, self._wanted))
        if beside < _AT and abs(target[2] - hand.place[2]) < _AT:
            return self._next("close", hand)
        low = hand.place[2] < self._height - _CLEAR
        if (beside > 2 * _OVER) if low else (beside > _OVER or turned > _LEVEL):
            target = np.array([*target[:2], max(self._height, target[2])])
            if low:
                target[:2] = hand.place[:2]
        return target, OPEN

    def _close(self, hand: Hand) -> tuple[np.ndarray, float]:
        if self._steps < _STEPS_TO_CLOSE:
            return self._grasp_now(), CLOSE
        self._held = self._data.xpos[self._thing] - hand.place
        return self._next("lift", hand)

    def _lift(self, hand: Hand) -> tuple[np.ndarray, float]:
        if self._lost(hand):
            return self._next("choose", hand)
        points = self._shapes.points(self._thing)
        hangs = hand.place[2] - points[:, 2].min()
        goal = self._goal_place(hand)
        top = self._shapes.highest(hand.place, goal, _WIDE + 0.03, self._thing)
        self._height = top + _CLEAR + hangs
        if hand.place[2] > self._height - _OVER:
            return self._next("carry", hand)
        return np.array([*hand.place[:2], self._height + 0.01]), CLOSE

    def _carry(self, hand: Hand) -> tuple[np.ndarray, float]:
        if self._lost(hand):
            return self._next("choose", hand)
        goal = self._goal_place(hand)
        if np.linalg.norm((goal - hand.place)[:2]) < _OVER_GOAL:
            return self._next("lower", hand)
        return np.array([*goal[:2], self._height]), CLOSE

    def _lower(self, hand: Hand) -> tuple[np.ndarray, float]:
        if self._lost(hand):
            return self._next("choose", hand)
        goal = self._goal_place(hand)
        if hand.place[2] < goal[2] + _AT_GOAL or self._steps > _STEPS_TO_LOWER:
            return self._next("open", hand)
        return goal - np.array([0, 0, 0.01]), CLOSE

    def _open(self, hand: Hand) -> tuple[np.ndarray, float]:
        if self._steps > 3 * _STEPS_TO_OPEN:
            return self._next("choose", hand)
        rise = 0.1 if self._steps > _STEPS_TO_OPEN else 0.0
        return hand.place + np.array([0, 0, rise]), OPEN

    def _goal_place(self, hand: Hand) -> np.ndarray:
        """Where the hand has to open, `[3]`."""
        around = self._shapes.points(self._goal)
        points = self._shapes.points(self._thing)
        hangs = hand.place[2] - points[:, 2].min()
        middle = self._data.xpos[self._goal][:2]
        aside = hand.place[:2] - self._data.xpos[self._thing][:2]
        if self._inside:
            height = max(around[:, 2].max(), around[:, 2].min() + hangs + 0.02)
        else:
            height = around[:, 2].min() + hangs + 0.008
        return np.array([*(middle + aside), height])

    def _lost(self, hand: Hand) -> bool:
        """Whether the thing is no longer where it was in the hand."""
        moved = self._data.xpos[self._thing] - hand.place - self._held
        return bool(np.linalg.norm(moved) > _SLIPPED)

    def _grasp_now(self) -> np.ndarray:
        return self._data.xpos[self._thing] + self._turn_of_thing() @ self._grasp

    def _fingers(self) -> np.ndarray:
        """Level unit vector `[3]` along which the fingers are wanted."""
        line = self._turn_of_thing() @ self._line
        line[2] = 0
        return line / max(float(np.linalg.norm(line)), 1e-6)

    def _turn_of_thing(self) -> np.ndarray:
        return self._data.xmat[self._thing].reshape(3, 3)


def _turn(hand: Hand, line: np.ndarray) -> np.ndarray:
    """The rotation vector `[3]` (radians) that makes the hand point down, its fingers along the line."""
    from scipy.spatial.transform import Rotation

    if hand.fingers @ line < 0:
        line = -line
    down = np.array([0.0, 0.0, -1.0])
    wanted = np.column_stack([line, down, np.cross(line, down)])
    fingers = hand.fingers - (hand.fingers @ hand.down) * hand.down
    fingers /= np.linalg.norm(fingers)
    now = np.column_stack([fingers, hand.down, np.cross(fingers, hand.down)])
    return Rotation.from_matrix(wanted @ now.T).as_rotvec()

"""Pictures off the distribution that was trained on: the same task, drawn in another way.

Each draw belongs to a generator that the start's seed made, so the same seed gives the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Shift = Literal["none", "camera", "colours", "distractors", "starts"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)
"""camera: each is moved and turned. colours: of table, walls, floor, objects and light. distractors:
three things on the table that nothing touches. starts: outside of the range of training. That
changes the simulation, all others the pictures alone.
"""

_TURNED = np.deg2rad(5.0)
"""How far a camera is turned (radians), about a random axis."""

_NO_COLOUR = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
_TINT = (0.6, 1.0)
_LIGHT = (0.8, 1.4)
"""Ranges of the factors of each colour channel and of the lights."""

_TABLE = ((-0.45, 0.42), (0.45, 0.78))
"""Lower and upper x, y of where distractors stand, metres."""
_CLEAR = 0.13
"""Least distance of a distractor from an object or a goal at the start, metres."""
_COUNT = 3
_TRIES = 200


@dataclass(frozen=True)
class Thing:
    """A distractor. kind: of its geom, as MuJoCo counts; size, position `[3]`, metres; rgba `[4]`."""

    kind: int
    size: np.ndarray
    position: np.ndarray
    rgba: np.ndarray


def draw_things(mujoco: Any, rng: np.random.Generator, taken: np.ndarray) -> list[Thing]:
    """Distractors on the table, away from `taken` `[n, 3]` and from each other."""
    geom = mujoco.mjtGeom
    kinds = (geom.mjGEOM_BOX, geom.mjGEOM_CYLINDER, geom.mjGEOM_SPHERE)
    places = list(taken[:, :2])
    things: list[Thing] = []
    for _ in range(_TRIES):
        place = rng.uniform(*_TABLE)
        if any(np.linalg.norm(place - other) < _CLEAR for other in places):
            continue
        places.append(place)
        size = rng.uniform(0.02, 0.035, 3)
        if len(things) == _COUNT - 1:
            # A ball has one size, and a cylinder reads two.
            size[:] = size[0]
        height = size[1] if len(things) == 1 else size[2]
        rgba = np.append(rng.uniform(0.1, 1.0, 3), 1.0)
        kind = int(kinds[len(things)])
        things.append(Thing(kind, size, np.append(place, height), rgba))
        if len(things) == _COUNT:
            break
    return things


def add_things(mujoco: Any, scene: Any, things: Sequence[Thing]) -> None:
    """Draw them in a scene that was just updated; the simulation does not know them."""
    for thing in things:
        if scene.ngeom == scene.maxgeom:
            return
        geom = scene.geoms[scene.ngeom]
        mujoco.mjv_initGeom(
            geom,
            thing.kind,
            thing.size,
            thing.position,
            np.eye(3).ravel(),
            thing.rgba.astype(np.float32),
        )
        scene.ngeom += 1


class Look:
    """Cameras, colours and lights of a model, which can be changed and put back."""

    def __init__(self, mujoco: Any, model: Any, moves: dict[str, float], robot: str) -> None:
        """`moves`: camera -> how far it can be moved, metres. `robot`: the body whose parts keep
        their colours.
        """
        self._mujoco, self._model = mujoco, model
        self._moves = {model.camera(name).id: distance for name, distance in moves.items()}
        root = model.body(robot).id
        # A parent has a smaller number than its children.
        arm = {root}
        for body in range(model.nbody):
            if int(model.body_parentid[body]) in arm:
                arm.add(body)
        parts = [int(body) in arm for body in model.geom_bodyid]
        # A geom takes the colour of its material as long as its own is the default.
        own = np.any(model.geom_rgba != _NO_COLOUR, axis=1) | (model.geom_matid < 0)
        self._geoms = np.nonzero(~np.array(parts) & own)[0]
        used = {int(m) for m, of_arm in zip(model.geom_matid, parts, strict=True) if of_arm}
        self._materials = np.array([m for m in range(model.nmat) if m not in used], int)
        self._stock = {name: getattr(model, name).copy() for name in _CHANGED}
        self._headlight = _headlight(model)

    def restore(self) -> None:
        """As the model was."""
        for name, values in self._stock.items():
            getattr(self._model, name)[:] = values
        for name, values in self._headlight.items():
            getattr(self._model.vis.headlight, name)[:] = values

    def move_cameras(self, rng: np.random.Generator) -> None:
        """Move and turn each of them."""
        for camera, distance in self._moves.items():
            step = distance * _direction(rng)
            turn = np.zeros(4)
            self._mujoco.mju_axisAngle2Quat(turn, _direction(rng), _TURNED)
            self._model.cam_pos[camera] += step
            quat = self._model.cam_quat[camera].copy()
            self._mujoco.mju_mulQuat(self._model.cam_quat[camera], turn, quat)
            # Cameras that follow a body are placed by these two.
            self._model.cam_pos0[camera] += step
            matrix = np.zeros(9)
            self._mujoco.mju_quat2Mat(matrix, turn)
            turned = matrix.reshape(3, 3) @ self._model.cam_mat0[camera].reshape(3, 3)
            self._model.cam_mat0[camera] = turned.ravel()

    def recolour(self, rng: np.random.Generator) -> None:
        """Other colours for all but the robot and the goal, and another light."""
        for geom in self._geoms:
            self._model.geom_rgba[geom, :3] *= rng.uniform(*_TINT, 3)
        for material in self._materials:
            self._model.mat_rgba[material, :3] *= rng.uniform(*_TINT, 3)
        light = rng.uniform(*_LIGHT)
        self._model.light_diffuse[:] *= light
        for name in self._headlight:
            getattr(self._model.vis.headlight, name)[:] *= light


_CHANGED = (
    "cam_pos",
    "cam_quat",
    "cam_pos0",
    "cam_mat0",
    "geom_rgba",
    "mat_rgba",
    "light_diffuse",
)


def _headlight(model: Any) -> dict[str, np.ndarray]:
    light = model.vis.headlight
    return {name: getattr(light, name).copy() for name in ("ambient", "diffuse")}


def _direction(rng: np.random.Generator) -> np.ndarray:
    """A unit vector `[3]`, all directions alike."""
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)

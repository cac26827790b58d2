"""What shape things have and what is in the way, read from a compiled MuJoCo model."""

from typing import Any

import numpy as np

_MESH = 7
_PLANE = 0
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
_ROBOT = ("robot0_", "gripper0_", "mount0_")


class Shapes:
    """Of all that can be touched in a model: its parts' corners, as they are now."""

    def __init__(self, model: Any, data: Any) -> None:
        self._data = data
        self._body_of: list[int] = []
        self._corners: dict[int, np.ndarray] = {}
        self._parents = model.body_parentid
        touched = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        for geom in np.nonzero(touched & (model.geom_type != _PLANE))[0]:
            self._corners[int(geom)] = _corners(model, int(geom))
        self._geom_body = model.geom_bodyid
        robot = {body for body in range(model.nbody) if model.body(body).name.startswith(_ROBOT)}
        self._things = [geom for geom in self._corners if self._geom_body[geom] not in robot]

    def points(self, body: int) -> np.ndarray:
        """`[n, 3]`: corners of a body and of what hangs on it, metres."""
        parts = [g for g in self._corners if self._is_of(g, body)]
        return np.concatenate([self._now(geom) for geom in parts])

    def highest(self, start: np.ndarray, end: np.ndarray, within: float, but: int) -> float:
        """The height (metres) of the highest thing within so many metres of the way from `start` to
        `end`, seen from above; `but`: a body that does not count. -inf where nothing is.
        """
        way = start[:2] + np.linspace(0, 1, 20)[:, None] * (end[:2] - start[:2])
        top = -np.inf
        for geom in self._things:
            if self._is_of(geom, but):
                continue
            corners = self._now(geom)
            low, high = corners.min(0), corners.max(0)
            apart = np.maximum(low[:2] - way, way - high[:2]).max(1).min()
            if apart < within:
                top = max(top, high[2])
        return top

    def _is_of(self, geom: int, body: int) -> bool:
        at = int(self._geom_body[geom])
        while at > body:
            # A parent has a smaller number than its children.
            at = int(self._parents[at])
        return at == body

    def _now(self, geom: int) -> np.ndarray:
        turn = self._data.geom_xmat[geom].reshape(3, 3)
        return self._corners[geom] @ turn.T + self._data.geom_xpos[geom]


def _corners(model: Any, geom: int) -> np.ndarray:
    """`[n, 3]` in the frame of the geom; round ones have those of the box around them."""
    if model.geom_type[geom] != _MESH:
        return model.geom_aabb[geom, :3] + _CORNERS * model.geom_aabb[geom, 3:]
    mesh = model.geom_dataid[geom]
    begin = model.mesh_vertadr[mesh]
    return np.asarray(model.mesh_vert[begin : begin + model.mesh_vertnum[mesh]], float)

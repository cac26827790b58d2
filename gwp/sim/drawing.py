"""Pictures of a MuJoCo model without a display, small and quick to draw on a software renderer."""

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from gwp.errors import GwpError
from gwp.sim.shifts import Thing, add_things

# Before MuJoCo is imported; works without a display, also on Mesa's software device.
os.environ.setdefault("MUJOCO_GL", "egl")


class Drawing:
    """Draws what happens in a model. It belongs to the thread that made it, since its EGL context
    does.
    """

    def __init__(self, model: Any, size: int) -> None:
        """`size`: side of the square pictures, pixels. GwpError when MuJoCo needs a display."""
        import mujoco

        # MuJoCo chose its renderer when it was first imported. Trying one that needs a display
        # can abort the process.
        if (
            mujoco.GLContext.__module__ == "mujoco.glfw"
            and sys.platform == "linux"
            and not os.environ.get("DISPLAY")
        ):
            raise GwpError(
                "mujoco was imported before gwp.sim and would draw on a display, of which "
                "there is none; set MUJOCO_GL=egl"
            )
        self._mujoco: Any = mujoco
        self._thread = threading.get_ident()
        self._model, self._size = model, size
        self._renderer: Any = None

    def picture(self, data: Any, camera: str, things: Sequence[Thing] = ()) -> np.ndarray:
        """uint8 `[size, size, 3]`, with `things` that the simulation does not know. GwpError in
        another thread than the one that made this.
        """
        if threading.get_ident() != self._thread:
            raise GwpError(
                "an environment draws only in the thread that made it; make one Env in each thread"
            )
        if self._renderer is None:
            self._renderer = _renderer(self._model, self._size)
        self._renderer.update_scene(data, camera=camera)
        add_things(self._mujoco, self._renderer.scene, things)
        return np.array(self._renderer.render())

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()


def _renderer(model: Any, size: int) -> Any:
    """Only for who looks: it takes seconds."""
    import mujoco

    # Without these a small frame takes ten times as long on a software renderer.
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 512
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    renderer = mujoco.Renderer(model, size, size)
    # One that an error left open would otherwise complain at exit, after EGL itself is gone.
    atexit.register(_close, weakref.WeakMethod(renderer.close))
    for flag in (
        mujoco.mjtRndFlag.mjRND_SHADOW,
        mujoco.mjtRndFlag.mjRND_REFLECTION,
        mujoco.mjtRndFlag.mjRND_SKYBOX,
        mujoco.mjtRndFlag.mjRND_HAZE,
    ):
        renderer.scene.flags[flag] = False
    return renderer


def _close(renderer_close: "weakref.WeakMethod[Any]") -> None:
    close = renderer_close()
    if close is not None:
        close()

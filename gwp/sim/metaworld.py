"""Meta-World tasks as a robot would meet them: one camera, proprioception without privileged
state, a text instruction.

Meta-World's 39 observations hold the positions of objects; only the first four (gripper
position and opening) leave this room. An environment belongs to the thread that made it, since
its EGL context does: make one in each thread or process, never share one.
"""

import atexit
import os
import sys
import threading
import warnings
import weakref
from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.errors import GwpError
from gwp.protocol.messages import Observation
from gwp.sim.interface import Benchmark

# Before MuJoCo is imported; works without a display, also on Mesa's software device.
os.environ.setdefault("MUJOCO_GL", "egl")

CAMERA = "observation.images.corner2"
TASKS: dict[str, str] = {
    "button-press-topdown-v3": "press the button from above",
    "button-press-v3": "press the button",
    "coffee-button-v3": "press the button of the coffee machine",
    "door-close-v3": "close the door",
    "door-open-v3": "open the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "close the faucet",
    "faucet-open-v3": "open the faucet",
    "handle-press-v3": "press the handle down",
    "handle-pull-v3": "pull the handle up",
    "plate-slide-v3": "slide the plate into the goal",
    "push-v3": "push the puck to the goal",
    "reach-v3": "reach the goal",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}
"""Task -> instruction."""

EMBODIMENT = Embodiment(
    name="metaworld-sawyer",
    fps=80.0,
    state_names=("gripper_x", "gripper_y", "gripper_z", "gripper_opening"),
    action_names=("delta_x", "delta_y", "delta_z", "gripper"),
    action_units=("1/100 m", "1/100 m", "1/100 m", "effort"),
    delta_mask=(False, False, False, False),
    cameras={"front": CAMERA},
    limits=Limits(lower=(-1.0,) * 4, upper=(1.0,) * 4),
    chunk=12,
    replan=6,
)
"""The simulated arm. 80 Hz: five physics steps of 2.5 ms. Actions are displacements already, so
none is relative to the state.
"""

DISPLACEMENTS = (True, True, True, False)
"""Actions that are zero while the robot holds; the gripper keeps its effort."""

_EYE = (0.75, 0.075, 0.7)
"""Position of camera corner2 that sees the whole table, metres (the stock one is too far for
small pictures).
"""


MAX_STEPS = 500
"""Control steps after which Meta-World demands a reset."""


class Env:
    """One task. `reset(seed)` gives the same start for the same seed, whatever the environment
    did before.
    """

    def __init__(self, task: str, size: int = 64) -> None:
        """`size`: side of the square pictures, pixels. GwpError for an unknown task, or when
        MuJoCo needs a display.
        """
        if task not in TASKS:
            raise GwpError(f"task '{task}' is not one of {', '.join(TASKS)}")
        import metaworld
        import mujoco
        from metaworld.policies import ENV_POLICY_MAP

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
        # The experts overshoot on purpose, and `expert_action` clips.
        warnings.filterwarnings(
            "ignore", message="Constant.s. may be too high", category=UserWarning
        )
        self._mujoco: Any = mujoco
        self._thread = threading.get_ident()
        self.task = task
        self.prompt = TASKS[task]
        self._env: Any = metaworld.ALL_V3_ENVIRONMENTS[task]()
        # Stock environments repeat one start for ever unless a task was set; ours draw theirs
        # from the seed.
        self._env._set_task_called = True
        self._env._freeze_rand_vec = False
        # The expert may see the goal; the robot never sees this vector.
        self._env._partially_observable = False
        del self._env.sawyer_observation_space
        self._env.seeded_rand_vec = True
        self._expert = ENV_POLICY_MAP[task]()
        model = self._env.model
        model.cam_pos[mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "corner2")] = _EYE
        # Without these a small frame takes ten times as long on a software renderer.
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 512
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._renderer: Any = mujoco.Renderer(model, size, size)
        # An environment that an error left open would otherwise complain at exit, after EGL
        # itself is gone.
        atexit.register(_close, weakref.WeakMethod(self._renderer.close))
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
            mujoco.mjtRndFlag.mjRND_HAZE,
        ):
            self._renderer.scene.flags[flag] = False
        self._observation: np.ndarray = np.zeros(39)

    def reset(self, seed: int) -> None:
        """Begin anew at the start that belongs to a seed."""
        self._env.seed(seed)
        observation, _ = self._env.reset()
        # Meta-World moves objects and goal markers last, without telling the simulation.
        # Unmended, the first picture and the expert's first observation have them up to 20 cm
        # away, where an earlier draw put them.
        self._mujoco.mj_forward(self._env.model, self._env.data)
        for name, position in self._env._target_site_config:
            self._env._set_pos_site(name, position)
        now = self._env._get_curr_obs_combined_no_goal()
        self._env._prev_obs = now
        self._observation = np.concatenate([now, now, observation[36:]])

    @property
    def state(self) -> np.ndarray:
        """float32 `[4]`: gripper position (m) and opening (0..1)."""
        return self._observation[:4].astype(np.float32)

    def render(self) -> np.ndarray:
        """uint8 `[size, size, 3]`, upright. GwpError in another thread than the one that made
        the environment.
        """
        if threading.get_ident() != self._thread:
            raise GwpError(
                "an environment draws only in the thread that made it; make one Env in each thread"
            )
        self._renderer.update_scene(self._env.data, camera="corner2")
        # This camera hangs upside down in the model.
        return np.ascontiguousarray(self._renderer.render()[::-1, ::-1])

    def observe(self) -> Observation:
        """What the robot sends now; renders, so ask only when needed."""
        return Observation({CAMERA: self.render()}, self.state, self.prompt, EMBODIMENT.name)

    def step(self, action: np.ndarray) -> bool:
        """One control step with an action `[4]`, clipped to [-1, 1]; True when the task is
        fulfilled. At most MAX_STEPS after a reset.
        """
        self._observation, _, _, _, info = self._env.step(np.clip(action, -1, 1).astype(np.float64))
        return bool(info["success"])

    def expert_action(self) -> np.ndarray:
        """What the scripted expert, which sees the privileged state, would do: float32 `[4]` in
        [-1, 1].
        """
        return np.clip(self._expert.get_action(self._observation), -1, 1).astype(np.float32)

    def close(self) -> None:
        self._renderer.close()
        self._env.close()


def _close(renderer_close: "weakref.WeakMethod[Any]") -> None:
    close = renderer_close()
    if close is not None:
        close()


def make(task: str, size: int, _shift: str) -> Env:
    """As `Benchmark.make`."""
    return Env(task, size)


BENCHMARK = Benchmark(
    name="metaworld",
    extra="sim",
    embodiment=EMBODIMENT,
    tasks=TASKS,
    held=DISPLACEMENTS,
    make=make,
    steps=150,
    max_steps=MAX_STEPS,
)

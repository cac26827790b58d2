"""OGBench's scene: what each task begins with, what its pictures show, and who can win it."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.sim.ogbench import BENCHMARK, CAMERA, EMBODIMENT, GOALS, TASKS, Env
from tests.support.experts import expert_episode

if find_spec("ogbench") is None:
    pytest.skip("the ogbench extra is not installed", allow_module_level=True)

_ENVS: dict[str, Env] = {}


@pytest.fixture(scope="module", autouse=True)
def closing() -> Any:
    yield
    for env in _ENVS.values():
        env.close()
    _ENVS.clear()


def of(task: str) -> Env:
    """Made once: the model takes a second to compile."""
    if task not in _ENVS:
        _ENVS[task] = Env(task)
    return _ENVS[task]


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_wins_with_and_without_noise_and_never_at_once(task: str) -> None:
    env = of(task)
    for seed in (10, 11):
        result = expert_episode(env, seed=seed, max_steps=BENCHMARK.steps)
        assert result.success
        assert 3 < result.steps < BENCHMARK.steps
        rng = np.random.default_rng(seed)
        env.reset(seed)
        noise = rng.normal(0, 0.2, (BENCHMARK.steps, 5))
        assert any(env.step(env.expert_action() + row) for row in noise)


def test_the_rate_is_that_of_the_simulation() -> None:
    assert of("drawer-open")._env.control_timestep() == pytest.approx(1 / EMBODIMENT.fps)


def test_the_state_does_not_tell_where_things_are() -> None:
    """Moving the cube, the drawer and the window changes nothing of it."""
    import mujoco

    env = of("cube-target")
    env.reset(2)
    before = env.state
    data = env._env.data
    data.joint("object_joint_0").qpos[:2] += 0.05
    data.joint("drawer_slide").qpos[0] = -0.1
    data.joint("window_slide").qpos[0] = 0.1
    mujoco.mj_forward(env._env.model, data)
    env._info = env._env.compute_ob_info()
    np.testing.assert_array_equal(env.state, before)


def test_actions_move_what_they_name() -> None:
    env = of("cube-target")
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1), (2, 1), (2, -1)):
        # From where there is room on all sides.
        env.reset(3)
        middle = np.array([0.425, 0.0, 0.2])
        for _ in range(20):
            towards = np.clip((middle - env.state[:3]) / 0.05, -1, 1)
            env.step(np.array([*towards, 0, -1]))
        before = env.state
        for _ in range(6):
            action = np.zeros(5)
            action[axis] = sign
            env.step(action)
        moved = env.state[:3] - before[:3]
        assert np.argmax(np.abs(moved)) == axis
        assert moved[axis] * sign > 0.03
    for _ in range(10):
        env.step(np.array([0, 0, 0, 0, 1.0]))
    closed = env.state[5]
    for _ in range(10):
        env.step(np.array([0, 0, 0, 0, -1.0]))
    assert closed > env.state[5] + 0.5


def test_pictures_are_upright_and_the_left_button_is_left() -> None:
    env = of("button-left")
    purple = []
    for height in (0.1, 0.3):
        env.reset(5)
        for _ in range(30):
            towards = np.clip((np.array([0.45, 0.0, height]) - env.state[:3]) / 0.05, -1, 1)
            env.step(np.array([*towards, 0, -1]))
        red, green, blue = np.moveaxis(env.render().astype(int), -1, 0)
        rows, _ = np.nonzero((blue > green + 40) & (red > green + 40) & (blue > red))
        assert len(rows) > 10
        purple.append(rows.mean())
    low, high = purple
    assert high < low - 3
    columns = []
    for task in ("button-left", "button-right"):
        env = of(task)
        env.reset(5)
        before = env.render().astype(int)
        button = env._goal.button
        env._env._cur_button_states[button] = 1 - env._env._cur_button_states[button]
        env._env._apply_button_states()
        # It and the handle that it locks, which is higher up.
        changed = np.abs(env.render().astype(int) - before).max(-1) > 60
        columns.append(np.nonzero(changed[40:])[1].mean())
    assert columns[0] < 32 < columns[1]


@pytest.mark.parametrize("task", [t for t, goal in GOALS.items() if goal.thing == "cube"])
def test_the_cube_can_be_seen_away_from_its_target(task: str) -> None:
    env = of(task)
    targets = set()
    for seed in range(5):
        env.reset(seed)
        data = env._env.data
        cube = data.joint("object_joint_0").qpos[:3]
        target = data.mocap_pos[env._env._cube_target_mocap_ids[0]]
        assert np.linalg.norm(cube - target) >= 0.1
        targets.add(tuple(target))
        # Without the cube, and without the target, the picture is another.
        seen = env.render().astype(int)
        for place in (data.joint("object_joint_0").qpos, data.mocap_pos[0]):
            kept = place.copy()
            place[:3] = (0, 0, -0.5)
            _forward(env)
            assert (np.abs(env.render().astype(int) - seen).max(-1) > 20).sum() >= 4
            place[:] = kept
            _forward(env)
    assert len(targets) == (1 if GOALS[task].inside else 5)


def _forward(env: Env) -> None:
    import mujoco

    mujoco.mj_forward(env._env.model, env._env.data)


def test_no_target_is_shown_where_the_task_has_none() -> None:
    env = of("window-open")
    env.reset(1)
    assert env._env.data.mocap_pos[env._env._cube_target_mocap_ids[0]][2] < -0.1


def test_colours_that_tell_a_state_stay() -> None:
    plain, shifted = of("drawer-open"), Env("drawer-open", shift="colours")
    names = ("drawer_handle", "window_handle")
    for seed in range(3):
        for env in (plain, shifted):
            env.reset(seed)
        for name in names:
            np.testing.assert_array_equal(
                *(env._env.model.material(name).rgba for env in (plain, shifted))
            )
        assert not np.array_equal(
            *(env._env.model.material("drawer_body").rgba for env in (plain, shifted))
        )
    shifted.close()


def test_actions_are_clipped_to_the_limits() -> None:
    env = of("drawer-open")
    ends = []
    for scale in (1, 50):
        env.reset(5)
        for _ in range(5):
            env.step(scale * np.array([1.0, -1, 1, -1, 1]))
        ends.append(env.state)
    np.testing.assert_array_equal(*ends)


def test_another_thread_cannot_draw() -> None:
    from concurrent.futures import ThreadPoolExecutor

    env = of("drawer-open")
    env.reset(0)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(GwpError, match="draws only in the thread that made it"),
    ):
        pool.submit(env.render).result()


@pytest.mark.parametrize(
    ("words", "message"),
    [(("juggle",), "tasks juggle: choose from"), (("drawer-open", 64, "starts"), "shift starts")],
)
def test_what_is_not_there_is_refused(words: tuple, message: str) -> None:
    with pytest.raises(GwpError, match=message):
        Env(*words)


def test_the_size_is_that_of_the_pictures() -> None:
    env = Env("window-open", 96)
    env.reset(0)
    assert env.observe().images[CAMERA].shape == (96, 96, 3)
    env.close()

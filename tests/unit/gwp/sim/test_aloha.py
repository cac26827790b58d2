"""ALOHA's two arms: what the expert plans from, and what becomes of arms that are driven wildly."""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from gwp.sim.aloha.env import BENCHMARK, EMBODIMENT, Env

if find_spec("gym_aloha") is None:
    pytest.skip("the aloha extra is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    env = Env("transfer-cube", 32)
    yield env
    env.close()


def test_the_plan_is_of_the_start_whenever_it_is_asked_for(env: Env) -> None:
    env.reset(3)
    asked_first = env.expert_action()
    still = env.state
    for _ in range(5):
        env.step(still)
    late = env.expert_action()
    env.reset(3)
    for _ in range(5):
        env.step(still)
    np.testing.assert_array_equal(env.expert_action(), late)
    env.reset(3)
    np.testing.assert_array_equal(env.expert_action(), asked_first)
    # It begins where the arms are.
    assert np.abs(asked_first - still)[:6].max() < 0.05


def test_the_rate_is_that_of_the_simulation(env: Env) -> None:
    env.reset(0)
    before = env._physics.time()
    env.step(env.state)
    assert env._physics.time() - before == pytest.approx(1 / EMBODIMENT.fps)


def test_arms_without_a_solution_have_lost_and_the_next_episode_is_a_new_one(
    env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dm_control.rl.control import PhysicsError

    env.reset(5)
    start = env.state

    def broken(_steps: int) -> None:
        raise PhysicsError("mjWARN_BADQACC")

    with monkeypatch.context() as patch:
        patch.setattr(env._physics, "step", broken)
        assert not env.step(start)
    np.testing.assert_allclose(env.state, start, atol=1e-6)
    for _ in range(20):
        assert not env.step(env.expert_action())
    np.testing.assert_allclose(env.state, start, atol=1e-6)
    env.reset(5)
    for _ in range(20):
        env.step(env.expert_action())
    assert np.abs(env.state - start).max() > 0.05


def test_seeds_move_the_cube_and_not_the_arms(env: Env) -> None:
    states, cubes = [], []
    for seed in range(4):
        env.reset(seed)
        states.append(env.state)
        cubes.append(env._physics.named.data.qpos["red_box_joint"][:2].copy())
    assert np.ptp(states, axis=0).max() == 0
    assert np.ptp(cubes, axis=0).min() > 0.02
    assert BENCHMARK.noise < 0.05

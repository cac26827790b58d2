"""Meta-World from two cameras, with wide starts, and off the distribution."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gwp.data.canvas import Canvas, compose
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.robot_set import check_embodiment
from gwp.errors import GwpError
from gwp.sim.benchmarks import find
from gwp.sim.measure import measure
from gwp.sim.metaworld import CAMERA, EMBODIMENT, TWO_CAMERAS, WRIST, Env
from gwp.sim.record import record
from gwp.sim.sawyer.tasks import TASKS, WIDE
from gwp.sim.shifts import SHIFTS
from tests.support.experts import expert_episode

# After gwp.sim, which chooses the renderer before MuJoCo is imported.
pytest.importorskip("metaworld", reason="the sim extra is not installed")

TASK = "drawer-open-v3"
Make = Callable[[str], Env]


@pytest.fixture(scope="module")
def made() -> Iterator[Make]:
    """Shift -> the one environment of this module that has it: drawing is slow to begin."""
    envs: dict[str, Env] = {}

    def make(shift: str) -> Env:
        if shift not in envs:
            envs[shift] = Env(TASK, 64, shift, wide=True, embodiment=TWO_CAMERAS)
        return envs[shift]

    yield make
    for env in envs.values():
        env.close()


def walk(env: Env, seed: int, steps: int = 12) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the expert saw on its way, and the pictures of the first and the last moment."""
    env.reset(seed)
    pictures = [env.observe().images]
    seen = [env._observation]
    for _ in range(steps):
        env.step(env.expert_action())
        seen.append(env._observation)
    pictures.append(env.observe().images)
    return np.stack(seen), {key: np.stack([p[key] for p in pictures]) for key in pictures[0]}


def object_of(env: Env, seed: int) -> np.ndarray:
    env.reset(seed)
    return np.asarray(env._env._last_rand_vec)


def test_both_cameras_are_drawn_and_fill_a_canvas_side_by_side(made: Make) -> None:
    env = made("none")
    env.reset(0)
    observation = env.observe()
    assert observation.embodiment == TWO_CAMERAS.name != EMBODIMENT.name
    assert {k: v.shape for k, v in observation.images.items()} == dict.fromkeys(
        (CAMERA, WRIST), (64, 64, 3)
    )
    np.testing.assert_array_equal(observation.images[CAMERA], env.render())
    assert min(picture.std() for picture in observation.images.values()) > 20
    views = {slot: observation.images[key][None] for slot, key in TWO_CAMERAS.cameras.items()}
    canvas = compose(views, Canvas(layout="horizontal", width=128, height=64), None)
    np.testing.assert_array_equal(canvas[0, :, :64], observation.images[CAMERA])
    np.testing.assert_array_equal(canvas[0, :, 64:], observation.images[WRIST])


def green(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the drawer, the only pale green thing."""
    red, level, blue = picture.astype(int).transpose(2, 0, 1)
    return np.nonzero((level > red + 30) & (level > blue + 20) & (red > 40))


def test_the_wrists_pictures_are_upright(made: Make) -> None:
    """What lies ahead is on top, what lies to the right is on the right."""
    env = made("none")
    columns: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(30):
        place = object_of(env, seed)
        if not 0.07 < abs(place[0]) < 0.16:
            continue
        # From the same place, so that only the drawer differs.
        for _ in range(15):
            env.step(np.array([0, 0.6, 0, 0]))
        rows, cols = green(env.render(WRIST))
        assert len(rows) > 20
        assert rows.mean() < 28
        columns[place[0] > 0].append(cols.mean())
    assert len(columns[True]) > 1
    assert len(columns[False]) > 1
    assert min(columns[True]) > max(columns[False]) + 8


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_seed_gives_the_same_episode_under_every_shift(made: Make, shift: str) -> None:
    env = made(shift)
    seen, pictures = walk(env, 3)
    other, other_pictures = walk(env, 4)
    again, pictures_again = walk(env, 3)
    np.testing.assert_array_equal(seen, again)
    assert not np.array_equal(seen, other)
    for key, frames in pictures.items():
        np.testing.assert_array_equal(frames, pictures_again[key])
    assert not np.array_equal(pictures[CAMERA], other_pictures[CAMERA])


@pytest.mark.parametrize("shift", ["camera", "colours", "distractors"])
def test_a_shift_of_the_pictures_leaves_the_simulation_alone(made: Make, shift: str) -> None:
    looks = []
    for seed in (5, 6):
        seen, pictures = walk(made(shift), seed)
        stock, stock_pictures = walk(made("none"), seed)
        np.testing.assert_array_equal(seen, stock)
        change = np.abs(pictures[CAMERA].astype(int) - stock_pictures[CAMERA]).max(-1)
        # Distractors are small; the others are everywhere.
        assert (change > 25).mean() > (0.003 if shift == "distractors" else 0.1)
        if shift != "distractors":
            moved = np.abs(pictures[WRIST].astype(int) - stock_pictures[WRIST]).max(-1)
            assert (moved > 10).mean() > 0.1
        looks.append(change)
    # Another episode, another draw.
    assert not np.array_equal(*looks)


def test_distractors_stay_where_they_are(made: Make) -> None:
    """They are things on the table, not on the pictures: those of the first moment are those of
    the last, seen by a camera that stands.
    """
    _, pictures = walk(made("distractors"), 7)
    _, stock = walk(made("none"), 7)
    first, last = np.abs(pictures[CAMERA].astype(int) - stock[CAMERA]).max(-1) > 25
    # The arm may cover some of them.
    assert (first & last).sum() > 0.4 * max(first.sum(), last.sum())
    assert (first & last).sum() > 8


def test_shifted_starts_lie_outside_of_the_range_of_training(made: Make) -> None:
    ranges = WIDE[TASK]
    trained = [object_of(made("none"), seed) for seed in range(20)]
    shifted = [object_of(made("starts"), seed) for seed in range(20)]
    assert all(ranges.starts.holds(start) for start in trained)
    assert not any(ranges.starts.holds(start) for start in shifted)
    assert all(ranges.beyond.holds(start) for start in shifted)
    assert np.ptp([start[0] for start in trained]) > 0.4


def test_the_stock_starts_are_the_default_and_lie_in_the_wide_ones() -> None:
    for task, ranges in WIDE.items():
        env = Env(task)
        starts = [object_of(env, seed) for seed in range(5)]
        env.close()
        assert all(ranges.starts.holds(start) for start in starts), task
        assert max(abs(start[0]) for start in starts) <= 0.1


@pytest.mark.parametrize("shift", ["none", "starts"])
@pytest.mark.parametrize("task", WIDE)
def test_the_expert_wins_from_wide_and_shifted_starts(task: str, shift: str) -> None:
    env = Env(task, shift=shift, wide=True)
    won = [expert_episode(env, seed=seed).success for seed in range(4)]
    env.close()
    assert won == [True] * 4


def test_what_was_measured_is_what_eyes_bring() -> None:
    rates = measure(find("metaworld-wide"), TASK, 8, 150)
    assert rates.expert == rates.noisy == 1
    assert rates.random == 0
    assert rates.blind < 0.5


def test_a_shift_that_is_not_there_is_refused() -> None:
    with pytest.raises(GwpError, match="shift 'night' is not one of none, camera"):
        Env(TASK, shift="night")
    with pytest.raises(GwpError, match=r"reach-v3 has no starts outside .*drawer-open-v3"):
        Env("reach-v3", shift="starts")


def test_both_cameras_are_recorded_and_trained_on_as_they_are_named(tmp_path: Path) -> None:
    wide = find("metaworld-wide")
    assert set(WIDE) < set(wide.tasks) == set(TASKS)
    record(str(tmp_path / "set"), wide, ["coffee-button-v3"], 1, 50, noise=0.0, workers=1)
    data = read_set(str(tmp_path / "set"))
    check_embodiment(data, TWO_CAMERAS)
    assert data.slots(None) == TWO_CAMERAS.cameras

"""Recording: successful noisy demonstrations with clean labels, the same for any number of
workers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import usable_episodes
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.robot_set import check_embodiment
from gwp.data.formats.vectors import episode_vectors
from gwp.data.source import Source
from gwp.data.video.decode import decode_frames
from gwp.errors import GwpError
from gwp.sim import record as room
from gwp.sim.metaworld import BENCHMARK, CAMERA, EMBODIMENT, Env
from gwp.sim.record import RecordSummary, record
from tests.support.experts import expert_episode

# After gwp.sim, which chooses the renderer before MuJoCo is imported.
pytest.importorskip("metaworld", reason="the sim extra is not installed")

TASKS = ["handle-press-v3", "coffee-button-v3"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecordSummary, list[int]]:
    place = tmp_path_factory.mktemp("record") / "set"
    done: list[int] = []
    return (
        place,
        record(str(place), BENCHMARK, TASKS, 3, 50, noise=0.2, workers=2, progress=done.append),
        done,
    )


def vectors(place: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    data = read_set(str(place))
    good, bad = usable_episodes(data, Source(uri=str(place), embodiment=EMBODIMENT.name), [CAMERA])
    assert not bad
    return [episode_vectors(data, e, row, FileReader()) for e, row in good]


def test_the_set_is_of_the_robot_and_holds_what_the_summary_says(
    recorded: tuple[Path, RecordSummary, list[int]],
) -> None:
    place, summary, done = recorded
    data = read_set(str(place))
    check_embodiment(data, EMBODIMENT)
    assert [e.text for e in data.episodes] == [
        "press the handle down",
        "press the button of the coffee machine",
    ] * 3
    assert (summary.episodes, summary.frames) == (6, sum(e.length for e in data.episodes))
    assert summary.attempts >= 6
    assert done == [1, 2, 3, 4, 5, 6]


def test_labels_are_the_experts_clean_actions_and_the_noise_was_executed(
    recorded: tuple[Path, RecordSummary, list[int]],
) -> None:
    state, action = vectors(recorded[0])[0]
    assert np.abs(action).max() <= 1
    env = Env(TASKS[0])
    env.reset(50)
    np.testing.assert_allclose(env.state, state[0])
    np.testing.assert_allclose(env.expert_action(), action[0])
    env.step(action[0])
    assert np.abs(env.state - state[1]).max() > 1e-4
    env.close()


def test_pictures_belong_to_their_rows(recorded: tuple[Path, RecordSummary, list[int]]) -> None:
    place, _, _ = recorded
    env = Env(TASKS[0])
    env.reset(50)
    first = env.render().astype(int)
    env.close()
    data = read_set(str(place))
    span, length = data.episodes[0].videos[CAMERA], data.episodes[0].length
    with storage.open_read(f"{place}/{span.file}") as handle:
        seen = decode_frames(handle, [span.start + k / data.fps for k in (0, length - 1)]).astype(
            int
        )
    right, wrong = (np.abs(picture - first).mean() for picture in seen)
    assert right < 6  # coding noise, mostly of the halved colour resolution
    assert wrong > 1.5 * right


def test_episodes_end_a_little_after_success() -> None:
    env = Env(TASKS[0])
    steps = expert_episode(env, seed=7).steps
    env.close()
    demo = room._demo(room._Job(BENCHMARK, 0.0, 64, 150), TASKS[0], 7)
    assert {len(demo.state), len(demo.action), len(demo.frames[CAMERA])} == {len(demo.action)}
    assert (len(demo.action), demo.attempts) == (steps + room._AFTER - 1, 1)
    room._ENVS.pop((BENCHMARK.name, TASKS[0], 64)).close()


def test_the_number_of_workers_changes_nothing(
    recorded: tuple[Path, RecordSummary, list[int]], tmp_path: Path
) -> None:
    record(str(tmp_path / "set"), BENCHMARK, TASKS, 3, 50, noise=0.2, workers=1)
    for one, two in zip(vectors(tmp_path / "set"), vectors(recorded[0]), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_video_only_sets_tell_nothing_of_the_robot(tmp_path: Path) -> None:
    record(str(tmp_path / "set"), BENCHMARK, TASKS[:1], 1, 50, with_actions=False, workers=1)
    data = read_set(str(tmp_path / "set"))
    assert (data.state_names, data.action_names, list(data.cameras)) == ((), (), [CAMERA])


def test_a_task_whose_expert_fails_ends_the_recording_with_the_seeds(tmp_path: Path) -> None:
    with pytest.raises(GwpError, match="expert of handle-press-v3 failed on seeds 0 to 3"):
        record(str(tmp_path / "set"), BENCHMARK, TASKS[:1], 2, 0, max_steps=3, workers=1)
    assert not storage.exists(str(tmp_path / "set/meta/info.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["juggle"]}, "tasks juggle: choose from"),
        ({"tasks": []}, "choose from"),
        ({"tasks": TASKS[:1] * 2}, "name each task once"),
        ({"episodes": 0, "seed": -1}, "episodes is 0, needs at least 1; seed is -1"),
        ({"size": 63}, "size is 63, needs an even number"),
        ({"workers": 0}, "workers is 0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"max_steps": 501}, "max_steps is 501, needs 1 to 500"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(GwpError, match=message):
        record(
            str(tmp_path / "set"),
            BENCHMARK,
            **({"tasks": TASKS, "episodes": 1, "seed": 0} | change),
        )
    assert not (tmp_path / "set").exists()

"""The LeRobot writer: what goes in comes out through our reader, and the files are what other
readers expect.
"""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import usable_episodes
from gwp.data.formats.lerobot.read import INFO, read_set
from gwp.data.formats.lerobot.write import LeRobotWriter
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.vectors import episode_vectors
from gwp.data.source import Source
from gwp.data.video.decode import decode_frames
from gwp.errors import DataError
from tests.support.sets import TOP, WRIST, episode_values, frame_number, level

STATE_NAMES, ACTION_NAMES = ("x", "y", "grip"), ("dx", "grip")
LENGTHS = (7, 12, 1, 9)
TASKS = ("open the door", "push", "open the door", "schließe die Tür")


def writer(
    uri: object, fps: float = 10, cameras: tuple[str, ...] = (TOP,), **options: object
) -> LeRobotWriter:
    return LeRobotWriter(
        str(uri),
        fps=fps,
        robot_type="dot",
        cameras=dict.fromkeys(cameras, (48, 64)),
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        **options,  # type: ignore[arg-type]
    )


def pictures(first: int, count: int) -> np.ndarray:
    """Frames whose grey tells their number."""
    return np.stack([np.full((48, 64, 3), level(n), np.uint8) for n in range(first, first + count)])


def write(
    uri: object,
    fps: float = 10,
    cameras: tuple[str, ...] = (TOP,),
    with_actions: bool = True,
    **options: object,
) -> None:
    with writer(uri, fps, cameras, with_actions=with_actions, **options) as out:
        first = 0
        for i, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
            vectors = (
                [v.astype(np.float32) for v in episode_values(i, length)] if with_actions else []
            )
            # The second camera counts from 40, so that cameras cannot be mistaken for one
            # another.
            out.add_episode(
                {c: pictures(first + 40 * n, length) for n, c in enumerate(cameras)}, task, *vectors
            )
            first += length


def frames(data: RobotSet, episode: Episode, camera: str) -> list[int]:
    span = episode.videos[camera]
    with storage.open_read(storage.join(data.uri, span.file)) as handle:
        found = decode_frames(
            handle,
            [span.start + k / data.fps for k in range(episode.length)],
            tolerance=0.5 / data.fps,
        )
    return [frame_number(f) for f in found]


def test_positions_vectors_and_tasks_come_back(tmp_path: Path) -> None:
    write(tmp_path, cameras=(TOP, WRIST))
    data = read_set(str(tmp_path))
    assert (data.version, data.fps, data.state_names, data.action_names) == (
        "v3.0",
        10,
        STATE_NAMES,
        ACTION_NAMES,
    )
    good, bad = usable_episodes(data, Source(uri=str(tmp_path), embodiment="dot"), [TOP, WRIST])
    assert not bad
    assert [(e.length, e.text) for e, _ in good] == list(zip(LENGTHS, TASKS, strict=True))
    first = 0
    for i, (episode, row) in enumerate(good):
        assert frames(data, episode, TOP) == list(range(first, first + episode.length))
        assert frames(data, episode, WRIST) == list(range(first + 40, first + 40 + episode.length))
        for found, written in zip(
            episode_vectors(data, episode, row, FileReader()),
            episode_values(i, LENGTHS[i]),
            strict=True,
        ):
            np.testing.assert_array_equal(found, written.astype(np.float32))
        first += episode.length


@pytest.mark.parametrize("fps", [10, 80.0, 30000 / 1001])
def test_every_rate_keeps_one_frame_per_row(tmp_path: Path, fps: float) -> None:
    write(tmp_path, fps)
    data = read_set(str(tmp_path))
    assert data.fps == fps
    assert not usable_episodes(data, Source(uri=str(tmp_path)), [TOP])[1]
    assert [n for e in data.episodes for n in frames(data, e, TOP)] == list(range(sum(LENGTHS)))


def test_files_roll_over_between_episodes(tmp_path: Path) -> None:
    write(tmp_path, video_mb=1e-6)
    data = read_set(str(tmp_path))
    files = [e.videos[TOP].file[-12:-4] for e in data.episodes]
    # The encoder holds back the single frame of the third episode, so its file is not seen to
    # be full yet.
    assert files == ["file-000", "file-001", "file-002", "file-002"]
    assert [e.videos[TOP].start for e in data.episodes] == [0.0, 0.0, 0.0, 0.1]
    assert not usable_episodes(data, Source(uri=str(tmp_path)), [TOP])[1]
    assert [n for e in data.episodes for n in frames(data, e, TOP)] == list(range(sum(LENGTHS)))


def test_random_access_decodes_at_most_two_frames(tmp_path: Path) -> None:
    write(tmp_path)
    with av.open(str(next(tmp_path.rglob("*.mp4")))) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert len(packets) == sum(LENGTHS)
    assert all(p.is_keyframe for p in packets[::2])
    assert [p.pts for p in packets] == sorted(p.pts for p in packets)


def test_video_only_sets_hold_no_vectors(tmp_path: Path) -> None:
    write(tmp_path, with_actions=False)
    data = read_set(str(tmp_path))
    assert (data.state_names, data.action_names) == ((), ())
    columns = pq.read_schema(next((tmp_path / "data").rglob("*.parquet"))).names
    assert set(columns) == {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    assert set(json.loads((tmp_path / "meta/stats.json").read_text())) == {TOP}
    assert [n for e in data.episodes for n in frames(data, e, TOP)] == list(range(sum(LENGTHS)))


def test_statistics_are_those_of_the_rows_and_pictures(tmp_path: Path) -> None:
    write(tmp_path)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    action = np.concatenate([episode_values(i, n)[1] for i, n in enumerate(LENGTHS)])
    for name, expected in {
        "min": action.min(0),
        "max": action.max(0),
        "mean": action.mean(0),
        "std": action.std(0),
        "q10": np.quantile(action, 0.1, 0),
    }.items():
        np.testing.assert_allclose(stats["action"][name], expected, atol=1e-5)
    # Every tenth picture of each episode counts: 0, 7 and 17, 19, 20.
    seen = np.array([level(n) for n in (0, 7, 17, 19, 20)]) / 255
    for name, value in {
        "min": seen[0],
        "max": seen[-1],
        "mean": seen.mean(),
        "std": seen.std(),
        "q50": seen[2],
    }.items():
        np.testing.assert_allclose(stats[TOP][name], np.full((3, 1, 1), value), atol=1e-6)
    assert (stats["action"]["count"], stats[TOP]["count"]) == ([29], [5])


def test_pandas_finds_the_instruction_in_the_index(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    write(tmp_path)
    tasks = pandas.read_parquet(tmp_path / "meta/tasks.parquet")
    assert tasks["task_index"].to_dict() == {"open the door": 0, "push": 1, "schließe die Tür": 2}


def test_a_set_that_failed_does_not_exist(tmp_path: Path) -> None:
    out = writer(tmp_path, video_mb=1e-6)
    for _ in range(3):
        out.add_episode({TOP: pictures(0, 5)}, "push", state(), action())
    with pytest.raises(RuntimeError, match="no space left"), out:
        raise RuntimeError("no space left")
    assert list(tmp_path.rglob("*.mp4"))
    with pytest.raises(DataError, match="not a LeRobot set"):
        read_set(str(tmp_path))
    # The next attempt takes the place.
    write(tmp_path)
    assert len(read_set(str(tmp_path)).episodes) == len(LENGTHS)


def test_an_existing_set_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path)
    before = (tmp_path / INFO).read_bytes()
    with pytest.raises(DataError, match="a set is there already"):
        write(tmp_path)
    assert (tmp_path / INFO).read_bytes() == before


def state(rows: int = 5) -> np.ndarray:
    return np.zeros((rows, 3), np.float32)


def action(rows: int = 5) -> np.ndarray:
    return np.zeros((rows, 2), np.float32)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (({TOP: pictures(0, 5)}, "push"), "the set has"),
        (({WRIST: pictures(0, 5)}, "push", state(), action()), "the set has"),
        (({TOP: pictures(0, 5)}, "push", state(4), action()), "expected .5, 3."),
        (({TOP: pictures(0, 5)}, "push", state(), state()), "expected .5, 2."),
        (({TOP: pictures(0, 5)[:, :40]}, "push", state(), action()), "expected .5, 48, 64, 3."),
        (({TOP: pictures(0, 5) / 255}, "push", state(), action()), "expected uint8"),
        (({TOP: pictures(0, 5)}, "push", state() * np.nan, action()), "not finite"),
        (({TOP: pictures(0, 1)[:0]}, "push", state(0), action(0)), "without frames"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_leaves_nothing(
    tmp_path: Path, episode: tuple[object, ...], message: str
) -> None:
    with writer(tmp_path) as out:
        with pytest.raises(DataError, match=message):
            out.add_episode(*episode)  # type: ignore[arg-type]
        out.add_episode({TOP: pictures(20, 5)}, "push", state(), action())
    data = read_set(str(tmp_path))
    assert [e.length for e in data.episodes] == [5]
    assert frames(data, data.episodes[0], TOP) == [20, 21, 22, 23, 24]


def test_sets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="odd sides"):
        LeRobotWriter(str(tmp_path), fps=10, robot_type="dot", cameras={TOP: (48, 63)})
    with pytest.raises(DataError, match="no episode"), writer(tmp_path):
        pass
    assert not list(tmp_path.rglob("*"))

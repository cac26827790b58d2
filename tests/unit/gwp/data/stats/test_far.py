"""What moves little far from 0 is learnt with the digits of its recording."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, compute_stats
from gwp.data.window import Window
from pipelines.datasets.vectors import check_vectors
from tests.support.sets import FPS, write_v21

N = 60
T = np.arange(N)
ROWS = np.stack([5.4e6 + 1.5 * np.sin(T / 9), np.sin(T / 5)], 1)
WINDOW = Window(chunk=4, stride=1)


def hdf5(root: Path) -> Source:
    root.mkdir()
    with h5py.File(root / "a.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/where"], demo["actions"] = ROWS, ROWS
        demo["obs/cam"] = np.full((N, 8, 8, 3), 50, np.uint8)
    return Source(uri=str(root), embodiment="arm", fps=FPS, state=("obs/where",))


def lerobot(root: Path) -> Source:
    write_v21(root, lengths=(N,))
    file = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    wide = np.concatenate([ROWS, ROWS[:, :1]], 1)
    for name, rows in (("action", ROWS), ("observation.state", wide)):
        column = pa.array(rows.tolist(), pa.list_(pa.float64()))
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, file)
    return Source(uri=str(root), embodiment="arm")


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("write", [hdf5, lerobot])
def test_a_motion_far_from_zero_is_learnt(
    tmp_path: Path, write: Callable[[Path], Source], delta: bool
) -> None:
    source = write(tmp_path / "set")
    data = robots_at(source)
    assert data is not None
    robot = embodiment_of(data, "arm", WINDOW.chunk, 2, delta_mask=[delta, False])
    stats = compute_stats([source], robot, WINDOW)
    assert not stats.state.constant.any()
    assert not stats.action.constant.any()
    normalizer = Normalizer(stats, robot)
    state = np.pad(ROWS, ((0, 0), (0, stats.state.mean.size - 2)), "wrap")
    # As far apart as in the recording.
    x, way = normalizer.state(state)[:, 0], stats.state.q99[0] - stats.state.q01[0]
    assert np.abs(np.diff(x) - 2 * np.diff(ROWS[:, 0]) / way).max() < 1e-6
    assert way == pytest.approx(np.ptp(np.quantile(ROWS[:, 0], [0.01, 0.99])), rel=1e-6)
    chunk = ROWS[30:34]
    back = normalizer.inverse_actions(normalizer.actions(chunk, state[30]), state[30])
    # What float32 holds, in which actions are served.
    assert back.dtype == np.float32
    assert np.abs(back - chunk).max() <= 0.5 * np.spacing(np.float32(5.4e6))


def test_what_is_served_more_coarsely_than_recorded_is_told(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "set")
    data, reader = robots_at(source), FileReader()
    assert data is not None
    good, _ = usable_episodes(data, source, [], reader)
    found = check_vectors(data, good, reader)
    told = {f.item: f.what for f in found.findings if "float32" in f.what}
    assert list(told) == ["state where_0", "action actions_0"]
    assert all("at 5.4e+06, where" in what and "steps of 0.5" in what for what in told.values())

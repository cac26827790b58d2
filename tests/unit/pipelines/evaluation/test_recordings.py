"""What a policy is judged on is what it was trained on, whatever the format and the rate."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gwp.data.canvas import Canvas, compose
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.evaluation.recordings import RecordedSet, first_observation
from tests.support.other_sets import write_aloha, write_libero, write_rlds, write_stills
from tests.support.sets import FPS, TOP, WRIST, write_v21, write_v30

WINDOW = Window(chunk=4, stride=1)
CLIP = ClipWindow(frames=5, fps=5)
CANVAS = Canvas(layout="single", width=32, height=32)

SETS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "LeRobot v2.1": (lambda root: write_v21(root, cameras=(TOP, WRIST)), {}),
    "LeRobot v3.0": (lambda root: write_v30(root, cameras=(TOP, WRIST)), {}),
    "pictures in LeRobot": (lambda root: write_stills(root, "v3.0"), {}),
    "aloha": (write_aloha, {"fps": FPS}),
    "libero": (lambda root: write_libero(root / "demo.hdf5"), {}),
    "rlds": (write_rlds, {"fps": FPS}),
}


def robot_of(source: Source, **changes: Any) -> Embodiment:
    data = robots_at(source)
    assert data is not None
    camera = next(iter(data.cameras))
    robot = embodiment_of(data, "arm", WINDOW.chunk, 2, cameras={"front": camera})
    return Embodiment.model_validate(robot.model_dump() | changes)


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("name", SETS)
def test_a_recording_is_what_training_sees(tmp_path: Path, name: str, ratio: int) -> None:
    write, fields = SETS[name]
    source = Source(uri=str(write(tmp_path / "set")), resample=ratio > 1, **fields)
    robot = robot_of(source)
    robot = robot.model_copy(update={"fps": robot.fps / ratio})
    labelled = source.model_copy(update={"embodiment": "arm"})
    manifest = build_manifest([labelled], embodiments={"arm": robot}, window=WINDOW, clip=CLIP)
    width = max(len(robot.state_names), len(robot.action_names))
    stats = {"arm": compute_stats([labelled], robot, WINDOW)}
    spec = SampleSpec(CANVAS, WINDOW, CLIP, {"arm": robot}, stats, width, False, 0)
    rows = manifest.rows(range(manifest.table.num_rows))
    samples, failures = decode_samples(rows, spec, FileReader())
    assert not failures

    normalizer = spec.normalizers["arm"]
    left = iter(samples)
    for recording in RecordedSet.of({"arm": robot}, source):
        for start in range(len(recording.action)):
            sample = next(left)
            views = recording.views([start + offset for offset in WINDOW.offsets])
            seen = {slot: views[camera] for slot, camera in robot.cameras.items()}
            assert np.array_equal(compose(seen, CANVAS, None), sample["frames"])
            state, chunk = recording.state[start], recording.action[start : start + WINDOW.chunk]
            # A robot sends float32; files may hold more.
            np.testing.assert_allclose(
                normalizer.state(state), sample["state"][: len(state)], atol=1e-6
            )
            steps = normalizer.actions(chunk, state)
            learnt = sample["actions"][: len(chunk), : chunk.shape[1]]
            np.testing.assert_allclose(steps, learnt, atol=1e-6)
            assert sample["step_valid"].sum() == len(chunk)
    assert next(left, None) is None


def write_broken(root: Path) -> Path:
    """A set with NaN in a state, and in actions that are interpolated and added up."""
    write_v30(root, lengths=(20, 15))
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    for name, row, dim in (("observation.state", 3, 1), ("action", 11, 0), ("action", 27, 1)):
        rows = table[name].to_pylist()
        rows[row][dim] = float("nan")
        column = pa.array(rows, table[name].type)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, file)
    return root


@pytest.mark.parametrize("ratio", [1, 2, 0.5, 1.5])
def test_what_is_no_number_spoils_the_same_windows_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: float
) -> None:
    source = Source(uri=str(write_broken(tmp_path / "set")), resample=ratio != 1)
    rate = robot_of(source).fps / ratio
    robot = robot_of(source, fps=rate, resample=("linear", "sum"), replan=1)
    labelled = source.model_copy(update={"embodiment": "arm"})
    manifest = build_manifest([labelled], embodiments={"arm": robot}, window=WINDOW, clip=CLIP)
    stats = compute_stats([labelled], robot, WINDOW)
    spec = SampleSpec(CANVAS, WINDOW, CLIP, {"arm": robot}, {"arm": stats}, 3, False, 0)
    samples, failed = decode_samples(manifest.rows(range(len(manifest))), spec, FileReader())
    assert failed
    assert stats.metadata["num_state_samples"] == len(samples)
    normalizer, left = spec.normalizers["arm"], iter(samples)
    for recording in RecordedSet.of({"arm": robot}, source):
        assert recording.starts() == np.flatnonzero(recording.usable).tolist()
        assert "windows left out: NaN or Inf" in capsys.readouterr().err
        for start in recording.starts():
            sample, state = next(left), recording.state[start]
            number = f"{recording.episode.index:06d}/{start:06d}"
            assert sample["sample_id"].endswith(number)
            chunk = recording.action[start : start + WINDOW.chunk]
            learnt = sample["actions"][: len(chunk), : chunk.shape[1]]
            np.testing.assert_allclose(normalizer.actions(chunk, state), learnt, atol=2e-6)
    assert next(left, None) is None


def test_colours_are_those_of_training(tmp_path: Path) -> None:
    source = Source(uri=str(write_stills(tmp_path / "set", "v3.0")))
    file = tmp_path / "set/data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    out = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), (200, 90, 20), np.uint8)).save(out, "PNG")
    rows = [{"bytes": out.getvalue(), "path": ""}] * len(table)
    column = pa.array(rows, table[TOP].type)
    pq.write_table(table.set_column(table.column_names.index(TOP), TOP, column), file)
    robot = robot_of(source)
    for colours, shown in (("rgb", [200, 90, 20]), ("bgr", [20, 90, 200])):
        recorded = RecordedSet.of({"arm": robot}, source.model_copy(update={"colours": colours}))
        views = next(iter(recorded)).views([0])
        assert views[TOP][0, 0, 0].tolist() == shown


def test_the_robot_is_found_by_its_actions_or_named(tmp_path: Path) -> None:
    source = Source(uri=str(write_v30(tmp_path / "set")))
    ours = robot_of(source)
    other = ours.model_copy(update={"name": "other", "action_names": ("a", "b", "c")})
    robots = {"other": other, "arm": ours}
    assert RecordedSet.of(robots, source).embodiment == ours
    named = source.model_copy(update={"embodiment": "other"})
    with pytest.raises(DataError, match="2 action dimensions, embodiment other has 3"):
        RecordedSet.of(robots, named)
    with pytest.raises(DataError, match="'leg' is not one of this policy"):
        RecordedSet.of(robots, source.model_copy(update={"embodiment": "leg"}))
    with pytest.raises(DataError, match="are of no robot of this policy"):
        RecordedSet.of({"other": other}, source)


def test_another_rate_is_an_error_unless_it_is_asked_for(tmp_path: Path) -> None:
    source = Source(uri=str(write_v30(tmp_path / "set")))
    robot = robot_of(source, fps=FPS / 2)
    with pytest.raises(DataError, match="set `resample: true`"):
        RecordedSet.of({"arm": robot}, source)


def test_a_broken_episode_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(uri=str(write_aloha(tmp_path / "set", lost=1)), fps=FPS)
    robot = robot_of(source)
    wrist = robot.model_copy(update={"cameras": {"front": WRIST}})
    assert [r.episode.index for r in RecordedSet.of({"arm": wrist}, source)] == [0]
    assert "episode 1" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no chosen episode can be used \(episode 1"):
        RecordedSet.of({"arm": wrist}, source.model_copy(update={"episodes": "1"}))


def damaged_stills(root: Path, *more: int) -> tuple[Source, Path]:
    write_stills(root, "v3.0", lengths=(12, 9))
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    rows = table[TOP].to_pylist()
    for broken in (3, 20, *more):
        rows[broken] = {"bytes": b"junk", "path": None}
    column = pa.array(rows, table[TOP].type)
    pq.write_table(table.set_column(table.column_names.index(TOP), TOP, column), file)
    return Source(uri=str(root)), file


def damaged_video(root: Path) -> tuple[Source, Path]:
    write_v21(root, lengths=(60, 9))
    file = root / f"videos/chunk-000/{TOP}/episode_000000.mp4"
    raw = bytearray(file.read_bytes())
    middle = raw.find(b"mdat") + 600
    raw[middle : middle + 300] = bytes((x * 7 + 13) % 256 for x in raw[middle : middle + 300])
    file.write_bytes(raw)
    return Source(uri=str(root)), file


@pytest.mark.parametrize("write", [damaged_stills, damaged_video])
def test_damaged_pictures_cost_the_windows_that_need_them(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], tuple[Source, Path]],
) -> None:
    source, file = write(tmp_path / "set")
    robot = robot_of(source, replan=1)
    labelled = source.model_copy(update={"embodiment": "arm"})
    manifest = build_manifest([labelled], embodiments={"arm": robot}, window=WINDOW, clip=CLIP)
    stats = {"arm": compute_stats([labelled], robot, WINDOW)}
    spec = SampleSpec(CANVAS, WINDOW, CLIP, {"arm": robot}, stats, 3, False, 0)
    samples, failed = decode_samples(manifest.rows(range(len(manifest))), spec, FileReader())
    assert samples
    assert failed
    trained = {tuple(map(int, s["sample_id"].split("/")[-2:])) for s in samples}
    expected = set()
    for recording in RecordedSet.of({"arm": robot}, source):
        index, last = recording.episode.index, len(recording.action) - 1
        seen = {step for step, _ in recording.observed(recording.starts())}
        # A sample needs all frames of its window; past the end the last one stands.
        reach = ((k, {min(k + offset, last) for offset in WINDOW.offsets}) for k in seen)
        expected |= {(index, k) for k, needed in reach if needed <= seen}
        pieces = [[step for step, _ in run] for run in recording.runs()]
        assert [step for piece in pieces for step in piece] == sorted(seen)
        assert all(piece == list(range(piece[0], piece[-1] + 1)) for piece in pieces)
    assert expected == trained
    told = capsys.readouterr().err
    assert f"windows left out: {file}" in told
    assert '"episode": 0' in told


def test_the_first_observation_is_the_first_that_can_be_read(tmp_path: Path) -> None:
    source, _ = damaged_stills(tmp_path / "set", 0, 2)
    robot = robot_of(source)
    policy: Any = SimpleNamespace(bundle=SimpleNamespace(embodiments={"arm": robot}))
    (recording, *_) = RecordedSet.of({"arm": robot}, source)
    first = first_observation(policy, source)
    # Asked for at every second step.
    assert np.array_equal(first.state, recording.state[4])


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_rows_that_cannot_be_read_cost_their_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], Path]
) -> None:
    root = write(tmp_path / "set")
    source = Source(uri=str(root))
    recorded = RecordedSet.of({"arm": robot_of(source)}, source)
    broken = min((root / "data").rglob("*.parquet"))
    table = pq.read_table(broken)
    good = {r.episode.index for r in recorded}
    rows = [[0.0] * (1 + i % 2) for i in range(len(table))]
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", pa.array(rows)), broken)
    left = {r.episode.index for r in RecordedSet.of({"arm": robot_of(source)}, source)}
    lost = {e.index for e, _ in recorded.episodes if e.data_file in str(broken)}
    assert left == good - lost
    told = capsys.readouterr().err
    assert f"episode left out: {broken}" in told

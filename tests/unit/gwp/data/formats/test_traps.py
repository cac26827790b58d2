"""What is wrong in real sets: each trap on a set made for it. Others stand in
test_data_lerobot.py, test_data_stats.py.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.lerobot.read import read_set
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.sets import (
    FPS,
    TOP,
    WRIST,
    frame_number,
    infer_embodiment,
    level,
    number,
    write_v21,
    write_v30,
    write_video,
)

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def first_frames(root: Path, cameras: dict[str, str] | None = None) -> dict[str, list[int]]:
    """Episode -> what its first sample shows of the front camera."""
    uri = str(root)
    robot = infer_embodiment(uri, "arm", 4, 2, cameras=cameras)
    source = Source(uri=uri, embodiment="arm")
    found = build_manifest([source], embodiments={"arm": robot}, window=WINDOW, clip=CLIP)
    stats = compute_stats([source], robot, WINDOW)
    spec = SampleSpec(
        Canvas(layout="horizontal", width=64, height=48),
        WINDOW,
        CLIP,
        {"arm": robot},
        {"arm": stats},
        6,
        False,
        0,
    )
    rows = [row for row in found.table.to_pylist() if row["start"] == 0]
    samples, failed = decode_samples(rows, spec, FileReader())
    assert not failed
    half = 64 // len(robot.cameras)
    return {
        s["sample_id"].split("/")[1]: [frame_number(f[:, :half]) for f in s["frames"]]
        for s in samples
    }


RIGHT = {f"{e:06d}": [number(TOP, e, k) for k in range(5)] for e in (0, 1)}


def change_episodes(root: Path, change: Any) -> None:
    table = pq.read_table(root / EPISODES)
    rows = table.to_pylist()
    for row in rows:
        change(row)
    pq.write_table(type(table).from_pylist(rows, table.schema), root / EPISODES)


@pytest.mark.parametrize("drift", [0.004, 0.03, -0.04, 0.2])
def test_starts_that_drifted_are_found_by_counting(tmp_path: Path, drift: float) -> None:
    root = write_v30(tmp_path / "set")

    def change(row: dict[str, Any]) -> None:
        if row["episode_index"]:
            row[f"videos/{TOP}/from_timestamp"] += drift
            row[f"videos/{TOP}/to_timestamp"] += drift

    change_episodes(root, change)
    assert first_frames(root) == RIGHT


def test_a_wrong_start_in_a_file_with_other_frames_is_not_guessed(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set")
    # Three frames more than rows: where they stand nobody knows.
    write_video(root / f"videos/{TOP}/chunk-000/file-000.mp4", range(24), gop=4)
    change_episodes(
        root,
        lambda row: row.update(
            {f"videos/{TOP}/from_timestamp": row[f"videos/{TOP}/from_timestamp"] + 46.0}
        ),
    )
    with pytest.raises(DataError, match="nothing usable in 2 episodes"):
        first_frames(root)


@pytest.mark.parametrize(
    "missing", ["timestamp", "frame_index", "episode_index", "index", "task_index"]
)
def test_columns_that_nothing_depends_on_may_be_missing(tmp_path: Path, missing: str) -> None:
    root = write_v21(tmp_path / "set")
    for file in (root / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns([missing]), file)
    assert first_frames(root) == RIGHT


def test_a_clock_that_does_not_start_at_zero_moves_no_frame(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    assert pq.read_table(root / "data/chunk-000/episode_000000.parquet")["timestamp"][
        0
    ].as_py() == pytest.approx(1 / FPS)
    assert first_frames(root) == RIGHT


def test_a_camera_that_is_declared_and_absent(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", cameras=(TOP, WRIST))
    for file in root.rglob(f"*{WRIST}*/*.mp4"):
        file.unlink()
    data = read_set(str(root))
    assert list(data.cameras) == [TOP]
    assert data.absent == (WRIST,)
    assert first_frames(root) == RIGHT
    with pytest.raises(
        DataError, match=f"camera '{WRIST}' is declared, but there is no file of it"
    ):
        first_frames(root, {"front": WRIST})


@pytest.mark.parametrize(
    "wrong",
    [
        {"total_episodes": 7},
        {"total_frames": 1},
        {"total_chunks": 0},
        {"total_videos": 99},
        {"splits": {"train": "0:100"}},
        {"splits": None},
    ],
)
def test_counts_of_the_metadata_decide_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    assert first_frames(write_v21(tmp_path / "set", **wrong)) == RIGHT


def test_a_folder_of_another_name(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    (root / "videos").rename(root / "video")
    assert first_frames(root) == RIGHT


@pytest.mark.parametrize("folder", ["videos_masked", "trash", "video"])
def test_a_missing_video_is_not_taken_from_another_folder(tmp_path: Path, folder: str) -> None:
    root = write_v21(tmp_path / "set")
    file = root / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    write_video(root / folder / file.relative_to(root / "videos"), range(50, 59), gop=4)
    file.unlink()
    assert first_frames(root) == {"000000": RIGHT["000000"]}


def test_a_missing_video_is_not_taken_from_the_usual_place(tmp_path: Path) -> None:
    place = "clean/{video_key}/episode_{episode_index:06d}.mp4"
    root = write_v21(tmp_path / "set", video_path=place)
    (root / f"clean/{TOP}").mkdir(parents=True)
    usual = root / f"videos/chunk-000/{TOP}/episode_000000.mp4"
    usual.rename(root / f"clean/{TOP}/episode_000000.mp4")
    assert first_frames(root) == {"000000": RIGHT["000000"]}


def test_two_pictures_and_sound_in_one_file(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(12, 9))
    for e, n in enumerate((12, 9)):
        path = root / f"videos/chunk-000/{TOP}/episode_{e:06d}.mp4"
        with av.open(str(path), "w") as container:
            streams = [
                container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "4", "g": "4"})
                for _ in range(2)
            ]
            sound = container.add_stream("aac", rate=8000)
            for stream in streams:
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for k in range(n):
                for stream, shown in zip(streams, (number(TOP, e, k), 80 - k), strict=True):
                    picture = np.full((48, 64, 3), level(shown), np.uint8)
                    container.mux(
                        stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
                    )
                tone = av.AudioFrame.from_ndarray(
                    np.zeros((1, 800), np.float32), format="fltp", layout="mono"
                )
                tone.sample_rate = 8000
                container.mux(sound.encode(tone))
            for stream in (*streams, sound):
                container.mux(stream.encode(None))
    assert first_frames(root) == RIGHT


@pytest.mark.parametrize("shape", [[3, 48, 64], [480, 640, 3], [48, 64]])
def test_the_stream_counts_and_not_the_declared_shape(tmp_path: Path, shape: list[int]) -> None:
    root = write_v21(tmp_path / "set")
    file = root / "meta/info.json"
    about = json.loads(file.read_text())
    about["features"][TOP] |= {"shape": shape, "names": None}
    file.write_text(json.dumps(about))
    assert first_frames(root) == RIGHT


@pytest.mark.parametrize("write", [write_v21, write_v30])
@pytest.mark.parametrize("fps", [10.09, 9.92])
def test_a_clock_a_little_off_the_rate_of_the_set_moves_no_frame(
    tmp_path: Path, write: Any, fps: float
) -> None:
    """As 29.97 Hz for 30: within the tolerance at first, another frame half a minute later."""
    lengths = (61, 14) if write is write_v30 else (75,)
    shown = list(range(75))
    root = write(tmp_path / "set", lengths=lengths)
    for file in root.rglob("*.mp4"):
        write_video(file, shown, fps=fps, gop=4)
    if write is write_v30:
        # As its clock says, not as the rows do.
        change_episodes(
            root,
            lambda row: row.update(
                {
                    f"videos/{TOP}/{end}_timestamp": row[f"videos/{TOP}/{end}_timestamp"] * 10 / fps
                    for end in ("from", "to")
                }
            ),
        )
    uri = str(root)
    found = build_manifest([Source(uri=uri)], embodiments={}, window=WINDOW, clip=CLIP)
    assert not found.skipped
    spec = SampleSpec(
        Canvas(layout="single", width=64, height=48), WINDOW, CLIP, {}, {}, 6, False, 0
    )
    rows = found.rows(range(len(found)))
    samples, failed = decode_samples(rows, spec, FileReader())
    assert not failed
    for row, sample in zip(rows, samples, strict=True):
        first = row["start"] + (lengths[0] if "/000001/" in row["sample_id"] else 0)
        assert [frame_number(f) for f in sample["frames"]] == list(range(first, first + 5))


def test_frames_without_an_even_clock_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set")
    path = root / f"videos/chunk-000/{TOP}/episode_000001.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(FPS), options={"crf": "4", "bf": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k in range(9):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), level(k), np.uint8), format="rgb24"
            )
            # As a phone records: slower in the dark, then faster.
            frame.pts, frame.time_base = 150 * min(k, 4) + 50 * max(0, k - 4), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = build_manifest([Source(uri=str(root))], embodiments={}, window=WINDOW, clip=CLIP)
    ((item, reason),) = ((s["item"], s["reason"]) for s in found.skipped)
    assert item == "episode 1"
    assert "is of which row cannot be told; write it at a constant rate" in reason

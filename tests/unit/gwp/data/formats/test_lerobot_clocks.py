"""Videos whose frames lie beside their times: frame k is of row k, or the episode is left out."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.format import FilePart
from gwp.data.formats.pictures import open_frames
from gwp.data.source import Source
from gwp.data.video.decode import open_video
from gwp.data.video.probe import probe
from tests.support.sets import FPS, TOP, frame_number, level, write_v21, write_v30
from tests.unit.gwp.data.formats.test_traps import change_episodes

N = 60
EVEN = np.arange(N) * 100.0


def write_at(path: Path, times_ms: Sequence[float], last_ms: int = 100) -> None:
    """A video of which frame k, of that number, is shown at a time. last_ms: of the last frame"""
    tick = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=1000, options={"crf": "4", "g": "8", "bf": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = tick
        packets: list[Any] = []
        for k, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), level(k), np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = int(time), tick
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for k, packet in enumerate(packets):
            behind = packets[k + 1].dts if k + 1 < len(packets) else packet.dts + last_ms
            packet.duration = int(behind - packet.dts)
            container.mux(packet)


def shown(root: Path) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Numbers of the frames of each usable episode, and why the others are none."""
    reader = FileReader()
    source = Source(uri=str(root))
    data = robots_at(source, reader)
    assert data is not None
    good, bad = usable_episodes(data, source, [TOP], reader)
    found: dict[int, list[int]] = {}
    for episode, _ in good:
        span = episode.videos[TOP]
        rate = span.rate or data.fps
        times = [span.start + k / rate for k in range(episode.length)]
        part = FilePart(str(root / span.file))
        # As near as training asks.
        with open_frames(data.format, part, "", rate, reader, 0.5 / data.fps) as frames:
            found[episode.index] = [frame_number(np.asarray(f)) for _, f in frames(times)]
    return found, {e.index: why for e, why in bad}


@pytest.mark.parametrize("drift", [0.0, 0.09, -0.09, 0.3])
@pytest.mark.parametrize("late", [0.0, 0.4, -0.4, 0.43])
@pytest.mark.parametrize("where", [slice(1, N), slice(20, 30), slice(52, 59)])
def test_a_slow_clock_and_late_frames_together_show_no_neighbour(
    tmp_path: Path, drift: float, late: float, where: slice
) -> None:
    root = write_v21(tmp_path / "set", lengths=(N,))
    times = EVEN * (1 + drift / N)
    times[where] += 100 * late
    write_at(root / f"videos/chunk-000/{TOP}/episode_000000.mp4", times)
    found, bad = shown(root)
    # Neither is where the mean rate of the file is another by its last frames.
    assert found == {0: list(range(N))} or "beside an even" in bad[0] or "runs at" in bad[0]
    assert found or abs(late) > 0.2


@pytest.mark.parametrize(
    ("jitter", "off", "extra"),
    [(0.3, -0.24, 0), (0.3, 0.24, 0), (0.2, 0.35, 4), (0.15, 0.39, 4), (0.0, 0.39, 4)],
)
def test_a_start_beside_its_frame_and_late_frames_show_no_neighbour(
    tmp_path: Path, jitter: float, off: float, extra: int
) -> None:
    root = write_v30(tmp_path / "set", lengths=(25, 25, 25))
    count = 75 + extra
    moved = jitter * np.sin(np.arange(count))
    moved[-1] = 0
    times = 100 * (np.arange(count) + moved)
    write_at(root / f"videos/{TOP}/chunk-000/file-000.mp4", times)

    def change(row: dict[str, Any]) -> None:
        if row["episode_index"]:
            row[f"videos/{TOP}/from_timestamp"] += off / FPS
            row[f"videos/{TOP}/to_timestamp"] += off / FPS

    change_episodes(root, change)
    found, _ = shown(root)
    assert found == {e: list(range(25 * e, 25 * e + 25)) for e in range(3)}


@pytest.mark.parametrize("count", [10, N])
def test_a_last_frame_that_lasts_a_tick_changes_no_rate(tmp_path: Path, count: int) -> None:
    root = write_v21(tmp_path / "set", lengths=(count,))
    file = root / f"videos/chunk-000/{TOP}/episode_000000.mp4"
    write_at(file, EVEN[:count], last_ms=1)
    with open_video(str(file)) as handle:
        info = probe(handle)
    assert (round(info.fps, 6), info.uneven) == (FPS, pytest.approx(0, abs=1e-6))
    assert shown(root) == ({0: list(range(count))}, {})

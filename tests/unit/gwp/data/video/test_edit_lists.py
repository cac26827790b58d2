"""MP4 files whose edit list leaves out what they begin with, as cutting without encoding writes
them: the frames that a player shows, and no others.
"""

from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.video.decode import decode_frames, open_video
from gwp.data.video.probe import probe
from gwp.data.window import ClipWindow, Window
from tests.support.sets import FPS, TOP, frame_number, level, write_v21, write_video

FRAMES = 30
STARTS = (0.0, 0.1, 0.4, 0.5, 0.75, 0.8, 1.6, 2.5)
OPTIONS: tuple[dict[str, str], ...] = ({}, {"bf": "0"}, {"x264-params": "open-gop=1:bframes=3"})


def cut(source: Path, target: Path, seconds: float) -> Path:
    """Without what comes before `seconds`, which stays in the file: as `ffmpeg -ss -c copy`."""
    with av.open(str(source)) as given, av.open(str(target), "w") as taken:
        stream = given.streams.video[0]
        copy = taken.add_stream_from_template(stream)
        assert stream.time_base is not None
        shift = round(seconds / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            packet.dts, packet.pts, packet.stream = packet.dts - shift, packet.pts - shift, copy
            taken.mux(packet)
    return target


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seconds", STARTS)
def test_a_cut_video_has_the_frames_that_are_shown(
    tmp_path: Path, seconds: float, options: dict[str, str]
) -> None:
    whole = write_video(tmp_path / "whole.mp4", range(FRAMES), gop=8, **options)
    path = cut(whole, tmp_path / "cut.mp4", seconds)
    first = ceil(seconds * FPS)
    with open_video(str(path)) as handle:
        info = probe(handle)
        assert (info.frames, info.fps) == (FRAMES - first, FPS)
        times = [k / FPS for k in range(info.frames)]
        shown = [frame_number(frame) for frame in decode_frames(handle, times, 0.5 / FPS)]
        assert shown == list(range(first, FRAMES))
        # Each alone, found by seeking.
        for k, t in enumerate(times):
            (frame,) = decode_frames(handle, [t], 0.5 / FPS)
            assert frame_number(frame) == first + k


def cut_set(root: Path, seconds: float) -> Source:
    """A set whose only video is cut, with as many rows as it shows frames."""
    write_v21(root, lengths=(FRAMES - ceil(seconds * FPS),))
    whole = write_video(root / "whole.mp4", range(FRAMES), gop=8)
    cut(whole, root / f"videos/chunk-000/{TOP}/episode_000000.mp4", seconds)
    return Source(uri=str(root))


WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


# Before the first, later frames need one that is left out.
@pytest.mark.parametrize("first", [4, 13])
def test_rows_and_frames_of_a_cut_video_belong_together(tmp_path: Path, first: int) -> None:
    source = cut_set(tmp_path / "set", first / FPS)
    manifest = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
    assert not manifest.skipped
    canvas = Canvas(layout="single", width=64, height=48)
    spec = SampleSpec(canvas, WINDOW, CLIP, {}, {}, 4, False, 0)
    rows = manifest.rows(range(len(manifest)))
    samples, failed = decode_samples(rows, spec, FileReader())
    assert not failed
    for row, sample in zip(rows, samples, strict=True):
        shown = [frame_number(frame) for frame in sample["frames"]]
        assert shown == [first + row["start"] + k for k in range(5)]


@pytest.mark.parametrize("shift", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("reordered", [0, 1, 2, 3])
@pytest.mark.parametrize("gop", [6, 250])
def test_frames_in_another_order_are_those_that_are_shown(
    tmp_path: Path, shift: int, reordered: int, gop: int
) -> None:
    path = tmp_path / "cut.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", FPS, options={"bf": str(reordered), "g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level(k), np.uint8))
            # What lies before 0 is left out by the edit list that the writer makes.
            frame.pts, frame.time_base = k - shift, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with open_video(str(path)) as handle:
        info = probe(handle)
        assert (info.frames, info.fps) == (FRAMES - shift, FPS)
        assert info.uneven < 0.1
        for k in range(info.frames):
            (frame,) = decode_frames(handle, [k / FPS], 0.1 / FPS)
            assert frame_number(frame) == k + shift

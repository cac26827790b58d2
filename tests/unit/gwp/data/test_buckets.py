"""Clips of several shapes: which one a video gets, how many fill a batch, and that its samples
have it.
"""

import numpy as np
import pytest
from pydantic import ValidationError

from gwp.data.buckets import Bucket, batch_sizes, tile
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from tests.support.sets import frame_number, write_video

WIDE, TALL, LONG, BIG = (
    Bucket(frames=f, height=h, width=w)
    for f, h, w in ((5, 24, 32), (5, 32, 24), (13, 24, 32), (5, 48, 64))
)
WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


def test_no_batch_costs_more_tokens_than_the_first() -> None:
    sizes = batch_sizes((WIDE, TALL, LONG, BIG), 32, 4)
    assert sizes == (32, 32, 16, 8)
    assert all(
        n * b.cost <= 32 * WIDE.cost for n, b in zip(sizes, (WIDE, TALL, LONG, BIG), strict=True)
    )
    with pytest.raises(
        ValueError, match=r"bucket 5x48x64: 2 samples fit .* lower data.batch_multiple"
    ):
        batch_sizes((WIDE, BIG), 8, 4)
    with pytest.raises(ValidationError, match=r"4n\+1"):
        Bucket(frames=6, height=8, width=8)


def test_clips_tile_a_video_with_the_longest_that_fits() -> None:
    # 13 frames at 5 Hz reach 2.4 s, the next clip starts at 2.6 s; 5 frames reach 0.8 s.
    assert tile((WIDE, TALL, LONG), 640, 480, 3.5, 5) == [(0.0, 2), (2.6, 0)]
    assert tile((WIDE, LONG), 640, 480, 2.3, 5) == [(0.0, 0), (1.0, 0)]
    assert tile((WIDE, LONG), 640, 480, 0.7, 5) == []


def test_aspect_decides_before_size_and_nothing_is_enlarged_without_need() -> None:
    assert tile((WIDE, TALL), 480, 640, 0.8, 5) == [(0.0, 1)]
    assert tile((WIDE, BIG), 64, 48, 0.8, 5) == [(0.0, 1)]
    assert tile((WIDE, BIG), 60, 45, 0.8, 5) == [(0.0, 0)]
    assert tile((WIDE, BIG), 16, 12, 0.8, 5) == [(0.0, 0)]


def test_samples_have_the_shape_of_their_bucket(tmp_path) -> None:
    write_video(tmp_path / "a.mp4", range(20), size=(64, 48))
    write_video(tmp_path / "b.mp4", range(20, 40), size=(48, 64))
    buckets = (LONG, WIDE, TALL)
    found = build_manifest(
        [Source(uri=str(tmp_path))],
        embodiments={},
        window=WINDOW,
        clip=ClipWindow(frames=5, fps=10),
        buckets=buckets,
    )
    assert found.table["bucket"].to_pylist() == [1, 2, 3, 3, 3, 3]
    spec = SampleSpec(
        canvas=Canvas(layout="single", width=8, height=8),
        window=WINDOW,
        clip=ClipWindow(frames=5, fps=10),
        embodiments={},
        stats={},
        model_dim=3,
        augment=False,
        seed=0,
        buckets=buckets,
    )
    samples, failed = decode_samples(found.table.to_pylist(), spec, FileReader())
    assert not failed
    assert [s["frames"].shape[:3] for s in samples] == [(13, 24, 32), (5, 24, 32)] + [
        (5, 32, 24)
    ] * 4
    assert [frame_number(f) for f in samples[1]["frames"]] == [13, 14, 15, 16, 17]
    assert [frame_number(f) for f in samples[3]["frames"]] == [25, 26, 27, 28, 29]
    assert (
        build_manifest(
            [Source(uri=str(tmp_path))], embodiments={}, window=WINDOW, clip=CLIP
        ).fingerprint
        != found.fingerprint
    )
    assert len(np.unique(found.files)) == 2

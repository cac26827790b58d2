"""Plain videos: captions, clips without overlap, what cannot be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import set_at
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.source import Source
from gwp.data.text import text_hash
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.sets import SHARED, frame_number, write_v21, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
SPEC = SampleSpec(Canvas(layout="single", width=32, height=32), WINDOW, CLIP, {}, {}, 4, False, 0)


def build(uri: Path | str, **fields: Any) -> Manifest:
    return build_manifest(
        [Source(uri=str(uri), **fields)], embodiments={}, window=WINDOW, clip=CLIP
    )


def test_captions_by_any_name_of_the_file(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.mp4", "c.mkv", "d.mp4"):
        write_video(tmp_path / name, range(10))
    lines = [
        '{"file": "a.mp4", "path": "where/it/came/from.mp4", "caption": "first"}',
        "",
        '{"path": "sub/b.mp4", "text": "second"}',
        '{"file_name": "elsewhere/c.mkv", "caption": "third"}',
        '{"file": "gone.mp4"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = set_at(Source(uri=str(tmp_path)))
    assert {c.name: c.caption for c in found.clips} == {
        "a.mp4": "first",
        "sub/b.mp4": "second",
        "c.mkv": "third",
        "d.mp4": "",
    }
    assert build(tmp_path).skipped == (
        {
            "uri": str(tmp_path),
            "item": "gone.mp4",
            "reason": "named in metadata.jsonl, but there is no such video",
            "broken": False,
        },
    )
    assert [c.caption for c in set_at(Source(uri=str(tmp_path / "a.mp4"))).clips] == ["first"]


@pytest.mark.parametrize("line", ['{"file": ', "[1]"])
def test_a_table_without_an_object_is_refused(tmp_path: Path, line: str) -> None:
    write_video(tmp_path / "a.mp4", range(10))
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(DataError, match=r"metadata.jsonl:1: not a JSON object"):
        set_at(Source(uri=str(tmp_path)))
    # Beside sound ones it costs itself.
    (tmp_path / "metadata.jsonl").write_text(f'{{"file": "a.mp4", "text": "A"}}\n{line}\n')
    found = set_at(Source(uri=str(tmp_path)))
    assert [c.caption for c in found.clips] == ["A"]
    what = "not a JSON object; write one object per line; left out"
    assert found.remarks == (("metadata.jsonl:line 2", what),)


def test_clips_follow_one_another_at_the_common_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", range(36), fps=10)
    manifest = build(tmp_path)
    samples, failures = decode_samples(
        manifest.rows(range(manifest.table.num_rows)), SPEC, FileReader()
    )
    assert not failures
    # 5 frames at 5 Hz of a video at 10 Hz: every second frame, the next clip 1 s later; the
    # fourth would end at frame 38.
    assert [[frame_number(f) for f in s["frames"]] for s in samples] == [
        [0, 2, 4, 6, 8],
        [10, 12, 14, 16, 18],
        [20, 22, 24, 26, 28],
    ]
    ids = [s["sample_id"].rsplit("/", 2)[1:] for s in samples]
    assert ids == [["a.mp4", "00000000"], ["a.mp4", "00001000"], ["a.mp4", "00002000"]]


def test_slow_video_repeats_its_nearest_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", range(4), fps=4)
    samples, _ = decode_samples(build(tmp_path).rows([0]), SPEC, FileReader())
    assert [frame_number(f) for f in samples[0]["frames"]] == [0, 1, 2, 2, 3]


def test_samples_of_plain_videos_have_no_actions(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", range(12))
    manifest = build(tmp_path, task="look  around")
    (sample,), _ = decode_samples(manifest.rows([0]), SPEC, FileReader())
    assert not sample["has_action"]
    assert not sample["step_valid"].any()
    assert not sample["dim_valid"].any()
    assert not sample["state"].any()
    assert not sample["actions"].any()
    assert (sample["actions"].shape, sample["state"].shape) == ((4, 4), (4,))
    assert manifest.texts() == {text_hash("look around"): "look around"}
    assert sample["text_key"] == text_hash("look around")


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", range(12))
    write_video(tmp_path / "short.mp4", range(5))
    raw = write_video(
        tmp_path / "cut.mp4", np.random.default_rng(0).integers(0, 80, 30).tolist()
    ).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    reasons = {s["item"]: s["reason"] for s in build(tmp_path).skipped}
    assert set(reasons) == {"short.mp4", "cut.mp4"}
    assert "shorter than a clip" in reasons["short.mp4"]
    assert "truncated" in reasons["cut.mp4"]


def test_chosen_files(tmp_path: Path) -> None:
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", range(10))
    chosen = build(tmp_path, episodes="0,2:4").table["sample_id"].to_pylist()
    assert [i.split("/")[1] for i in chosen] == ["a.mp4", "c.mp4", "d.mp4"]
    with pytest.raises(DataError, match=r"no episode in 7:9; there are 0 to 3"):
        build(tmp_path, episodes="7:9")
    for bad in ("x", "3:1", "1,,2"):
        with pytest.raises(ValidationError, match="cannot read"):
            Source(uri="a", episodes=bad)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing there"):
        build(tmp_path)


def test_clips_and_robot_samples_of_one_mixture_have_equal_lengths(tmp_path: Path) -> None:
    write_video(tmp_path / "clips/a.mp4", range(40))
    sources = [Source(uri=str(tmp_path / "clips")), Source(uri=str(write_v21(tmp_path / "set")))]
    with pytest.raises(DataError, match=r"set clip.frames to 5"):
        build_manifest(sources, embodiments={}, window=WINDOW, clip=ClipWindow(frames=9, fps=5))
    assert set(
        build_manifest(sources, embodiments={}, window=WINDOW, clip=CLIP).table["kind"].to_pylist()
    ) == {"clip", "robot"}


@pytest.mark.parametrize("folder", ["clips", "embodied"])
def test_real_videos(folder: str) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"needs the sample videos {folder}")
    manifest = build(SHARED / folder)
    assert not manifest.skipped
    assert all(manifest.texts().values())
    last = [
        i
        for i, v in enumerate(manifest.table["views"].to_pylist())
        if i % 9 == 8 or "mkv" in v[0]["uri"]
    ]
    samples, failures = decode_samples(manifest.rows(last), SPEC, FileReader())
    assert not failures
    assert all(s["frames"].std() > 1 for s in samples)


def test_too_large_a_share_of_broken_videos_is_an_error(tmp_path: Path) -> None:
    for name in "abcd":
        write_video(tmp_path / f"{name}.mp4", range(20))
    (tmp_path / "d.mp4").write_bytes(b"no video")
    # An entry without a video and a clip that is too short are no broken data.
    (tmp_path / "metadata.jsonl").write_text('{"file": "gone.mp4", "caption": "x"}\n')
    found = build_manifest(
        [Source(uri=str(tmp_path))], embodiments={}, window=WINDOW, clip=CLIP, max_broken=0.25
    )
    assert [s["broken"] for s in found.skipped] == [False, True]
    with pytest.raises(
        DataError,
        match=r"1 of 4 episodes or videos are broken, .* 0.2 allows \(d.mp4: .*raise data.max",
    ):
        build_manifest(
            [Source(uri=str(tmp_path))], embodiments={}, window=WINDOW, clip=CLIP, max_broken=0.2
        )

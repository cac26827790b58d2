"""Shots, motion and hashes of plain videos, and the clips that are chosen by them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gwp.data.buckets import Bucket
from gwp.data.plan.curate import CurationConfig, Curator
from gwp.data.plan.manifest import Manifest, build_manifest
from gwp.data.source import Source
from gwp.data.video.decode import decode_frames, open_video
from gwp.data.video.shots import Look, look
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.sets import SHARED, write_pictures, write_video

CLIP = ClipWindow(frames=5, fps=5)
BASES = (40, 100, 160, 215)
"""Mean levels of scenes, far enough apart to tell which scene a decoded frame is of."""


def scene(
    seed: int, frames: int, speed: float = 0.4, size: tuple[int, int] = (48, 64)
) -> list[np.ndarray]:
    """A window that slides `speed` pixels a frame over a soft random pattern of mean level
    BASES[seed % 4].
    """
    rng = np.random.default_rng(seed)
    height, width = size
    grid = np.repeat(np.repeat(rng.uniform(-30, 30, (height // 6 + 1, width // 2, 3)), 6, 0), 6, 1)
    soft = (
        np.roll(grid, 2, 1)
        + grid
        + np.roll(grid, -2, 1)
        + np.roll(grid, 2, 0)
        + np.roll(grid, -2, 0)
    ) / 5
    soft += BASES[seed % 4] - soft.mean()
    places = np.arange(width)
    columns = [places + k * speed for k in range(frames)]
    return [
        np.stack(
            [
                [np.interp(c, np.arange(soft.shape[1]), row) for row in soft[:height, :, i]]
                for i in range(3)
            ],
            -1,
        ).astype(np.uint8)
        for c in columns
    ]


def spans(path: Path) -> list[list[int]]:
    seen: Look = look(str(path))
    return seen.spans.tolist()


def build(
    uri: Path,
    curate: CurationConfig | None,
    clip: ClipWindow = CLIP,
    buckets: Sequence[Bucket] = (),
    **fields: Any,
) -> Manifest:
    sources, window = [Source(uri=str(uri), **fields)], Window(chunk=4, stride=1)
    return build_manifest(
        sources, embodiments={}, window=window, clip=clip, buckets=buckets, curate=curate
    )


def names(manifest: Manifest) -> list[str]:
    return [i.split("/", 1)[1] for i in manifest.table["sample_id"].to_pylist()]


@pytest.mark.parametrize(
    ("suffix", "fps", "options"),
    [
        (".mp4", 25, {}),
        (".mkv", 10, {"crf": "30"}),
        (".mp4", 60, {"bf": "3", "crf": "26"}),
        (".mkv", 23.976, {"sc_threshold": "0"}),
    ],
)
def test_hard_cuts_are_found_at_their_frame(
    tmp_path: Path, suffix: str, fps: float, options: dict[str, str]
) -> None:
    lengths = [13, 40, 5, 22, 31]
    pictures = [p for i, n in enumerate(lengths) for p in scene(i, n)]
    path = write_pictures(tmp_path / f"a{suffix}", pictures, fps, **options)
    edges = np.cumsum([0, *lengths]).tolist()
    assert spans(path) == [list(s) for s in pairwise(edges)]
    shots = look(str(path)).shots
    assert [(round(s.start_s * fps), round(s.end_s * fps)) for s in shots] == list(pairwise(edges))


def faded(picture: np.ndarray, share: float) -> np.ndarray:
    return (16 + (picture - 16.0) * share).astype(np.uint8)


def test_changes_of_light_are_no_cuts(tmp_path: Path) -> None:
    pictures = scene(2, 72, speed=0)
    down = np.concatenate(
        [np.ones(12), np.linspace(1, 0.3, 24), np.linspace(0.3, 1, 24), np.ones(12)]
    )
    videos = {
        "fade": [faded(p, s) for p, s in zip(pictures, down, strict=True)],
        "flicker": [faded(p, 1 - 0.25 * (k % 2)) for k, p in enumerate(pictures)],
        "lamp": [faded(p, 0.5 if k < 30 else 1) for k, p in enumerate(pictures)],
        "flash": [np.full_like(p, 250) if k in (30, 31, 50) else p for k, p in enumerate(pictures)],
        "torn": [np.roll(p, 24, 0) if 30 <= k < 33 else p for k, p in enumerate(pictures)],
        "pan": scene(2, 72, speed=3, size=(48, 96)),
    }
    found = {n: spans(write_pictures(tmp_path / f"{n}.mp4", v, 24)) for n, v in videos.items()}
    assert {n: s for n, s in found.items() if s != [[0, 72]]} == {}


@pytest.mark.parametrize(("length", "fps"), [(8, 24), (16, 24), (32, 24), (20, 10)])
def test_dissolves_belong_to_no_shot(tmp_path: Path, length: int, fps: float) -> None:
    a, b, black = scene(0, 70), scene(3, 70), [np.full((48, 64, 3), 16, np.uint8)] * 70
    weights = np.linspace(0, 1, length + 2)[1:-1]
    for n, (x, y) in enumerate([(a, b), (b, black), (black, b)]):
        blend = [
            ((1 - w) * p + w * q).astype(np.uint8)
            for w, p, q in zip(weights, x[30:], y, strict=False)
        ]
        found = spans(
            write_pictures(tmp_path / f"{n}.mp4", [*x[:30], *blend, *y[length : length + 30]], fps)
        )
        assert len(found) == 2
        (first, end), (start, last) = found
        assert (first, last) == (0, 60 + length)
        # The middle of the blend is out, and little more than the blend.
        assert 30 - length / 4 <= end <= 30 + length / 2 <= start <= 30 + 5 * length / 4


def test_motion_is_speed_whatever_the_light_and_the_frame_rate(tmp_path: Path) -> None:
    def motion(name: str, pictures: list[np.ndarray], fps: float) -> float:
        (shot,) = look(str(write_pictures(tmp_path / f"{name}.mp4", pictures, fps))).shots
        return shot.motion

    still = motion("still", scene(1, 40, speed=0), 20)
    slow, fast = (
        motion("slow", scene(1, 40, speed=0.2), 20),
        motion("fast", scene(1, 40, speed=0.6), 20),
    )
    assert still < 0.1 < 1 < slow < fast
    assert motion("half", scene(1, 20, speed=1.2), 10) == pytest.approx(fast, rel=0.2)
    # Overall brightness falls by 40 levels in the two seconds, five in every quarter.
    darker = [
        np.clip(p.astype(int) - k, 0, 255).astype(np.uint8)
        for k, p in enumerate(scene(1, 40, speed=0))
    ]
    assert motion("darker", darker, 20) < 0.5


def half(picture: np.ndarray) -> np.ndarray:
    """Mean of every 2 x 2 pixels."""
    return picture.reshape(picture.shape[0] // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)


def test_hashes_survive_coding_and_tell_scenes_apart(tmp_path: Path) -> None:
    def hashes(name: str, pictures: list[np.ndarray], **options: str) -> np.ndarray:
        return look(str(write_pictures(tmp_path / f"{name}.mp4", pictures, **options))).hashes

    pictures = scene(1, 10, size=(96, 128))
    good, poor = hashes("good", pictures), hashes("poor", [half(p) for p in pictures], crf="32")
    other = hashes("other", scene(5, 10))
    assert np.bitwise_count(good ^ poor).max() <= 8
    assert np.bitwise_count(good ^ other).min() >= 16
    flat = [hashes(str(n), [np.full((48, 64, 3), n, np.uint8)] * 4) for n in (20, 200)]
    assert len(np.unique(np.concatenate(flat))) == 1


@pytest.mark.parametrize("fps", [7, 10, 23.976, 30])
@pytest.mark.parametrize("clip", [CLIP, ClipWindow(frames=5, fps=16), ClipWindow(frames=9, fps=8)])
def test_no_clip_shows_two_shots_and_each_shot_is_used_up(
    tmp_path: Path, fps: float, clip: ClipWindow
) -> None:
    rng = np.random.default_rng(int(fps))
    lengths = rng.integers(6, 40, 4).tolist()
    path = write_pictures(
        tmp_path / "a.mkv", [p for i, n in enumerate(lengths) for p in scene(i, n)], fps
    )
    manifest = build(tmp_path, CurationConfig(shots=True), clip)
    starts = [v[0]["start_s"] for v in manifest.table["views"].to_pylist()]
    offsets, period = [k / clip.fps for k in range(clip.frames)], clip.frames / clip.fps
    with open_video(str(path)) as handle:
        frames = decode_frames(handle, [s + t for s in starts for t in offsets])
    of = np.abs(frames.mean((1, 2, 3))[:, None] - BASES).argmin(1).reshape(-1, clip.frames)
    assert (of == of[:, :1]).all()
    times = look(str(path)).times
    edges = np.cumsum([0, *lengths])
    ends = [*((times[edges[1:-1]] + times[edges[1:-1] - 1]) / 2), times[-1] + 0.5 / fps]
    expected, short = [], 0
    for start, end in zip(times[edges[:-1]], ends, strict=True):
        fits = [
            start + k * period for k in range(100) if start + k * period + offsets[-1] < end - 1e-6
        ]
        expected += fits
        short += not fits
    assert starts == pytest.approx(expected)
    reason = f"{short} of 4 shots are shorter than a clip of {offsets[-1]:.2f} s"
    assert manifest.skipped == (
        ({"uri": str(tmp_path), "item": "a.mkv", "reason": reason, "broken": False},)
        if short
        else ()
    )


def test_a_shot_is_filled_from_buckets_of_several_lengths(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mp4", [*scene(0, 29), *scene(1, 6), *scene(2, 12)])
    sizes = (Bucket(frames=9, height=48, width=64), Bucket(frames=5, height=48, width=64))
    manifest = build(tmp_path, CurationConfig(shots=True), buckets=sizes)
    # At 5 Hz 9 frames are 1.6 s and the next clip begins after 1.8 s, 5 frames are 0.8 s and 1
    # s; the shots last 2.9, 0.6 and 1.2 s.
    assert names(manifest) == ["a.mp4/00000000", "a.mp4/00001800", "a.mp4/00003500"]
    assert manifest.table["bucket"].to_pylist() == [1, 2, 2]
    assert [s["reason"] for s in manifest.skipped] == [
        "1 of 3 shots are shorter than a clip of 0.80 s"
    ]
    assert (
        len(
            names(
                build(
                    tmp_path,
                    CurationConfig(shots=True, near_duplicates=4, min_motion=0.1),
                    buckets=sizes,
                )
            )
        )
        == 3
    )


def test_still_clips_are_dropped_and_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a.mp4", [*scene(0, 30), *scene(1, 20, speed=0)])
    write_pictures(tmp_path / "b.mp4", scene(3, 20, speed=0))
    manifest = build(tmp_path, CurationConfig(shots=True, min_motion=0.5))
    assert names(manifest) == ["a.mp4/00000000", "a.mp4/00001000", "a.mp4/00002000"]
    assert [(s["item"], s["reason"]) for s in manifest.skipped] == [
        ("a.mp4", "2 of 5 clips have less motion than 0.5"),
        ("b.mp4", "2 of 2 clips have less motion than 0.5"),
    ]
    with pytest.raises(
        DataError,
        match=r"nothing usable in 1 episodes or videos \(b.mp4: 2 of 2 clips have less motion than 0.5\)",
    ):
        build(tmp_path, CurationConfig(min_motion=0.5), episodes="1")


def test_copies_are_dropped_and_other_videos_stay(tmp_path: Path) -> None:
    pictures = [*scene(0, 22, size=(96, 128)), *scene(1, 22, size=(96, 128))]
    write_pictures(tmp_path / "a.mp4", pictures)
    # Half the size, lower quality, the beginning cut off: with shots, clips of the second shot
    # meet again.
    write_pictures(tmp_path / "b.mkv", [half(p) for p in pictures[16:]], crf="28")
    write_pictures(tmp_path / "c.mp4", scene(5, 22))
    manifest = build(tmp_path, CurationConfig(shots=True, near_duplicates=8))
    assert names(manifest) == [
        "a.mp4/00000000",
        "a.mp4/00001000",
        "a.mp4/00002200",
        "a.mp4/00003200",
        "c.mp4/00000000",
        "c.mp4/00001000",
    ]
    assert [(s["item"], s["reason"]) for s in manifest.skipped] == [
        ("b.mkv", "1 of 2 shots are shorter than a clip of 0.80 s"),
        ("b.mkv", "2 of 2 clips are near duplicates of earlier videos"),
    ]
    assert len(names(build(tmp_path, CurationConfig(shots=True)))) == 8


def test_a_scene_that_stays_is_no_copy_of_itself_but_of_another_source(tmp_path: Path) -> None:
    still = scene(0, 40, speed=0)
    for folder in ("one", "two"):
        write_pictures(tmp_path / folder / "a.mp4", still)
    rules = CurationConfig(near_duplicates=0)
    assert len(names(build(tmp_path / "one", rules))) == 4
    both = [Source(uri=str(tmp_path / f)) for f in ("one", "two")]
    with pytest.raises(DataError, match=r"two: nothing usable .* 4 of 4 clips are near duplicates"):
        build_manifest(
            both, embodiments={}, window=Window(chunk=4, stride=1), clip=CLIP, curate=rules
        )


def test_without_rules_nothing_changes_and_rules_are_part_of_the_fingerprint(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path / "a.mp4", [*scene(0, 17), *scene(1, 18)])
    plain, idle, used = (
        build(tmp_path, c) for c in (None, CurationConfig(), CurationConfig(shots=True))
    )
    assert plain.rule.keys() == used.rule.keys() - {"curate"}
    assert plain.table.equals(idle.table)
    assert names(used) == ["a.mp4/00000000", "a.mp4/00001700"]
    assert len({m.fingerprint for m in (plain, idle, used)}) == 3
    used.save(str(tmp_path / "m.parquet"))
    assert (
        Manifest.load(str(tmp_path / "m.parquet")).fingerprint
        == used.fingerprint
        == build(tmp_path, CurationConfig(shots=True)).fingerprint
    )


def test_what_cannot_be_read_is_named_with_rules_too(tmp_path: Path) -> None:
    write_pictures(tmp_path / "good.mp4", scene(0, 20))
    raw = write_video(
        tmp_path / "cut.mp4", np.random.default_rng(0).integers(0, 80, 30).tolist()
    ).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) // 2])
    write_pictures(tmp_path / "one.mkv", scene(1, 1))
    reasons = {
        s["item"]: s["reason"]
        for s in build(tmp_path, CurationConfig(shots=True, min_motion=0.1)).skipped
    }
    assert set(reasons) == {"cut.mp4", "one.mkv"}
    assert "truncated" in reasons["cut.mp4"]
    assert "1 of 1 shots" in reasons["one.mkv"]


def test_another_motion_before_the_same_fixed_camera_is_no_copy(tmp_path: Path) -> None:
    room, thing = scene(0, 1)[0], scene(3, 1)[0]
    for name, speed in (("a", 1), ("b", 4), ("c", 1)):
        pictures = [room.copy() for _ in range(20)]
        for k, p in enumerate(pictures):
            at = k * speed % 56
            p[40:44, at : at + 6] = thing[40:44, at : at + 6]
        write_pictures(tmp_path / f"{name}.mp4", pictures, crf="20" if name == "c" else "4")
    assert {
        n.split("/")[0] for n in names(build(tmp_path, CurationConfig(near_duplicates=32)))
    } == {"a.mp4", "b.mp4"}


def test_copies_are_found_among_many(tmp_path: Path) -> None:
    rules, clips = CurationConfig(near_duplicates=4), []
    looks = [look(str(write_pictures(tmp_path / f"{n}.mp4", scene(n, 20)))) for n in range(4)]
    curator = Curator(CLIP, (), rules)
    for _ in range(2):
        clips += [len(curator.choose(seen).clips) for seen in looks]
        # More than it first has room for.
        for seen in looks * 40:
            other = (
                np.random.default_rng(len(clips))
                .integers(0, 1 << 63, seen.hashes.shape)
                .astype(np.uint64)
            )
            clips.append(
                len(curator.choose(replace(seen, hashes=other ^ np.uint64(len(clips)))).clips)
            )
    assert clips[:164] == [2] * 164
    assert clips[164:168] == [0] * 4


@pytest.mark.parametrize("bad", [{"min_motion": -1}, {"near_duplicates": 33}, {"shot": True}])
def test_rules_that_mean_nothing(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CurationConfig(**bad)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("clips/nasa_13013.mp4", {202}),
        ("clips/sintel_clip_10s.mp4", {214}),
        ("clips/bigbuckbunny.mp4", set()),
        ("clips/intel_bottle.mp4", set()),
        ("clips/intel_asl_walk.mkv", set()),
        ("embodied/droid_ext1.mp4", set()),
        ("embodied/droid_wrist.mp4", set()),
    ],
)
def test_real_videos(name: str, cuts: set[int]) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs the sample video {name}")
    seen = look(str(SHARED / name))
    # The two others of the trailer and of the hall are fades and a dissolve.
    assert set(seen.spans[1:, 0].tolist()) & set(seen.spans[:, 1].tolist()) == cuts
    assert len(seen.spans) == {"clips/nasa_13013.mp4": 3, "clips/sintel_clip_10s.mp4": 4}.get(
        name, 1
    )
    assert all(s.motion < 0.2 for s in seen.shots if "sintel" in name and 4 < s.start_s < 6)

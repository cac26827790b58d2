"""One stream from sets of different robots, formats, cameras, rates and widths."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.plan.plan import Rules, plan_slice
from gwp.data.source import Source
from gwp.data.stats.normalise import Normalizer, compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support.other_sets import write_aloha
from tests.support.sets import (
    TOP,
    WRIST,
    episode_values,
    frame_number,
    number,
    write_v21,
    write_video,
)

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
CANVAS = Canvas(layout="t", width=64, height=96, missing="grey")
WIDE = ("action", "observations/qvel")


def test_every_sample_of_a_mixture_is_of_its_own_robot(tmp_path: Path) -> None:
    write_v21(tmp_path / "lerobot", cameras=(TOP, WRIST))
    write_aloha(tmp_path / "aloha")
    write_video(tmp_path / "clips/a.mp4", range(60))
    aloha: dict[str, Any] = {
        "uri": str(tmp_path / "aloha"),
        "fps": 20,
        "action": WIDE,
        "cameras": {"front": TOP},
    }
    sources = [
        Source(uri=str(tmp_path / "lerobot"), embodiment="arm"),
        Source(embodiment="duo", resample=True, weight=2, **aloha),
        # The same recordings as another robot: at their own rate, with a horizon of half the
        # seconds.
        Source(embodiment="fast", weight=0.5, **aloha),
        Source(uri=str(tmp_path / "clips")),
    ]
    sets = [robots_at(source) for source in sources]
    arm = embodiment_of(
        sets[0], "arm", 4, 2, cameras={"front": TOP, "right": WRIST}, delta_mask=(True, False)
    )  # type: ignore[arg-type]
    fast = embodiment_of(sets[2], "fast", 4, 2, cameras={"front": TOP}, id=2)  # type: ignore[arg-type]
    duo = fast.model_copy(
        update={"name": "duo", "id": 1, "fps": 10, "resample": ("linear", "hold", *["linear"] * 3)}
    )
    robots = {"arm": arm, "duo": duo, "fast": fast}
    found = build_manifest(sources, embodiments=robots, window=WINDOW, clip=CLIP)
    stats = {
        r.name: compute_stats([s], r, WINDOW)
        for s, r in zip(sources, (arm, duo, fast), strict=False)
    }
    spec = SampleSpec(CANVAS, WINDOW, CLIP, robots, stats, 8, False, 0)

    batches = plan_slice(found, 0, 0, 60, Rules.even(4, 2))
    source = found.column("source")
    assert all(len({int(source[i]) == 3 for i in batch}) == 1 for batch in batches)
    shown = Counter(source[np.concatenate(batches)].tolist())
    # Per epoch 21 x 1, 11 x 2 and 21 x 0.5 labelled samples, 6 clips.
    weights = np.array([21, 22, 10.5, 6])
    np.testing.assert_allclose([shown[i] for i in range(4)], weights / weights.sum() * 240, atol=8)

    samples, failed = decode_samples(found.rows(range(len(found))), spec, FileReader())
    assert not failed
    normal = {name: Normalizer(stats[name], robots[name]) for name in robots}
    for sample, where in zip(samples, source, strict=True):
        assert (sample["frames"].shape, sample["state"].shape, sample["actions"].shape) == (
            (5, 96, 64, 3),
            (8,),
            (4, 8),
        )
        wide = [2, 5, 5, 0][where]
        assert sample["dim_valid"].tolist() == [True] * wide + [False] * (8 - wide)
        assert not sample["actions"][:, wide:].any()
        assert sample["view_valid"].tolist() == (
            [True, False, True] if where == 0 else [True, False, False]
        )
        assert (sample["embodiment_id"], sample["has_action"]) == ([0, 1, 2, 0][where], where < 3)
        if where == 3:
            continue
        episode, k = (int(x) for x in sample["sample_id"].split("/")[1:])
        rows, every = (12, 9)[episode], 2 if where == 1 else 1
        at = [min((k + i) * every, (rows - 1) // every * every) for i in range(5)]
        top = sample["frames"][:, :48] if where == 0 else sample["frames"]
        assert [frame_number(f) for f in top] == [number(TOP, episode, i) for i in at]
        if where == 0:
            # No left camera: that part is an even grey.
            assert (sample["frames"][:, 48:, :32] == 128).all()
        state, action = episode_values(episode, rows)
        name = ("arm", "duo", "fast")[where]
        wanted = (
            action[at[:4]] if where == 0 else np.concatenate([action[at[:4]], np.zeros((4, 3))], 1)
        )
        np.testing.assert_allclose(sample["state"][:3], normal[name].state(state[at[0]]), atol=1e-4)
        np.testing.assert_allclose(
            sample["actions"][:, :wide], normal[name].actions(wanted, state[at[0]]), atol=1e-4
        )


def test_a_robot_that_nobody_described_is_an_error(tmp_path: Path) -> None:
    source = Source(uri=str(write_v21(tmp_path / "set")), embodiment="humanoid")
    with pytest.raises(DataError, match="embodiment 'humanoid' is not described; known: none"):
        build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)


def test_episodes_shorter_than_a_window_are_clamped_with_labels_and_left_out_without(
    tmp_path: Path,
) -> None:
    uri = str(write_v21(tmp_path / "set", lengths=(3, 9)))
    data = robots_at(Source(uri=uri))
    assert data is not None
    arm = embodiment_of(data, "arm", 4, 2)
    labelled = build_manifest(
        [Source(uri=uri, embodiment="arm")], embodiments={"arm": arm}, window=WINDOW, clip=CLIP
    )
    stats = compute_stats([Source(uri=uri, embodiment="arm")], arm, WINDOW)
    spec = SampleSpec(
        Canvas(layout="single", width=64, height=48),
        WINDOW,
        CLIP,
        {"arm": arm},
        {"arm": stats},
        6,
        False,
        0,
    )
    samples, failed = decode_samples(labelled.rows([0, 2]), spec, FileReader())
    assert not failed
    assert [s["step_valid"].tolist() for s in samples] == [
        [True] * 3 + [False],
        [True] + [False] * 3,
    ]
    assert [[frame_number(f) for f in s["frames"]] for s in samples] == [[0, 1, 2, 2, 2], [2] * 5]
    plain = build_manifest([Source(uri=uri)], embodiments={}, window=WINDOW, clip=CLIP)
    assert len(plain) == 9 - 4
    assert [(s["item"], s["reason"], s["broken"]) for s in plain.skipped] == [
        ("episode 0", "3 steps are shorter than a window of 5", False)
    ]

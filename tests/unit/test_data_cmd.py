"""`gwp data`: what it says about a set, and the statistics that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from gwp.data.stats import Stats
from pipelines.cli import main
from tests.sets import TOP, WRIST, write_v21, write_v30, write_video


def test_inspect_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_v30(tmp_path / "set", cameras=(TOP, WRIST))
    write_video(root / f"videos/{WRIST}/chunk-000/file-001.mp4", range(3))
    assert main(["data", "inspect", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["episodes"], found["usable"], found["frames"], found["fps"]) == ("LeRobot v3.0", 2, 1, 21, 10)
    assert found["cameras"][0] == {"camera": TOP, "width": 64, "height": 48, "fps": 10, "codec": "h264", "gop": 4}
    assert found["state"] == ["x", "y", "grip"]
    assert list(found["tasks"].values()) == [2]
    assert found["problems"][0]["item"] == "episode 1"
    assert main(["data", "inspect", str(root)]) == 0
    text = capsys.readouterr().out
    assert "1 of 2 episodes usable, 21 frames" in text
    assert "left out:\n  episode 1: " in text


def test_inspect_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", range(10))
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    assert main(["data", "inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1 of 2 videos usable, 10 frames" in text
    assert "b.mp4: cannot be read as a video" in text


def test_inspect_what_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path)]) == 2
    root = write_v21(tmp_path / "set", lengths=[5])
    (root / f"videos/chunk-000/{TOP}/episode_000000.mp4").unlink()
    assert main(["data", "inspect", str(root)]) == 2
    assert "nothing in it can be used" in capsys.readouterr().err


def test_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_v21(tmp_path / "set"), tmp_path / "out/stats.json"
    assert main(["data", "stats", str(root), "--chunk", "4", "--delta", "0", "--out", str(out)]) == 0
    stats = Stats.from_json(json.loads(out.read_text()))
    assert stats.metadata["delta_mask"] == [True, False]
    # dx is no x: subtracting one from the other deserves a look.
    assert "dx - x" in capsys.readouterr().err
    file = tmp_path / "arm.yaml"
    file.write_text("{name: arm, fps: 10, state_names: [x, y, grip], action_names: [dx, grip], delta_mask: [true, false],"
                    " cameras: {front: c}, chunk: 4, replan: 2}")
    assert main(["data", "stats", str(root), "--embodiment", str(file), "--out", str(out)]) == 0
    np.testing.assert_array_equal(Stats.from_json(json.loads(out.read_text())).action.q99, stats.action.q99)


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "give --chunk P"), (["--chunk", "6"], "multiple of 4"), (["--chunk", "4", "--delta", "x"], "cannot read 'x'"),
     (["--chunk", "4", "--delta", "0:9"], "has 2 actions")],
)
def test_stats_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    root = write_v21(tmp_path / "set", lengths=[5])
    assert main(["data", "stats", str(root), "--out", str(tmp_path / "s.json"), *words]) == 2
    assert message in capsys.readouterr().err

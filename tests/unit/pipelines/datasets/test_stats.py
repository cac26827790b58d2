"""`gwp data`: what it says about a set, and the statistics that it writes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.stats.normalise import Stats
from pipelines.cli import main
from tests.support.sets import TOP, WRIST, write_v21, write_v30, write_video


def test_inspect_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_v30(tmp_path / "set", cameras=(TOP, WRIST))
    write_video(root / f"videos/{WRIST}/chunk-000/file-001.mp4", range(3))
    assert main(["data", "inspect", str(root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["episodes"], found["usable"], found["frames"], found["fps"]) == (
        "LeRobot v3.0",
        2,
        1,
        21,
        10,
    )
    assert found["cameras"][0] == {
        "camera": TOP,
        "width": 64,
        "height": 48,
        "fps": 10,
        "codec": "h264",
        "gop": 4,
        "files": 1,
    }
    assert (found["shortest"], found["longest"]) == (9, 12)
    assert found["state"] == ["x", "y", "grip"]
    assert list(found["tasks"].values()) == [2]
    (finding,) = [f for f in found["findings"] if f["consequence"] != "ignored"]
    assert (finding["item"], finding["consequence"]) == ("episode 1", "left out")
    assert main(["data", "inspect", str(root)]) == 1
    text = capsys.readouterr().out
    assert "1 of 2 episodes usable, 21 frames" in text
    assert "left out" in text
    assert "episode 1" in text


def test_inspect_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", range(10))
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    assert main(["data", "inspect", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "1 of 2 videos usable, 10 frames" in text
    assert "cannot be read as a video" in text


def test_inspect_what_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path)]) == 2
    root = write_v21(tmp_path / "set", lengths=[5])
    (root / f"videos/chunk-000/{TOP}/episode_000000.mp4").unlink()
    assert main(["data", "inspect", str(root)]) == 2
    assert "nothing in it can be used" in capsys.readouterr().out


def _findings(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    code = main(["data", "inspect", str(root), "--json"])
    return code, {
        f["what"]: f["consequence"]
        for f in json.loads(capsys.readouterr().out)["findings"]
        if "grip" not in f["what"]
    }


def test_what_is_ignored_or_repaired_costs_nothing_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(
        tmp_path / "set",
        cameras=(TOP, WRIST),
        total_episodes=7,
        total_chunks=0,
        splits={"train": "0:9"},
    )
    late = {"does not start at 0 in 2 of 2 episodes": "ignored"}
    assert _findings(
        write_v21(
            tmp_path / "fine", total_episodes=2, total_frames=21, total_chunks=1, total_videos=2
        ),
        capsys,
    ) == (0, late)
    (root / "videos").rename(root / "video")
    for file in root.rglob(f"*{WRIST}*/*.mp4"):
        file.unlink()
    code, told = _findings(root, capsys)
    assert code == 0
    assert told == late | {
        "declared, but there is no file of it": "ignored",
        "total_episodes is 7, the set has 2": "ignored",
        "total_chunks is 0, the set has 1": "ignored",
        "split 'train' goes to 9, the set has 2 episodes": "ignored",
        "videos do not lie in 'videos/', but in 'video/'": "repaired",
    }


def test_a_start_that_was_mended_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v30(tmp_path / "set")
    place = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(place)
    rows = table.to_pylist()
    rows[1][f"videos/{TOP}/from_timestamp"] += 0.3
    rows[1][f"videos/{TOP}/to_timestamp"] += 0.3
    pq.write_table(pa.Table.from_pylist(rows, table.schema), place)
    code, told = _findings(root, capsys)
    assert code == 0
    assert any(
        "starts at 1.200 s" in what and "say 1.500 s" in what and then == "repaired"
        for what, then in told.items()
    )


def test_numbers_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_v21(tmp_path / "set")
    for e, n in enumerate((12, 9)):
        file = root / f"data/chunk-000/episode_{e:06d}.parquet"
        action = np.stack([np.full(n, 0.5), (np.arange(n) > 4).astype(float)], 1)
        action[0, 0] = np.nan if e else 0.5
        table = pq.read_table(file)
        column = pa.array(action.tolist(), pa.list_(pa.float32()))
        pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)
    code = main(["data", "inspect", str(root), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    notes = {row["name"]: row["note"] for row in found["dimensions"] if row["of"] == "action"}
    assert notes == {"dx": "constant", "grip": "near-binary"}
    assert {"NaN or Inf in 1 rows, first in row 0", "never moves"} <= {
        f["what"] for f in found["findings"]
    }


@pytest.mark.parametrize("kind", ["robots", "clips"])
def test_the_page_needs_nothing_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "robots":
        root = write_v30(tmp_path / "set", lengths=(24, 20), cameras=(TOP, WRIST))
    else:
        root = write_video(tmp_path / "clips/a.mp4", range(20)).parent
    out = tmp_path / "page.html"
    assert main(["data", "inspect", str(root), "--html", str(out)]) == 0
    page = out.read_text()
    # Two cameras, the canvas and the curves; of a clip one strip.
    assert page.count("data:image/png;base64,") == (4 if kind == "robots" else 1)
    assert "src='http" not in page
    assert capsys.readouterr().out


def test_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_v21(tmp_path / "set"), tmp_path / "out/stats.json"
    assert (
        main(["data", "stats", str(root), "--chunk", "4", "--delta", "0", "--out", str(out)]) == 0
    )
    stats = Stats.from_json(json.loads(out.read_text()))
    assert stats.metadata["delta_mask"] == [True, False]
    # dx is no x: subtracting one from the other deserves a look.
    assert "dx - x" in capsys.readouterr().err
    file = tmp_path / "arm.yaml"
    file.write_text(
        "{name: arm, fps: 10, state_names: [x, y, grip], action_names: [dx, grip], delta_mask: "
        "[true, false],"
        " cameras: {front: c}, chunk: 4, replan: 2}"
    )
    assert main(["data", "stats", str(root), "--embodiment", str(file), "--out", str(out)]) == 0
    np.testing.assert_array_equal(
        Stats.from_json(json.loads(out.read_text())).action.q99, stats.action.q99
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --chunk P"),
        (["--chunk", "6"], "multiple of 4"),
        (["--chunk", "4", "--delta", "x"], "cannot read 'x'"),
        (["--chunk", "4", "--delta", "0:9"], "has 2 actions"),
    ],
)
def test_stats_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    root = write_v21(tmp_path / "set", lengths=[5])
    assert main(["data", "stats", str(root), "--out", str(tmp_path / "s.json"), *words]) == 2
    assert message in capsys.readouterr().err


ARM = (
    "{name: arm, fps: 10, state_names: [x, y, grip], action_names: [dx, grip], delta_mask: "
    "[true, false], cameras: {front: c}, chunk: 4,"
    " replan: 2}"
)


def test_stats_go_to_openpi_and_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, ours, theirs, back = (
        write_v21(tmp_path / "set"),
        tmp_path / "ours.json",
        tmp_path / "norm_stats.json",
        tmp_path / "back.json",
    )
    arm = tmp_path / "arm.yaml"
    arm.write_text(ARM)
    robot = ["--embodiment", str(arm)]
    assert main(["data", "stats", str(root), *robot, "--width", "32", "--out", str(ours)]) == 0
    assert len(json.loads(ours.read_text())["norm_stats"]["action"]["q99"]) == 32
    assert main(["data", "stats", str(root), *robot, "--form", "openpi", "--out", str(theirs)]) == 0
    assert set(json.loads(theirs.read_text())["norm_stats"]) == {"state", "actions"}
    capsys.readouterr()
    assert main(["data", "stats", "--import", str(theirs), *robot, "--out", str(back)]) == 0
    assert str(back) in capsys.readouterr().out
    found, stats = (Stats.from_json(json.loads(p.read_text())) for p in (back, ours))
    assert found.metadata["imported"]["form"] == "openpi"
    np.testing.assert_array_equal(found.action.q99, stats.action.q99[:2])
    arm.write_text(
        ARM.replace("[dx, grip]", "[dx, dy, grip]").replace("[true, false]", "[true, true, false]")
    )
    assert main(["data", "stats", "--import", str(theirs), *robot, "--out", str(back)]) == 2
    assert "statistics have 2 action dimensions, embodiment arm has 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the sets of the robot, or --import FILE"),
        (["--import", "x.json"], "--import needs --embodiment"),
        (["set", "--import", "x.json"], "leave out sets"),
        (["set", "--form", "openpi", "--width", "32"], "not padded"),
    ],
)
def test_stats_says_which_options_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["data", "stats", *words, "--out", str(tmp_path / "s.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_unusable_episodes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_v21(tmp_path / "set")
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    assert (
        main(["data", "stats", str(root), "--chunk", "4", "--out", str(tmp_path / "s.json")]) == 0
    )
    assert "episodes that cannot be used do not count" in capsys.readouterr().err

"""Which frames of a video belong to which episode of a LeRobot set."""

import json
from pathlib import Path
from typing import Any

import pytest

from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.reader import FileReader
from gwp.data.source import Source
from pipelines.datasets.inspect import describe
from tests.support.sets import FPS, TOP, WRIST, write_v21, write_v30, write_video
from tests.unit.gwp.data.formats.test_traps import change_episodes

START, END = f"videos/{TOP}/from_timestamp", f"videos/{TOP}/to_timestamp"


def starts(root: Path, **fields: Any) -> tuple[dict[int, float], dict[int, str]]:
    """Frame at which each usable episode starts, and the reason of the others."""
    source, reader = Source(uri=str(root), **fields), FileReader()
    data = robots_at(source, reader)
    assert data is not None
    good, bad = usable_episodes(data, source, list(data.cameras), reader)
    return {e.index: e.videos[TOP].start * FPS for e, _ in good}, {e.index: r for e, r in bad}


def longer(root: Path, frames: int) -> None:
    """More frames than rows, so that counting tells nothing."""
    write_video(root / f"videos/{TOP}/chunk-000/file-000.mp4", range(frames), gop=4)


def test_two_episodes_over_one_span_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 5, 5, 7))
    longer(root, 30)
    change_episodes(
        root, lambda row: row.update({START: 0.6, END: 1.1}) if row["episode_index"] == 2 else None
    )
    found, bad = starts(root)
    assert list(found) == [0, 3]
    assert "episode 2 is said to have 6 to 10: whose they are cannot be told" in bad[1]
    assert "episode 1 is said to have" in bad[2]
    # Whichever of them is chosen.
    assert list(starts(root, episodes="1")[1]) == [1]


@pytest.mark.parametrize("by", [1, -3])
def test_a_span_that_overlaps_its_neighbour_is_found(tmp_path: Path, by: int) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 5, 7))
    longer(root, 30)

    def move(row: dict[str, Any]) -> None:
        if row["episode_index"] == 1:
            row[START], row[END] = row[START] + by / FPS, row[END] + by / FPS

    change_episodes(root, move)
    found, bad = starts(root)
    assert list(bad) == ([1, 2] if by > 0 else [0, 1])
    assert len(found) == 1


def test_equal_spans_in_a_full_file_are_by_order(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 5, 7))
    change_episodes(root, lambda row: row.update({START: 0.0, END: row["length"] / FPS}))
    found, bad = starts(root)
    assert not bad
    assert found == pytest.approx({0: 0, 1: 6, 2: 11})


def test_an_end_that_names_the_last_frame_is_told_and_used(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 5, 7))
    change_episodes(root, lambda row: row.update({END: row[END] - 1 / FPS}))
    found, bad = starts(root)
    assert not bad
    assert found == pytest.approx({0: 0, 1: 6, 2: 11})
    told = {f["what"]: f["consequence"] for f in describe(Source(uri=str(root)))["findings"]}
    assert told["to_timestamp of 3 episodes is not where their rows end"] == "repaired"
    longer(root, 19)
    # Of a file with other frames nothing is known.
    assert list(starts(root)[1]) == [0, 1, 2]


def test_videos_of_nobody_and_of_several_are_told(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", cameras=(TOP, WRIST), lengths=(5, 5))
    write_video(root / f"videos/chunk-000/{TOP}/episode_000007.mp4", range(5))
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert f"1 videos are of no episode: videos/chunk-000/{TOP}/episode_000007.mp4" in told
    file = root / "meta/info.json"
    about = json.loads(file.read_text())
    about["video_path"] = f"videos/chunk-000/{TOP}/episode_000000.mp4"
    file.write_text(json.dumps(about))
    _, bad = starts(root)
    assert list(bad) == [0, 1]
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert any("videos are named more than once" in what for what in told)

"""Which frames of a video belong to which episode of a LeRobot set."""

from pathlib import Path
from typing import Any

import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.source import Source
from gwp.errors import DataError
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


def set_starts(root: Path, starts: dict[int, float]) -> None:
    def change(row: dict[str, Any]) -> None:
        if (start := starts.get(row["episode_index"])) is not None:
            row.update({START: start, END: start + row["length"] / FPS})

    change_episodes(root, change)


@pytest.mark.parametrize(
    ("stated", "left_out"),
    [
        ({2: 0.0, 3: 1.0}, [2, 3]),
        ({2: 0.6}, [2]),
        ({2: -1.0}, [2]),
        ({1: 3.0}, [1]),
        ({3: 46.0}, [3]),
        # The last of them could as well be the first.
        ({1: 0.0, 2: 0.0, 3: 0.0}, [0, 1, 2, 3]),
    ],
    ids=["resumed", "early", "negative", "late", "far", "equal"],
)
def test_a_start_that_is_far_off_costs_its_episode_and_moves_no_other(
    tmp_path: Path, stated: dict[int, float], left_out: list[int]
) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 10, 8))
    set_starts(root, stated)
    found, bad = starts(root)
    right = {0: 0, 1: 12, 2: 21, 3: 31}
    assert list(bad) == left_out
    assert all("is said to start at" in reason for reason in bad.values())
    assert found == pytest.approx({e: at for e, at in right.items() if e not in left_out})


def test_starts_that_are_off_a_little_are_counted(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 10, 8))
    set_starts(root, {1: 1.3, 2: 2.3, 3: 2.9})
    assert starts(root) == (pytest.approx({0: 0, 1: 12, 2: 21, 3: 31}), {})


def test_episodes_may_lie_in_another_order_than_their_numbers(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9, 10, 8))
    set_starts(root, {2: 0.0, 0: 1.0, 3: 2.24, 1: 3.0})
    assert starts(root) == (pytest.approx({2: 0, 0: 10, 3: 22, 1: 30}, abs=0.5), {})


def test_starts_that_agree_with_each_other_are_not_overridden(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    # Three frames of nobody in front, three of the last episode lacking: as many as rows.
    set_starts(root, {0: 0.3, 1: 1.5})
    found, bad = starts(root)
    assert not found
    assert "as far off as all others" in bad[0]


@pytest.mark.parametrize(("by", "read"), [(0.02, True), (0.04, False), (0.06, False)])
def test_a_start_between_two_frames_needs_counting(tmp_path: Path, by: float, read: bool) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 9))
    set_starts(root, {1: 1.2 + by})
    assert starts(root)[0] == pytest.approx({0: 0, 1: 12}, abs=0.25)
    longer(root, 30)
    found, bad = starts(root)
    assert list(found) == ([0, 1] if read else [0])
    assert read or "between two frames" in bad[1]


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
    one = f"videos/chunk-000/{TOP}/episode_000000.mp4"
    root = write_v21(tmp_path / "one", lengths=(5, 5), video_path=one)
    told = [f["what"] for f in describe(Source(uri=str(root)))["findings"]]
    assert any("videos are named more than once" in what for what in told)


@pytest.mark.parametrize(
    ("more", "consequence"),
    [(0, None), (-1, None), (1, "ignored"), (4, "ignored"), (5, "left out")],
)
def test_frames_of_no_episode_are_told(tmp_path: Path, more: int, consequence: str | None) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 5, 7))
    longer(root, 18 + more)
    found = [f for f in describe(Source(uri=str(root)))["findings"] if "of no episode" in f["what"]]
    assert [f["consequence"] for f in found] == ([consequence] if consequence else [])
    if found:
        file = f"videos/{TOP}/chunk-000/file-000.mp4"
        assert (found[0]["item"], found[0]["what"]) == (
            TOP,
            f"{more} frames of {file} are of no episode",
        )


def test_files_that_are_exchanged_hold_frames_of_no_episode(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(12, 6), cameras=(TOP, WRIST))

    def exchange(row: dict[str, Any]) -> None:
        row[f"videos/{WRIST}/file_index"] = 1 - row["episode_index"]

    change_episodes(root, exchange)
    found = describe(Source(uri=str(root)))["findings"]
    told = {f["item"]: f for f in found if "of no episode" in f["what"]}
    assert list(told) == [WRIST]
    assert told[WRIST]["consequence"] == "left out"
    assert told[WRIST]["what"].startswith(f"6 frames of videos/{WRIST}/chunk-000/file-000.mp4")


@pytest.mark.parametrize("write", [write_v21, write_v30])
def test_one_video_of_two_cameras_is_of_neither(tmp_path: Path, write: Any) -> None:
    names = ("episode_{episode_index:06d}", "file-{file_index:03d}")
    place = f"videos/{names[write is write_v30]}.mp4"
    root = write(tmp_path / "set", cameras=(TOP, WRIST), lengths=(5,), video_path=place)
    for name in ("episode_000000", "file-000"):
        write_video(root / f"videos/{name}.mp4", range(5))
    # Also where one of them is all that is wanted.
    with pytest.raises(DataError, match=f"{TOP} and {WRIST} are said to lie at one place"):
        starts(root)


def test_spans_that_fill_the_file_are_not_overruled(tmp_path: Path) -> None:
    """An episode of fewer frames than rows beside one of more: neither can be used, and no other
    is moved.
    """
    root = write_v30(tmp_path / "set", lengths=(6, 7, 8, 5))
    spans = {1: (0.6, 1.4), 2: (1.4, 2.1)}

    def change(row: dict[str, Any]) -> None:
        if row["episode_index"] in spans:
            row[START], row[END] = spans[row["episode_index"]]

    change_episodes(root, change)
    found, bad = starts(root)
    assert found == pytest.approx({0: 0, 3: 21})
    assert "is said to have 8 frames, and the episode has 7 rows" in bad[1]
    assert "is said to have 7 frames, and the episode has 8 rows" in bad[2]


def test_starts_that_are_exchanged_are_no_order(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 7, 8))
    set_starts(root, {1: 1.3, 2: 0.6})
    found, bad = starts(root)
    assert list(found) == [0]
    assert sorted(bad) == [1, 2]


def test_a_start_before_the_file_costs_its_episode(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 7))
    set_starts(root, {0: -0.2})
    found, bad = starts(root)
    assert (list(found), list(bad)) == ([1], [0])


def test_of_two_that_start_at_one_place_neither_is_guessed(tmp_path: Path) -> None:
    root = write_v30(tmp_path / "set", lengths=(6, 6, 6))
    set_starts(root, {1: 0.6, 2: 0.6})
    found, bad = starts(root)
    assert list(found) == [0]
    assert all("and so is another" in reason for reason in bad.values())

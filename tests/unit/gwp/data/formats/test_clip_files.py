"""Files beside plain videos that reach none, and names and links of all kinds."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from gwp.data.formats.find import set_at
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from pipelines.cli import main
from pipelines.datasets.inspect import describe, exit_code
from tests.support.other_sets import write_tars
from tests.support.sets import write_video
from tests.unit.gwp.data.formats.test_captions import remarks, texts, videos


def test_captions_that_reach_no_video_are_told_together(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.mp4"):
        write_video(tmp_path / name, range(10))
    for name in ("a.txt", "c.txt", "sub/a.txt", "README.txt", "sub/info.json"):
        (tmp_path / name).write_text("what is done")
    (tmp_path / "sub/b.txt").symlink_to(tmp_path / "nothing.txt")
    found = set_at(Source(uri=str(tmp_path)))
    assert [clip.caption for clip in found.clips] == ["what is done", ""]
    assert [item for item, _ in found.remarks] == ["sub/b.mp4", "2 captions"]
    assert found.remarks[0][1].startswith("sub/b.txt is a link to something that is not there")
    assert found.remarks[1][1] == "of no video by their names: c.txt, sub/a.txt"
    # Where JSON is what speaks of a video, one that speaks of none is told, too.
    (tmp_path / "sub/b.json").write_text('{"caption": "there"}')
    found = set_at(Source(uri=str(tmp_path)))
    assert found.remarks[-1][0] == "3 captions"


def test_a_table_that_is_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", range(10))
    (tmp_path / "metadata.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    ((item, what),) = set_at(Source(uri=str(tmp_path))).remarks
    assert item == "metadata.jsonl"
    assert what.startswith("is a link to something")


def test_a_video_by_two_names_counts_once(tmp_path: Path) -> None:
    write_video(tmp_path / "b/own.mp4", range(10))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/again.mp4").symlink_to(tmp_path / "b/own.mp4")
    (tmp_path / "a/again.txt").write_text("what is done")
    found = set_at(Source(uri=str(tmp_path)))
    assert [(clip.name, clip.caption) for clip in found.clips] == [("b/own.mp4", "what is done")]
    assert found.remarks == (("a/again.mp4", "is b/own.mp4 once more, by a link; it counts once"),)


def test_a_shard_by_two_names_counts_once(tmp_path: Path) -> None:
    root = write_tars(tmp_path / "set", (9,), (1,))
    (root / "again.tar").symlink_to(root / "000000.tar")
    found = set_at(Source(uri=str(root)))
    assert len(found.clips) == 1
    assert found.remarks == (("again.tar", "is 000000.tar once more, by a link; it counts once"),)


def test_names_in_a_shard_that_are_no_utf8_are_read_and_told(tmp_path: Path) -> None:
    raw = write_video(tmp_path / "a.mp4", range(6)).read_bytes()
    (tmp_path / "set").mkdir()
    form = {"format": tarfile.GNU_FORMAT, "encoding": "latin-1"}
    with tarfile.open(tmp_path / "set/0.tar", "w", **form) as tar:
        for name, content in (("café.mp4", raw), ("café.txt", b"what is done")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    facts = describe(Source(uri=str(tmp_path / "set")))
    assert [(v["video"], v["caption"]) for v in facts["videos"]] == [
        ("0.tar/café.mp4", "what is done")
    ]
    assert {f["item"] for f in facts["findings"]} == {"0.tar/café.mp4", "0.tar/café.txt"}
    assert all("read as Latin-1" in f["what"] for f in facts["findings"])


def test_names_on_a_disk_that_are_no_utf8_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4", range(6))
    (tmp_path / "a.mp4").rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")))
    assert main(["data", "inspect", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "names that are no UTF-8" in line


@pytest.mark.parametrize(
    ("lines", "wanted", "wrong"),
    [
        (['a.mp4,"pick the cup', "b.mp4,place it", "c.mp4,go"], ["", "place it", "go"], [2]),
        (['a.mp4,"pick the cup', 'b.mp4,"place it"', "c.mp4,go"], ["", "place it", "go"], [2]),
        (['a.mp4,"pick', 'b.mp4,"place', 'c.mp4,"go'], ["", "", ""], [2, 3, 4]),
        (['a.mp4,"pick', 'b.mp4,place"', "c.mp4,go"], ["", 'place"', "go"], [2]),
        (["a.mp4,pick", 'b.mp4,"place" it', "c.mp4,go"], ["pick", "", "go"], [3]),
        # Quotes as they should be.
        (
            ['a.mp4,"pick', 'the cup"', "b.mp4,", 'c.mp4,"say ""go"""'],
            ["pick\nthe cup", "", 'say "go"'],
            [],
        ),
    ],
)
def test_a_quote_costs_its_own_line(
    tmp_path: Path, lines: list[str], wanted: list[str], wrong: list[int]
) -> None:
    root = videos(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    text = "\n".join(["file_name,caption", *lines]) + "\n"
    # Of lines that are all damaged none is a table.
    (root / "metadata.csv").write_text(text + "gone.mp4,nothing\n")
    assert texts(root) == dict(zip(("a.mp4", "b.mp4", "c.mp4"), wanted, strict=True))
    told = [item for item in remarks(root) if item.startswith("metadata.csv")]
    assert told == [f"metadata.csv:line {number}" for number in wrong]


def test_lines_of_a_text_are_one_in_a_folder_and_in_a_shard(tmp_path: Path) -> None:
    root = videos(tmp_path / "folder", "a.mp4", "b.mp4")
    (root / "a.txt").write_bytes(b"pick\r\nthe cup\n")
    (root / "b.TXT").write_text("put it")
    assert texts(root) == {"a.mp4": "pick the cup", "b.mp4": "put it"}
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/0.tar", "w") as tar:
        for name in ("a.mp4", "a.txt", "b.mp4", "b.TXT"):
            tar.add(root / name, name)
    assert texts(tmp_path / "tars") == {"0.tar/a.mp4": "pick the cup", "0.tar/b.mp4": "put it"}


def test_a_link_that_leads_nowhere_keeps_its_number(tmp_path: Path) -> None:
    root = tmp_path
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(root / name, range(10))
    source = Source(uri=str(root), episodes="1")

    def chosen() -> set[str]:
        manifest = build_manifest(
            [source],
            embodiments={},
            window=Window(chunk=4, stride=1),
            clip=ClipWindow(frames=5, fps=5),
        )
        return {name.split("/")[1] for name in manifest.samples["sample_id"].to_pylist()}

    assert chosen() == {"b.mp4"}
    (root / "a.mp4").unlink()
    (root / "a.mp4").symlink_to(tmp_path / "nothing.mp4")
    assert chosen() == {"b.mp4"}
    facts = describe(Source(uri=str(root)))
    assert (facts["usable"], exit_code(facts)) == (2, 1)

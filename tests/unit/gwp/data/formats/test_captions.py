"""Captions of plain videos: whatever file they stand in, to the video that is meant or to none."""

import io
import tarfile
from pathlib import Path

import pytest

from gwp import storage
from gwp.data.formats.find import set_at
from gwp.data.source import Source
from gwp.errors import DataError
from pipelines.datasets.inspect import describe, exit_code
from tests.support.sets import write_video


def videos(root: Path, *names: str) -> Path:
    raw = write_video(root / names[0], range(6)).read_bytes()
    for name in names[1:]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


def texts(root: Path | str) -> dict[str, str]:
    return {clip.name: clip.caption for clip in set_at(Source(uri=str(root))).clips}


def remarks(root: Path | str) -> dict[str, str]:
    return dict(set_at(Source(uri=str(root))).remarks)


@pytest.mark.parametrize("order", [1, -1])
def test_one_name_in_two_folders_is_neither(tmp_path: Path, order: int) -> None:
    videos(tmp_path, "x/a.mp4", "y/a.mp4", "b.mp4")
    lines = ['{"file_name": "a.mp4", "text": "which?"}', '{"file_name": "b.mp4", "text": "b"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines[::order]))
    assert texts(tmp_path) == {"x/a.mp4": "", "y/a.mp4": "", "b.mp4": "b"}
    said = "named in metadata.jsonl, may be x/a.mp4, y/a.mp4: the caption is given to none"
    assert remarks(tmp_path) == {"a.mp4": said}
    facts = describe(Source(uri=str(tmp_path)))
    assert said in [f["what"] for f in facts["findings"]]
    assert exit_code(facts) == 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_path_counts_more_than_a_name(tmp_path: Path, order: int) -> None:
    videos(tmp_path, "x/a.mp4", "y/a.mp4")
    lines = [
        '{"file_name": "x/a.mp4", "text": "x"}',
        '{"file_name": "./y/a.mp4", "text": "y"}',
        # Of a folder that is gone: of the two that are there it is neither.
        '{"file_name": "z/a.mp4", "text": "z"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines[::order]))
    assert texts(tmp_path) == {"x/a.mp4": "x", "y/a.mp4": "y"}
    assert list(remarks(tmp_path)) == ["z/a.mp4"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_lone_file_of_the_name_does_not_lose_its_own_caption(tmp_path: Path, order: int) -> None:
    videos(tmp_path, "y/a.mp4")
    lines = ['{"file": "y/a.mp4", "text": "y"}', '{"file": "x/a.mp4", "text": "x"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines[::order]))
    assert texts(tmp_path) == {"y/a.mp4": "y"}


def test_two_captions_of_one_video_are_none(tmp_path: Path) -> None:
    videos(tmp_path, "a.mp4", "b.mp4")
    lines = [
        f'{{"file": "{name}.mp4", "text": "{text}"}}' for name, text in ("a1", "a2", "bb", "bb")
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert texts(tmp_path) == {"a.mp4": "", "b.mp4": "b"}
    assert (
        "different captions (metadata.jsonl:line 1, metadata.jsonl:line 2)"
        in (remarks(tmp_path)["a.mp4"])
    )


TABLE = 'file_name,text\na.mp4,"pick, then\nplace"\nsub/b.mp4,b\n'


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_comma_separated_values(tmp_path: Path, mark: str, end: str) -> None:
    videos(tmp_path, "a.mp4", "sub/b.mp4")
    raw = (mark + TABLE.replace("\n", end)).encode()
    (tmp_path / "metadata.csv").write_bytes(raw)
    found = texts(tmp_path)
    assert found == {"a.mp4": f"pick, then{end}place", "sub/b.mp4": "b"}


@pytest.mark.parametrize("text", ["name;text\na.mp4;x\n", "a.mp4\n", ""])
def test_a_table_without_names_is_refused(tmp_path: Path, text: str) -> None:
    videos(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=r"metadata.csv: no column file_name or file or path"):
        set_at(Source(uri=str(tmp_path)))


def test_a_table_speaks_of_its_own_folder(tmp_path: Path) -> None:
    videos(tmp_path, "train/a.mp4", "test/a.mp4")
    for folder in ("train", "test"):
        (tmp_path / folder / "metadata.csv").write_text(f"file_name,text\na.mp4,{folder}\n")
    assert texts(tmp_path) == {"train/a.mp4": "train", "test/a.mp4": "test"}
    assert texts(tmp_path / "train/a.mp4") == {"a.mp4": "train"}


@pytest.mark.parametrize("remote", [False, True])
def test_files_of_one_caption(bucket: str, tmp_path: Path, remote: bool) -> None:
    root = tmp_path / "clips"
    videos(root, "a.mp4", "b.webm", "c.mp4", "set/videos/d.mp4", "e.mp4", "f.mp4")
    (root / "a.txt").write_text(" open\n the drawer \n")
    (root / "b.json").write_text('{"caption": ["several"], "task": "push"}')
    (root / "c.json").write_text('["no caption"]')
    (root / "set/metas").mkdir()
    (root / "set/metas/d.txt").write_text("lift")
    (root / "e.json").write_text("{")
    (root / "f.txt").write_text("beside")
    (root / "README.txt").write_text("about all of them")
    (root / "metadata.jsonl").write_text('{"file": "f.mp4", "text": "in the table"}')
    uri = f"{bucket}/captions" if remote else str(root)
    if remote:
        storage.upload(root, uri)
    assert texts(uri) == {
        "a.mp4": "open the drawer",
        "b.webm": "push",
        "c.mp4": "",
        "set/videos/d.mp4": "lift",
        "e.mp4": "",
        "f.mp4": "in the table",
    }
    assert texts(f"{uri}/a.mp4") == {"a.mp4": "open the drawer"}
    assert texts(f"{uri}/f.mp4") == {"f.mp4": "in the table"}
    assert remarks(uri) == {"e.mp4": "e.json is no JSON, so it is no caption"}


def test_a_caption_file_of_two_videos_is_of_none(tmp_path: Path) -> None:
    videos(tmp_path, "a.mp4", "a.mkv")
    (tmp_path / "a.txt").write_text("which?")
    assert texts(tmp_path) == {"a.mp4": "", "a.mkv": ""}
    assert set(remarks(tmp_path)) == {"a.mp4", "a.mkv"}


def test_lines_end_at_ends_of_lines_alone(tmp_path: Path) -> None:
    videos(tmp_path, "a.mp4")
    (tmp_path / "metadata.jsonl").write_text('{"file": "a.mp4", "text": "one\u2028two"}\r\n')
    assert texts(tmp_path) == {"a.mp4": "one\u2028two"}


def test_a_member_that_is_there_twice_is_the_last(tmp_path: Path) -> None:
    write_video(tmp_path / "old.mp4", range(6))
    write_video(tmp_path / "new.mp4", range(12))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("old.mp4", "new.mp4"):
            tar.add(tmp_path / name, "0.mp4")
            text = name.encode()
            about = tarfile.TarInfo("0.txt")
            about.size = len(text)
            tar.addfile(about, io.BytesIO(text))
    size = (tmp_path / "new.mp4").stat().st_size
    found = set_at(Source(uri=str(tmp_path / "a.tar")))
    assert [(c.name, c.size, c.caption) for c in found.clips] == [("a.tar/0.mp4", size, "new.mp4")]
    assert found.remarks == (
        ("a.tar/0.mp4", "is in its shard more than once; the last one is read, as tar does"),
    )


def test_videos_may_be_links(tmp_path: Path) -> None:
    """As in snapshots of the Hub."""
    raw = write_video(tmp_path / "blobs/1234.mp4", range(6))
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/a.mp4").symlink_to(raw)
    (tmp_path / "caption").write_text("from a link")
    (tmp_path / "snapshot/a.txt").symlink_to(tmp_path / "caption")
    assert texts(tmp_path / "snapshot") == {"a.mp4": "from a link"}
    assert describe(Source(uri=str(tmp_path / "snapshot")))["usable"] == 1


def test_strays_in_a_shard_are_none_of_its_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", range(5))
    names = ("./a.mp4", "._a.mp4", "./._b.mp4", "__MACOSX/c.mp4", ".cache/d.mp4", "e/f.mp4")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            tar.add(tmp_path / "v.mp4", name)
    found = set_at(Source(uri=str(tmp_path / "a.tar")))
    assert [c.name for c in found.clips] == ["a.tar/./a.mp4", "a.tar/e/f.mp4"]


DAMAGED = {"0.txt": b"caf\xe9", "1.json": b'{"caption": "a', "2.json": b'{"caption": "caf\xe9"}'}


@pytest.mark.parametrize("where", ["tar", "folder"])
def test_captions_that_cannot_be_read_are_told_and_not_taken(tmp_path: Path, where: str) -> None:
    root = tmp_path / "set"
    for i in range(3):
        write_video(root / f"{i}.mp4", range(5))
    for name, raw in DAMAGED.items():
        (root / name).write_bytes(raw)
    uri = root
    if where == "tar":
        uri = tmp_path / "a.tar"
        with tarfile.open(uri, "w") as tar:
            for file in sorted(root.iterdir()):
                tar.add(file, file.name)
    found = set_at(Source(uri=str(uri)))
    assert [c.caption for c in found.clips] == [""] * 3
    told = sorted(what.partition("is no ")[2] for _, what in found.remarks)
    assert told == ["JSON, so it is no caption", *["text in UTF-8, so it is no caption"] * 2]
    assert all(any(name in item + what for item, what in found.remarks) for name in DAMAGED)


def test_a_row_of_a_table_that_is_no_text_is_told(tmp_path: Path) -> None:
    for i in range(2):
        write_video(tmp_path / f"{i}.mp4", range(5))
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\n0.mp4,caf\xe9\n1.mp4,tea\n")
    found = set_at(Source(uri=str(tmp_path)))
    assert [c.caption for c in found.clips] == ["", "tea"]
    what = "what it says is no text in UTF-8, so it is no caption"
    assert found.remarks == (("metadata.csv:line 2", what),)


def test_a_row_of_another_folder_is_of_no_video_here(tmp_path: Path) -> None:
    videos(tmp_path, "x/a.mp4", "y/b.mp4", "c.mp4", "d.mp4")
    # Of `y` and of `z` it is another video; a longer path may be where it came from.
    rows = {"y/a.mp4": 1, "z/a.mp4": 2, "y/c.mp4": 3, "from/d.mp4": 4, "set/y/b.mp4": 5}
    lines = [f'{{"file_name": "{name}", "text": "{text}"}}' for name, text in rows.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert texts(tmp_path) == {"x/a.mp4": "", "y/b.mp4": "5", "c.mp4": "", "d.mp4": "4"}
    assert list(remarks(tmp_path)) == ["y/a.mp4", "z/a.mp4", "y/c.mp4"]


def test_a_line_with_more_cells_than_columns_is_told(tmp_path: Path) -> None:
    videos(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.mp4,pick, then place\nb.mp4,b\n")
    assert texts(tmp_path) == {"a.mp4": "", "b.mp4": "b"}
    assert "has more cells than" in remarks(tmp_path)["metadata.csv:line 2"]


@pytest.mark.parametrize("separator", [",", ", ", ";", "\t"])
def test_tables_of_other_separators(tmp_path: Path, separator: str) -> None:
    videos(tmp_path, "a.mp4", "b.mp4")
    rows = (("file_name", "caption"), ("a.mp4", "A"), ("b.mp4", f'"x{separator}y"'))
    (tmp_path / "metadata.csv").write_text("\n".join(map(separator.join, rows)))
    assert texts(tmp_path) == {"a.mp4": "A", "b.mp4": f"x{separator}y"}


def test_a_pointer_is_no_caption(tmp_path: Path) -> None:
    videos(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n")
    assert texts(tmp_path) == {"a.mp4": ""}
    assert "is a Git LFS pointer, so it is no caption" in remarks(tmp_path)["a.mp4"]


def test_videos_below_a_table_or_beside_metas_keep_their_captions(tmp_path: Path) -> None:
    videos(tmp_path, "set/videos/a.mp4", "set/videos/x/b.mp4", "set/other/c.mp4")
    (tmp_path / "set/metas").mkdir()
    (tmp_path / "set/metas/a.txt").write_text("A")
    assert texts(tmp_path / "set/videos") == {"a.mp4": "A", "x/b.mp4": ""}
    assert texts(tmp_path / "set/videos/a.mp4") == {"a.mp4": "A"}
    lines = ["file_name,text", "videos/x/b.mp4,B", "other/c.mp4,C", "videos/gone.mp4,G"]
    (tmp_path / "set/metadata.csv").write_text("\n".join(lines))
    assert texts(tmp_path / "set/videos") == {"a.mp4": "A", "x/b.mp4": "B"}
    assert list(remarks(tmp_path / "set/videos")) == ["gone.mp4"]

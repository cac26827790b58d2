"""Captions and links in shards: to the video that is meant, or to none."""

import io
import tarfile
from pathlib import Path

import pytest

from gwp.data.formats.find import set_at
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.source import Source
from tests.support.sets import write_video

HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE


def shard(root: Path, *members: str | tuple[str, str] | tuple[str, bytes, str]) -> ClipSet:
    """A set of one shard: videos by name, texts by name and content, links by name, type and
    what they lead to.
    """
    video = write_video(root / "video.mp4", range(5)).read_bytes()
    with tarfile.open(root / "a.tar", "w") as tar:
        for member in members:
            name, *rest = (member,) if isinstance(member, str) else member
            about = tarfile.TarInfo(str(name))
            data = str(rest[0]).encode() if rest else video
            if len(rest) == 2:
                data, about.type, about.linkname = b"", rest[0], str(rest[1])
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    found = set_at(Source(uri=str(root / "a.tar")))
    assert isinstance(found, ClipSet)
    return found


def texts(found: ClipSet) -> dict[str, str]:
    return {clip.name.removeprefix("a.tar/"): clip.caption for clip in found.clips}


@pytest.mark.parametrize("order", [1, -1])
def test_a_caption_belongs_to_the_video_of_its_whole_name(tmp_path: Path, order: int) -> None:
    members = ("run.1.mp4", ("run.1.txt", "one"), "run.2.mp4", ("run.2.txt", "two"), "run.3.mp4")
    found = shard(tmp_path, *members[::order])
    assert texts(found) == {"run.1.mp4": "one", "run.2.mp4": "two", "run.3.mp4": ""}
    assert not found.remarks


def test_a_caption_of_a_key_is_of_its_only_video(tmp_path: Path) -> None:
    found = shard(
        tmp_path, "a.front.mp4", ("a.txt", "A"), "b.1.mp4", "b.2.mp4", ("b.txt", "B"), "c.mp4"
    )
    assert texts(found) == {"a.front.mp4": "A", "b.1.mp4": "", "b.2.mp4": "", "c.mp4": ""}
    what = "shares b.txt with another video: it is given to none"
    assert found.remarks == (("a.tar/b.1.mp4", what), ("a.tar/b.2.mp4", what))


def test_captions_that_differ_are_none(tmp_path: Path) -> None:
    found = shard(tmp_path, "a.mp4", ("a.txt", "A"), ("a.json", '{"caption": "J"}'))
    assert texts(found) == {"a.mp4": ""}
    ((item, what),) = found.remarks
    assert item == "a.tar/a.mp4"
    assert what == "has different captions (a.txt, a.json), of which none is taken"


def test_a_name_may_begin_at_the_folder_of_the_shard(tmp_path: Path) -> None:
    assert texts(shard(tmp_path, "./a.mp4", ("a.txt", "A"))) == {"./a.mp4": "A"}


def test_links_are_read_as_what_they_lead_to(tmp_path: Path) -> None:
    found = shard(
        tmp_path,
        "x/a.mp4",
        ("x/a.txt", "A"),
        ("b.mp4", HARD, "x/a.mp4"),
        ("b.txt", "B"),
        ("x/c.mp4", SOFT, "a.mp4"),
        ("x/c.txt", SOFT, "../x/a.txt"),
        ("d.mp4", SOFT, "gone.mp4"),
        ("e.mp4", SOFT, "e.mp4"),
    )
    assert texts(found) == {"x/a.mp4": "A", "b.mp4": "B", "x/c.mp4": "A"}
    assert len({(clip.offset, clip.size) for clip in found.clips}) == 1
    assert [item for item, _ in found.remarks] == ["a.tar/d.mp4", "a.tar/e.mp4"]
    assert "is a link to gone.mp4, which is not in its shard" in found.remarks[0][1]


def test_a_pointer_is_no_caption(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n"
    found = shard(tmp_path, "a.mp4", ("a.txt", pointer))
    assert texts(found) == {"a.mp4": ""}
    assert "is a Git LFS pointer, so it is no caption; run `git lfs pull`" in found.remarks[0][1]

"""What lies behind the end of an archive in a shard is read, or told."""

import io
import tarfile
from pathlib import Path

import pytest

from gwp.data.formats.find import set_at
from gwp.data.formats.plain.clip_set import ClipSet
from gwp.data.source import Source
from tests.support.sets import write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", range(5)).read_bytes()


def archive(video: bytes, *names: str, end: bool = True) -> bytes:
    """An archive of the video by several names, its end mark left out or not."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            for path, data in ((f"{name}.mp4", video), (f"{name}.txt", f"do {name}".encode())):
                about = tarfile.TarInfo(path)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
        size = tar.offset
    return out.getvalue() if end else out.getvalue()[:size]


def found(folder: Path, raw: bytes) -> ClipSet:
    (folder / "a.tar").write_bytes(raw)
    clips = set_at(Source(uri=str(folder)))
    assert isinstance(clips, ClipSet)
    return clips


@pytest.mark.parametrize("zeros", [0, 512, 1 << 19])
def test_archives_one_behind_the_other_are_read(tmp_path: Path, video: bytes, zeros: int) -> None:
    pieces = [archive(video, "a", "b"), archive(video, "c"), archive(video, "d", end=False)]
    clips = found(tmp_path, bytes(zeros).join(pieces))
    assert {c.name.removeprefix("a.tar/"): c.caption for c in clips.clips} == {
        f"{name}.mp4": f"do {name}" for name in "abcd"
    }
    raw = (tmp_path / "a.tar").read_bytes()
    assert all(raw[c.offset : c.offset + c.size] == video for c in clips.clips)
    assert clips.remarks == (
        ("a.tar", "holds several archives, one behind the end of the other; all of them are read"),
    )
    assert not clips.broken


@pytest.mark.parametrize("zeros", [0, 512, 5000, 1 << 19])
@pytest.mark.parametrize("end", [True, False])
def test_an_archive_alone_says_nothing(tmp_path: Path, video: bytes, zeros: int, end: bool) -> None:
    clips = found(tmp_path, archive(video, "a", end=end) + bytes(zeros))
    assert len(clips.clips) == 1
    assert not clips.remarks
    assert not clips.broken


def test_what_is_no_archive_behind_one_is_told(tmp_path: Path, video: bytes) -> None:
    clips = found(tmp_path, archive(video, "a") + b"signature" * 100)
    assert len(clips.clips) == 1
    ((item, what),) = clips.remarks
    assert item == "a.tar"
    assert what.endswith("behind its end, which are no archive and are not read")


def test_a_header_that_is_damaged_breaks_a_shard_off(tmp_path: Path, video: bytes) -> None:
    raw = bytearray(archive(video, "a", "b", "c"))
    at = raw.index(b"b.mp4")
    raw[at : at + 200] = bytes(x ^ 0x55 for x in raw[at : at + 200])
    clips = found(tmp_path, bytes(raw))
    assert [c.name for c in clips.clips] == ["a.tar/a.mp4"]
    ((item, why),) = clips.broken
    assert item == "a.tar"
    assert "behind 1 videos; it is truncated or damaged" in why

"""Headers that are read without FFmpeg say what FFmpeg says, to the bit, or nothing."""

import io
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from gwp.data.video.decode import WORK
from gwp.data.video.mp4 import header_of
from gwp.data.video.probe import Kinds, VideoInfo, probe
from gwp.errors import DataError
from tests.support.sets import write_video
from tests.unit.gwp.data.video.test_edit_lists import cut

OPTIONS: tuple[tuple[int, dict[str, str]], ...] = (
    (2, {}),
    (1, {}),
    (250, {"bf": "0"}),
    (10, {"bf": "3"}),
    (250, {"bf": "3", "x264-params": "b-pyramid=strict"}),
)


def facts(raw: bytes, kinds: Kinds | None = None) -> VideoInfo | str:
    try:
        return probe(io.BytesIO(raw), kinds)
    except DataError as error:
        return str(error)


def video(path: Path, frames: int, gop: int = 4, fps: float = 10, **options: str) -> bytes:
    return write_video(path, range(frames), fps, gop=gop, **options).read_bytes()


@pytest.mark.parametrize(("gop", "options"), OPTIONS)
@pytest.mark.parametrize("fps", [10, 29.97, 24000 / 1001])
def test_a_second_video_of_a_kind_is_known_without_opening_it(
    tmp_path: Path, gop: int, options: dict[str, str], fps: float
) -> None:
    kinds: Kinds = {}
    for n, frames in enumerate((30, 47)):
        raw = video(tmp_path / f"{n}.mp4", frames, gop, fps, **options)
        alone, opened = facts(raw), WORK.opened
        assert facts(raw, kinds) == alone
        assert WORK.opened == opened + (n == 0)
    assert len(kinds) == 1


def test_a_changed_header_is_read_as_ffmpeg_reads_it(tmp_path: Path) -> None:
    raw = video(tmp_path / "a.mp4", 20, bf="2")
    kinds: Kinds = {}
    facts(raw, kinds)
    begin = raw.rindex(b"moov") - 4
    rng = np.random.default_rng(0)
    trusted = 0
    for at in (*rng.integers(begin, len(raw), 150).tolist(), *range(0, 48, 3)):
        damaged = bytearray(raw)
        damaged[at] ^= int(rng.integers(1, 256))
        before = WORK.opened
        found = facts(bytes(damaged), dict(kinds))
        trusted += WORK.opened == before
        assert found == facts(bytes(damaged)), at
    assert trusted


def test_times_that_are_not_even_are_seen(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", range(20), gop=4, bf="0")
    kinds: Kinds = {}
    late = tmp_path / "late.mp4"
    with av.open(str(whole)) as given, av.open(str(late), "w") as taken:
        stream = given.streams.video[0]
        copy = taken.add_stream_from_template(stream)
        for k, packet in enumerate(given.demux(stream)):
            if packet.dts is None or packet.pts is None:
                continue
            # From the sixteenth on a frame's length later.
            wait = packet.duration if k >= 15 else 0
            packet.dts, packet.pts, packet.stream = packet.dts + wait, packet.pts + wait, copy
            taken.mux(packet)
    cut(whole, tmp_path / "even.mp4", 0.0)
    facts((tmp_path / "even.mp4").read_bytes(), kinds)
    opened = WORK.opened
    found = facts(late.read_bytes(), kinds)
    assert WORK.opened == opened
    assert found == facts(late.read_bytes())
    assert isinstance(found, VideoInfo)
    assert found.frames == 20
    assert found.uneven > 0.5


def test_what_is_not_plain_is_left_to_ffmpeg(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", range(30), gop=8)
    plain = header_of(io.BytesIO(whole.read_bytes()))
    assert plain is not None
    assert len(plain.stamps) == 30
    cut(whole, tmp_path / "cut.mp4", 0.5)
    write_video(tmp_path / "a.mkv", range(5))
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for stream in streams:
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
            container.mux(stream.encode())
    for name in ("cut.mp4", "a.mkv", "two.mp4"):
        assert header_of(io.BytesIO((tmp_path / name).read_bytes())) is None
    for raw in (b"", b"moov", whole.read_bytes()[:-20], whole.read_bytes()[:100]):
        assert header_of(io.BytesIO(raw)) is None


def test_a_kind_is_trusted_only_where_ffmpeg_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = video(tmp_path / "a.mp4", 20)
    kinds: Kinds = {}
    info = facts(raw)
    assert isinstance(info, VideoInfo)
    # As if its tables meant something else than they say.
    monkeypatch.setattr("gwp.data.video.probe._opened", lambda *_: (replace(info, gop=5), True))
    facts(raw, kinds)
    assert list(kinds.values()) == [None]

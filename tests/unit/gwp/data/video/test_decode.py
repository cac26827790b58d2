"""Frames by time: exact, whatever the coding, and refused when they are not there."""

import gc
import io
import struct
import weakref
from pathlib import Path

import av
import numpy as np
import pytest

from gwp.data.video.decode import _Walk, decode_frames, frames_at, open_video
from gwp.data.video.probe import probe
from gwp.errors import DataError, GwpError
from tests.support.sets import FPS, frame_number, write_pictures, write_video


def numbers(path: Path, times: list[float], tolerance: float | None = 0.05) -> list[int]:
    with open_video(str(path)) as handle:
        return [frame_number(f) for f in decode_frames(handle, times, tolerance)]


@pytest.mark.parametrize(
    ("gop", "options"),
    [
        (2, {}),
        (250, {}),
        (10, {"bf": "3"}),
        (250, {"bf": "3"}),
        (10, {"bf": "3", "x264-params": "open-gop=1"}),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_frame_is_found_at_its_time(
    tmp_path: Path, gop: int, options: dict[str, str], suffix: str
) -> None:
    path = write_video(tmp_path / f"a{suffix}", range(80), gop=gop, **options)
    assert numbers(path, [k / FPS for k in range(80)]) == list(range(80))
    for start in (0, 1, 37, 60, 78):
        wanted = [k for k in (start, start + 1, start + 13, start + 40) if k < 80]
        assert numbers(path, [k / FPS for k in wanted]) == wanted


def test_any_order_repeats_and_the_nearest(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", range(30))
    assert numbers(path, [2.0, 0.1, 2.0, 0.14, 0.16]) == [20, 1, 20, 1, 2]


def test_probe_tells_the_facts(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        with open_video(
            str(write_video(tmp_path / f"a{suffix}", range(50), gop=20, sc_threshold="0"))
        ) as handle:
            info = probe(handle)
        assert (info.width, info.height, info.fps, info.frames, info.codec, info.gop) == (
            64,
            48,
            FPS,
            50,
            "h264",
            20,
        )
        assert info.duration_s == 5


def test_seeking_keeps_no_memory(tmp_path: Path) -> None:
    """PyAV leaks a packet with each demuxer that is dropped half-way, and a decoder lives until
    Python collects what goes in circles.
    """

    class Counted:
        demuxers = 0

        def __init__(self, container: object) -> None:
            self._container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self._container, name)

        def demux(self, stream: object) -> object:
            self.demuxers += 1
            return self._container.demux(stream)

    path = write_video(tmp_path / "a.mp4", range(80), gop=2, sc_threshold="0")
    with av.open(str(path)) as container:
        counted = Counted(container)
        walk = _Walk(counted, container.streams.video[0])
        for k in range(1, 80, 6):
            assert frame_number(walk.nearest(k / FPS)[0].to_ndarray(format="rgb24")) == k
        assert counted.demuxers == 1
        # At the end another one begins, and is no less good.
        walk.nearest(100.0)
        walk._seek(walk.origin)
        walk.here = None
        assert frame_number(walk.nearest(0.3)[0].to_ndarray(format="rgb24")) == 3
        kept = weakref.ref(walk)
        gc.disable()
        try:
            del walk
            assert kept() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_videos_come_upright(tmp_path: Path, degrees: int) -> None:
    """Telephones film lying frames and note how they are to be turned. Checked against another
    reader that turns them.
    """
    decord = pytest.importorskip("decord")
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :24, 0] = 255
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner)))
        container.mux(stream.encode(None))
    with open_video(str(path)) as handle:
        info, (found,) = probe(handle), decode_frames(handle, [0.1])
    height, width = (64, 48) if degrees % 180 else (48, 64)
    assert found.shape == (info.height, info.width, 3) == (height, width, 3)
    # Its turned pictures are padded rows of three bytes a pixel, which it calls four.
    theirs = (
        decord.VideoReader(str(path))[1]
        .asnumpy()
        .reshape(height, -1)[:, : 3 * width]
        .reshape(height, width, 3)
    )
    assert abs(found.astype(int) - theirs).mean() < 3
    assert found[..., 0].mean() > 20


def test_no_frame_near_the_time_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", range(10))
    with pytest.raises(DataError, match="no frame within"):
        numbers(path, [0.0, 1.2])
    assert numbers(path, [1.2], tolerance=None) == [9]


def test_frames_before_a_missing_one_are_given(tmp_path: Path) -> None:
    seen: list[float] = []

    def collect() -> None:
        with open_video(str(write_video(tmp_path / "a.mp4", range(10)))) as handle:
            for t, _ in frames_at(handle, [0.1, 0.5, 5.0], 0.05):
                seen.append(t)

    with pytest.raises(DataError):
        collect()
    assert seen == [0.1, 0.5]


@pytest.mark.parametrize("flags", ["", "+faststart"])
def test_a_truncated_file_is_told_apart(tmp_path: Path, flags: str) -> None:
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "a.mp4", rng.integers(0, 80, 90).tolist(), gop=5)
    raw = path.read_bytes()
    if flags:
        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": flags}) as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        raw = (tmp_path / "b.mp4").read_bytes()
    with pytest.raises(DataError, match="truncated"):
        probe(io.BytesIO(raw[: len(raw) * 2 // 3]))


def test_a_damaged_frame_spoils_its_group_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    pictures = [np.roll(base, 3 * k, 1) for k in range(30)]
    path = write_pictures(tmp_path / "a.mp4", pictures, gop=10, bf="0", sc_threshold="0")
    with av.open(str(path)) as container:
        entries = [(e.pos, e.size, e.is_keyframe) for e in container.streams.video[0].index_entries]
    assert [k for k, (_, _, key) in enumerate(entries) if key] == [0, 10, 20]
    raw = bytearray(path.read_bytes())
    start, size, _ = entries[13]
    raw[start + size // 4 : start + size - 10] = rng.bytes(size - 10 - size // 4)

    def sound(k: int) -> bool:
        try:
            decode_frames(io.BytesIO(bytes(raw)), [k / FPS], 0.05)
        except DataError:
            return False
        return True

    assert [k for k in range(30) if not sound(k)] == list(range(13, 20))


@pytest.mark.parametrize("raw", [b"", b"no video at all", bytes(5000)])
def test_what_is_no_video_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="cannot be read as a video"):
        probe(io.BytesIO(raw))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GwpError, match="not found"), open_video(str(tmp_path / "none.mp4")):
        pass


@pytest.mark.parametrize(
    ("codec", "pixels", "sound"),
    [("ffv1", "gray16le", False), ("ffv1", "gray10le", False), ("ffv1", "gray", True),
     ("libx264", "yuv420p10le", True)],
)  # fmt: skip
def test_grey_of_more_than_8_bits_is_refused(
    tmp_path: Path, codec: str, pixels: str, sound: bool
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for k in range(4):
            picture = np.full((48, 64, 3), 40 * k, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for read in (lambda handle: decode_frames(handle, [0.1]), probe):
        with open_video(str(path)) as handle:
            if sound:
                read(handle)
            else:
                with pytest.raises(DataError, match=f"more than 8 bits .{pixels}., as depth"):
                    read(handle)


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ((1, 0, 0, 1), "RGBW"),
        ((0, 1, -1, 0), "BRWG"),
        ((-1, 0, 0, -1), "WBGR"),
        ((0, -1, 1, 0), "GWRB"),
        # Mirrored, as cameras at the front of telephones film.
        ((-1, 0, 0, 1), "GRWB"),
        ((1, 0, 0, -1), "BWRG"),
        ((0, 1, 1, 0), "RBGW"),
        ((0, -1, -1, 0), "WGBR"),
    ],
)
def test_turned_and_mirrored_videos_come_as_they_are_shown(
    tmp_path: Path, matrix: tuple[int, ...], wanted: str
) -> None:
    colours = {"R": (220, 30, 30), "G": (30, 220, 30), "B": (30, 30, 220), "W": (200, 200, 200)}
    corners = np.array([colours[name] for name in "RGBW"], np.uint8).reshape(2, 2, 3)
    path = write_pictures(tmp_path / "a.mp4", [corners.repeat(24, 0).repeat(32, 1)] * 2)
    raw = bytearray(path.read_bytes())
    # Behind the header, its times and numbers: a, b, 0, c, d, 0, 0, 0, 1.
    place = raw.find(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (int(x) << 16 for x in matrix)
    raw[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    picture = decode_frames(io.BytesIO(raw), [0.0])[0].astype(int)
    h, w = picture.shape[:2]
    found = [picture[y, x] for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]
    names = [min(colours, key=lambda n: abs(np.array(colours[n]) - rgb).sum()) for rgb in found]
    assert "".join(names) == wanted
    info = probe(io.BytesIO(raw))
    assert (info.width, info.height) == (w, h)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_avi_with_frames_in_another_order_is_refused(tmp_path: Path, count: int) -> None:
    path = write_video(tmp_path / "a.avi", range(40), gop=10, bf=str(count))
    with open_video(str(path)) as handle, pytest.raises(DataError, match="convert it to MP4"):
        probe(handle)


def test_frames_of_avi_are_found_by_number(tmp_path: Path) -> None:
    """It has no times of its own; those of its frames begin with what decoding holds back."""
    path = write_video(tmp_path / "a.avi", range(40), gop=10, bf="0")
    with open_video(str(path)) as handle:
        assert probe(handle).frames == 40
    assert numbers(path, [k / FPS for k in range(38)]) == list(range(38))
    assert numbers(path, [2.5, 0.0, 0.1]) == [25, 0, 1]


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p16le"
        frame = av.VideoFrame(64, 48, "yuv420p16le")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with open_video(str(path)) as handle, pytest.raises(DataError, match="has 16 bits a channel"):
        probe(handle)

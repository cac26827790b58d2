"""Facts of a video file, from its index and its first frame."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np

from gwp import storage
from gwp.data.video.decode import check_colours, open_video, video_stream
from gwp.data.video.mp4 import header_of
from gwp.errors import DataError
from gwp.yuv import quarter_turns

_EVEN = 0.1
"""Frames by which those of an even clock may be off, as coarse ticks make them."""


@dataclass(frozen=True)
class VideoInfo:
    """Facts of a video stream. `width`, `height`: as it is shown, pixels. `gop`: largest
    distance between key frames, frames.

    `fps`: Hz, mean over the stream. `others`: streams beside it in the file, e.g. sound or a
    second picture. `uneven`: how far the k-th frame is from k / fps at most, in frames; from
    0.5 on the frame nearest to that time is another one.
    """

    width: int
    height: int
    fps: float
    frames: int
    codec: str
    gop: int
    size: int
    others: int = 0
    uneven: float = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.frames / self.fps


@contextmanager
def open_to_probe(uri: str, size: int, offset: int = 0) -> Iterator[Any]:
    """As `open_video`, for what `probe` reads: of a remote file both ends, one of which has the
    index.
    """
    if offset or not storage.is_remote(uri) or size <= 2 * storage.ENDS:
        with open_video(uri, size, offset) as handle:
            yield handle
        return
    ends = storage.read_ends(uri, size, storage.ENDS)
    with storage.open_ends(uri, size, ends, storage.ENDS) as handle:
        yield handle


Kinds = dict[bytes, VideoInfo | None]
"""What FFmpeg says of one file of each kind of header; None: not to be trusted for others."""
_KINDS = 64
"""Most of them that are kept."""


def probe(handle: Any, kinds: Kinds | None = None) -> VideoInfo:
    """Facts of a video; only its first frame is decoded. Raises DataError when it is no video
    or its data end before its index does.

    kinds: of files before, and of this one afterwards: of a plain file that has the header of
    one of them only the tables are read
    """
    size = handle.seek(0, io.SEEK_END)
    header = None if kinds is None else header_of(handle)
    if kinds is None or header is None or header.end > size:
        return _opened(handle, size)[0]
    own = _Clock.of(header.rate, header.tick, header.stamps, header.keys)
    if like := kinds.get(header.kind):
        return own.info(like, size)
    info, sure = _opened(handle, size)
    if sure and header.kind not in kinds and len(kinds) < _KINDS:
        # Where the two disagree, there is more to this kind than its tables.
        kinds[header.kind] = info if own.info(info, size) == info else None
    return info


@dataclass(frozen=True)
class _Clock:
    """Those facts that follow from when which frames are decoded."""

    fps: float
    frames: int
    gop: int
    uneven: float

    @classmethod
    def of(cls, rate: Fraction, tick: Fraction, stamps: np.ndarray, is_key: np.ndarray) -> "_Clock":
        """rate: Hz; tick: s; stamps: int64 `[frames]`, ticks, ascending; is_key: bool of each"""
        keys = np.flatnonzero(is_key) if is_key.any() else np.zeros(1, np.int64)
        gop = int(np.diff(keys, append=len(is_key)).max())
        # Times of decoding, in order, are those of showing but for a shift.
        fps, uneven = _evenly(stamps - stamps[:1], float(rate), float(tick))
        return cls(fps, len(is_key), gop, uneven)

    def info(self, like: VideoInfo, size: int) -> VideoInfo:
        """Of a file of `size` bytes that is else like another."""
        return replace(
            like,
            fps=self.fps,
            frames=self.frames,
            gop=self.gop,
            uneven=self.uneven,
            size=size,
        )


def _opened(handle: Any, size: int) -> tuple[VideoInfo, bool]:
    """Facts of a video of `size` bytes, and whether its first frame could be decoded."""
    with video_stream(handle, index_only=True) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate

        # Per frame: whether it is a key frame, where its data end, and its time.
        index = [
            (e.is_keyframe, e.pos + e.size, e.timestamp)
            for e in stream.index_entries
            if not e.is_discard
        ]
        entries = [(key, end) for key, end, _ in index]
        stamps = [stamp for _, _, stamp in index]
        if "mp4" not in container.format.name:
            # Other containers index key frames only, so their packets are counted.
            entries, stamps = _packets(container, stream)
        if not entries or not rate:
            raise DataError("holds no frames")
        if max(end for _, end in entries) > size:
            raise DataError("its data end before its last frame; the file is truncated")

        is_key = np.array([key for key, _ in entries], bool)
        tick = stream.time_base or Fraction(1)
        clock = _Clock.of(rate, tick, np.sort(np.array(stamps, np.int64)), is_key)
        if clock.uneven > _EVEN and len(index) < len(stream.index_entries):
            # What a cut leaves out goes by when it is shown, the index by when it is decoded: of
            # frames in another order (B-frames) only packets tell.
            counted, stamps = _packets(container, stream)
            if len(stamps) == len(entries):
                is_key = np.array([key for key, _ in counted], bool)
                clock = _Clock.of(rate, tick, np.sort(np.array(stamps, np.int64)), is_key)
        codec = stream.codec_context.codec.canonical_name
        width, height, sure = _upright(container, stream)
        others = len(container.streams) - 1
        about = VideoInfo(width, height, 0.0, 0, codec, 0, 0, others)
        return clock.info(about, size), sure


def _packets(container: Any, stream: Any) -> tuple[list[tuple[bool, int]], list[int]]:
    """Of each frame that is shown: whether it is a key frame, and an end that is not known, 0; and
    when they are shown, ticks. Reads all of the file.
    """
    packets = [
        (p.is_keyframe, p.pts) for p in container.demux(stream) if p.size and not p.is_discard
    ]
    return [(key, 0) for key, _ in packets], [pts for _, pts in packets if pts is not None]


def _evenly(ticks: np.ndarray, rate: float, tick_s: float) -> tuple[float, float]:
    """Rate of a stream, Hz, and how far frames are from it at most, in frames. ticks: of each
    frame, from the first on; rate: frames over the whole duration
    """

    def uneven(fps: float) -> float:
        off = ticks - np.arange(len(ticks)) / (fps * tick_s)
        return float(np.abs(off).max(initial=0.0) * fps * tick_s)

    found = uneven(rate)
    # Some writers let the last frame last a tick: then the mean is not that of the others.
    if found > _EVEN and len(ticks) > 1 and ticks[-1] > 0:
        own = (len(ticks) - 1) / (float(ticks[-1]) * tick_s)
        if (less := uneven(own)) < _EVEN < found:
            return own, less
    return rate, found


def _upright(container: Any, stream: Any) -> tuple[int, int, bool]:
    """Width and height as a video is shown; only its frames tell whether they are turned, if
    one can be decoded.
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    try:
        container.seek(int(stream.start_time or 0), stream=stream)
        first = next(container.decode(stream), None)
    except av.error.FFmpegError:
        # Whoever reads frames learns which of them are damaged.
        first = None
    if first is not None:
        check_colours(first)
    if "avi" in container.format.name and stream.codec_context.has_b_frames:
        raise DataError(
            "is an AVI file with frames in another order than they are shown (B-frames), of which "
            "AVI does not tell the times; convert it to MP4"
        )
    if first is None:
        return width, height, False
    return (height, width, True) if quarter_turns(first) % 2 else (width, height, True)

"""Facts of a video file, from its index and its first frame."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from gwp import storage
from gwp.data.video.decode import check_colours, open_video, video_stream
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


def probe(handle: Any) -> VideoInfo:
    """Facts of a video; only its first frame is decoded. Raises DataError when it is no video
    or its data end before its index does.
    """
    size = handle.seek(0, io.SEEK_END)
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
            packets = [
                (p.is_keyframe, p.pts)
                for p in container.demux(stream)
                if p.size and not p.is_discard
            ]
            entries = [(key, 0) for key, _ in packets]
            stamps = [pts for _, pts in packets if pts is not None]
        if not entries or not rate:
            raise DataError("holds no frames")
        if max(end for _, end in entries) > size:
            raise DataError("its data end before its last frame; the file is truncated")

        keys = [i for i, (key, _) in enumerate(entries) if key] or [0]
        gop = max(b - a for a, b in zip(keys, [*keys[1:], len(entries)], strict=True))
        codec = stream.codec_context.codec.canonical_name
        width, height = _upright(container, stream)

        # Times of decoding, in order, are those of showing but for a shift.
        ticks = np.sort(np.array(stamps, np.int64)) - min(stamps, default=0)
        fps, uneven = _evenly(ticks, float(rate), float(stream.time_base or 1))
        others = len(container.streams) - 1
        return VideoInfo(width, height, fps, len(entries), codec, gop, size, others, uneven)


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


def _upright(container: Any, stream: Any) -> tuple[int, int]:
    """Width and height as a video is shown; only its frames tell whether they are turned."""
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
    return (height, width) if first is not None and quarter_turns(first) % 2 else (width, height)

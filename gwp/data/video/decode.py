"""Frames out of video files: where they are, and only the wanted ones.

Times are seconds of presentation after the first frame of the stream, so that files whose clock
does not start at 0 need no care.
"""

import errno
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from gwp import storage
from gwp.data.pointers import ADVICE, HEAD
from gwp.errors import DataError, GwpError
from gwp.yuv import Picture, picture_of

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,h264,hevc,m4v,ivf"
"""Forms of video files that are read. FFmpeg also knows lists of files, and would open those."""
_MP4 = b"ftyp"
"""With which an MP4 or MOV file begins, behind four bytes."""
_WHOLE_FILE = 8 << 20
"""Remote files up to this many bytes are fetched in one request."""
_AHEAD = 1 << 19
"""Bytes fetched behind a range of a larger remote file: about what a store sends in the time
that asking once more takes.
"""
_GAP = 1 << 16
"""Bytes between two wanted ranges that are rather read than asked around."""
_DEEPEST = 12
"""Bits of a channel of the videos that are made for people."""
_REORDERED = 4
"""Frames behind a wanted one that may have to be decoded before it comes out."""
SEEK_SAVES = 2
"""Frames that a seek must save to be worth its cost: for AV1 at VGA with key frames 2 apart, 4
take an eighth longer, 1 no less.
"""


@dataclass
class Work:
    """What was done with videos, for benchmarks: files or parts opened, frames decoded."""

    opened: int = 0
    decoded: int = 0


WORK = Work()
"""Of this process so far."""


@contextmanager
def open_video(uri: str, size: int | None = None, offset: int = 0) -> Iterator[Any]:
    """A seekable binary handle on a video; small remote ones are fetched whole. `size`: bytes,
    if known; `offset`: where it starts.
    """
    if storage.is_remote(uri) and size is not None and size <= _WHOLE_FILE:
        ranges = ([uri], [offset], [offset + size])
        data = storage.read_ranges(*ranges)[0] if offset else storage.read_bytes(uri, size)
        yield io.BytesIO(data)
        return
    handle = storage.open_read(uri, _AHEAD)
    try:
        yield Part(handle, offset, size) if offset and size is not None else handle
    finally:
        handle.close()


class Part(io.RawIOBase):
    """`size` bytes from `offset` of a seekable handle as a file of its own."""

    def __init__(self, handle: Any, offset: int, size: int) -> None:
        self._handle = handle
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def fetch(self, ranges: list[tuple[int, int]]) -> None:
        """As of remote files."""
        if hasattr(self._handle, "fetch"):
            self._handle.fetch([(self._offset + a, self._offset + b) for a, b in ranges])

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._handle.seek(self._offset + self._at)
        raw = self._handle.read(wanted) if wanted else b""
        buffer[: len(raw)] = raw
        self._at += len(raw)
        return len(raw)


@contextmanager
def video_stream(handle: Any, index_only: bool = False) -> Iterator[tuple[Any, Any]]:
    """Container and first real video stream (cover pictures are not). `index_only`: without the
    frames that FFmpeg decodes to know more of a stream, where an index says enough.
    """
    handle.seek(0)
    options = {"format_whitelist": _CONTAINERS}
    if index_only and handle.read(12)[4:8] == _MP4:
        options |= {"probesize": "32", "analyzeduration": "0"}
    handle.seek(0)
    try:
        with av.open(handle, container_options=options) as container:
            streams = [
                s
                for s in container.streams.video
                if not s.disposition & av.stream.Disposition.attached_pic
            ]
            if not streams:
                raise DataError("has no video stream; it is no video, or truncated")
            stream = streams[0]
            if stream.codec_context is None:
                raise DataError(
                    "is of a codec that cannot be decoded here; convert it to H.264, HEVC or AV1"
                )
            # Decoding tasks run side by side already, one per core.
            stream.codec_context.thread_count = 1
            WORK.opened += 1
            yield container, stream
    except av.error.FFmpegError as error:
        handle.seek(0)
        if handle.read(len(HEAD)) == HEAD:
            raise DataError(f"is a Git LFS pointer and not the file; {ADVICE}") from error
        raise DataError(
            f"cannot be read as a video ({error.strerror}); it is truncated or damaged"
        ) from error
    except (ValueError, OSError) as error:
        # Sizes in a file that is no video send the reader to places that no file has.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # Names in the file that are no text have words of Python's own.
        said = "" if isinstance(error, UnicodeError) else f" ({error})"
        raise DataError(
            f"cannot be read as a video{said}; it is something else, or damaged"
        ) from error


def frames_at(
    handle: Any, times: Sequence[float], tolerance: float | None
) -> Iterator[tuple[float, Picture]]:
    """The frame nearest to each of `times` (seconds, ascending, distinct), one by one; for
    numpy uint8 `[H, W, 3]` RGB.

    `tolerance`: greatest allowed distance, seconds; None: any. Raises DataError at the first
    time that has no readable frame. One pass: it seeks to a key frame where that saves decoding
    (short groups of pictures) and reads on where it does not.
    """
    convert = VideoReformatter()
    with video_stream(handle) as (container, stream):
        walk = _Walk(container, stream)
        if hasattr(handle, "fetch"):
            handle.fetch(walk.ranges(times))
        for wanted in times:
            frame, at, sound = walk.nearest(wanted)
            if tolerance is not None and abs(at - wanted) > tolerance:
                raise DataError(
                    f"has no frame within {tolerance:.4f} s of {wanted:.4f} s (nearest: {at:.4f} s)"
                )
            if not sound:
                raise DataError(f"is damaged at or before {at:.4f} s")
            check_colours(frame)
            yield wanted, picture_of(frame, convert)


def decode_frames(
    handle: Any, times: Sequence[float], tolerance: float | None = None
) -> np.ndarray:
    """The frames nearest to `times` (seconds, any order, repeats allowed): uint8 `[n, H, W,
    3]`. Errors as `frames_at`.
    """
    pictures = {
        t: np.asarray(picture) for t, picture in frames_at(handle, sorted(set(times)), tolerance)
    }
    return np.stack([pictures[t] for t in times])


def check_colours(frame: Any) -> None:
    """DataError for grey of more than 8 bits, and for colours of 16: what they mean no conversion
    could know. Colours of 10 bits are pictures.
    """
    parts = frame.format.components
    if len(parts) > 2 and max(part.bits for part in parts) > _DEEPEST:
        raise DataError(
            f"has 16 bits a channel ({frame.format.name}), which no video for people has; write it "
            "with 8"
        )
    # Alone, or with one of transparency.
    if len(parts) <= 2 and max((part.bits for part in parts), default=0) > 8:
        raise DataError(
            f"is grey of more than 8 bits ({frame.format.name}), as depth is; name another camera, "
            "or write it with 8 bits"
        )


def _decoded(packets: Iterator[Any]) -> Iterator[Any]:
    for packet in packets:
        yield from packet.decode()


class _Walk:
    """Forward walk over a stream in order of presentation."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream
        self.tick = float(stream.time_base)
        self.origin = int(stream.start_time or 0)
        # Other containers index key frames at most.
        index = (
            [e for e in stream.index_entries if not e.is_discard]
            if "mp4" in container.format.name
            else []
        )
        # Entries carry decoding times; the first frame to decode is a key frame and also the
        # first to show.
        shift = self.origin - index[0].timestamp if index else 0
        self.index = np.array(
            [(e.timestamp + shift, e.is_keyframe, e.pos, e.pos + e.size) for e in index], np.int64
        ).reshape(-1, 4)
        self.keys = self.index[self.index[:, 1] > 0, 0]
        self.period = (
            (index[-1].timestamp - index[0].timestamp) / (len(index) - 1) if len(index) > 1 else 0.0
        )
        # It goes on behind all seeks: PyAV leaks a packet whenever a demuxer is dropped
        # half-way, with its `decode` around it or not.
        self.packets = container.demux(stream)
        self._start()
        # AVI has no times: those of its frames begin with what decoding holds back.
        if "avi" in container.format.name and self._advance():
            self.origin = self._pts()

    def _start(self) -> None:
        self.decoder = _decoded(self.packets)
        # Frame and whether it is undamaged, of the last two in order of presentation.
        self.before: tuple[Any, bool] | None = None
        self.here: tuple[Any, bool] | None = None
        self.spoilt = False

    def _seek(self, pts: int) -> None:
        self.container.seek(pts, stream=self.stream, backward=True)
        self._start()

    def ranges(self, times: Sequence[float]) -> list[tuple[int, int]]:
        """Bytes of the file that frames near `times` (seconds) are decoded from, as far as its
        index tells: begin and end, ascending.
        """
        spans: list[tuple[int, int]] = []
        first_of_key = np.flatnonzero(self.index[:, 1])
        for target in (self.origin + round(t / self.tick) for t in times if len(first_of_key)):
            # From the key frame before it to what may have to be decoded after it.
            begin = first_of_key[max(0, int(np.searchsorted(self.keys, target, side="right")) - 1)]
            end = int(np.searchsorted(self.index[:, 0], target, side="right")) + _REORDERED
            entries = self.index[begin : max(end, begin + 1)]
            spans.append((int(entries[:, 2].min()), int(entries[:, 3].max())))
        merged: list[tuple[int, int]] = []
        for begin, end in sorted(spans):
            if merged and begin - merged[-1][1] <= _GAP:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged

    def _advance(self) -> bool:
        for frame in self.decoder:
            WORK.decoded += 1
            # A damaged frame spoils what is predicted from it, up to the next key frame; only
            # the first of them is marked.
            self.spoilt = frame.is_corrupt or (self.spoilt and not frame.key_frame)
            if frame.pts is not None:
                self.before, self.here = self.here, (frame, not self.spoilt)
                return True
        # A demuxer that has come to the end gives nothing more after a seek.
        self.packets = self.container.demux(self.stream)
        return False

    def _pts(self) -> int:
        """Where the walk is; before the first frame when it has not begun."""
        return self.origin - 1 if self.here is None else int(self.here[0].pts)

    def nearest(self, wanted: float) -> tuple[Any, float, bool]:
        """The frame nearest to `wanted`, its time, and whether it is undamaged; not earlier
        than the last one asked for.
        """
        target = self.origin + round(wanted / self.tick)
        key = int(np.searchsorted(self.keys, target, side="right")) - 1
        if key > 0 and self.keys[key] - self._pts() > SEEK_SAVES * self.period:
            self._seek(int(self.keys[key]))
            # Reordered or open groups can start later than their key frame's index says.
            while self._advance() and self._pts() > target and key > 0:
                key -= 1
                self._seek(int(self.keys[key]))
        while self._pts() < target and self._advance():
            pass
        # The first frame at or after the time, or the one before it.
        near = [f for f in (self.before, self.here) if f is not None]
        if not near:
            raise DataError("holds no readable frames")
        frame, sound = min(near, key=lambda f: abs(f[0].pts - target))
        return frame, (frame.pts - self.origin) * self.tick, sound


def small_frames(handle: Any, width: int, height: int) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame in order: time in seconds and the picture, averaged down to even `width` x
    `height`, as planar YUV 4:2:0.

    uint8 `[height * 3 / 2, width]`: rows of luma first, then both chroma planes. DataError when
    the stream breaks off.
    """
    convert = VideoReformatter()
    with video_stream(handle) as (container, stream):
        tick = float(stream.time_base)
        origin = None if "avi" in container.format.name else int(stream.start_time or 0)
        for frame in container.decode(stream):
            if frame.pts is not None:
                origin = int(frame.pts) if origin is None else origin
                check_colours(frame)
                # By area: other kinds would take single pixels, and noise would look like motion.
                small = convert.reformat(
                    frame,
                    width=width,
                    height=height,
                    format="yuv420p",
                    interpolation=Interpolation.AREA,
                )
                yield (frame.pts - origin) * tick, small.to_ndarray()


def explained(uri: str, error: GwpError) -> DataError:
    """`error` with the name of the file before it."""
    return DataError(str(error) if uri in str(error) else f"{uri}: {error}")

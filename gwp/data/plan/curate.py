"""Which clips of plain videos are worth learning from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gwp.data.buckets import Bucket, tile
from gwp.data.video.probe import VideoInfo, open_to_probe, probe
from gwp.data.video.shots import Look, look
from gwp.data.window import ClipWindow
from gwp.errors import DataError

_MOTION_SHARE, _MOTION_LEVELS = 0.25, 0.2
"""Motion of copies differs by at most this share and that many levels more."""


class CurationConfig(BaseModel):
    """Rules for clips of plain videos. Robot sets are never filtered. Each video is decoded
    once more, when the manifest is made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    shots: bool = False
    """Clips start with a shot and end before its end; a shot that is shorter than a clip gives
    none, nor do dissolves.
    """
    min_motion: float = Field(default=0.0, ge=0)
    """Least motion of a clip: mean change of luma in 0.25 s, levels of 255, less the change of
    overall brightness; 0: no limit.

    A still picture has less than 0.1. Measured: people and animation 1 to 10, a robot's wrist
    camera 20, but fixed cameras over a robot's table 0.4 to 5 with a median near 1 and 0.2
    while nothing is grasped. Video of robots moves far less than video from the internet: a
    limit above 0.1 takes good clips from it.
    """
    near_duplicates: int | None = Field(default=None, ge=0, le=32)
    """Largest Hamming distance of the 64-bit perceptual hashes of first, middle and last frame
    at which a clip counts as a copy of one of an earlier video and is dropped, if it also moves
    as much in either half (within a quarter); None: copies stay.

    4 finds copies of another size and quality: of clips at half the size 99 in 100 at H.264 crf
    28, 93 at crf 35. A fixed camera gives nearly the same picture in every recording, at a
    distance of 0 too, and then only the motion tells them apart: better None for those.
    """


@dataclass(frozen=True)
class Cut:
    """Clips of one video: facts of the stream, start in seconds and number of the bucket of
    each, and why others were left out.
    """

    info: VideoInfo
    clips: list[tuple[float, int]]
    left_out: tuple[str, ...]


_SIGN = np.dtype([("hashes", np.uint64, 3), ("halves", np.float32, 2)])
"""By which a copy is told: hashes of first, middle and last frame, and the motion in between."""


class Curator:
    """Cuts videos into clips, one after another; it remembers those that it chose, so the order
    of calls matters for copies.
    """

    def __init__(
        self, clip: ClipWindow, buckets: Sequence[Bucket], rules: CurationConfig | None
    ) -> None:
        self.clip, self.buckets, self.rules = clip, buckets, rules
        self.known = np.empty(0, _SIGN)
        self.count = 0

    @property
    def at_once(self) -> int | None:
        """Videos to look at at a time where storage is far away; None: as many as it takes."""
        # Whole videos are decoded, at a kilobyte of memory a frame.
        return None if self.rules is None else 4

    def look(self, uri: str, size: int, offset: int = 0) -> VideoInfo | Look:
        """What `cut` needs to know of a video, from any thread. DataError when it cannot be
        read.
        """
        if self.rules is not None:
            return look(uri, size, offset)
        with open_to_probe(uri, size, offset) as handle:
            return probe(handle)

    def cut(self, seen: VideoInfo | Look) -> Cut:
        """The clips of a video. DataError when it is shorter than a clip and shots are not
        asked for.
        """
        if isinstance(seen, VideoInfo):
            return Cut(seen, self._whole(seen), ())
        return self.choose(seen)

    def choose(self, seen: Look) -> Cut:
        """The same by the rules, of a video that was decoded."""
        assert self.rules is not None
        rules, reasons = self.rules, []
        # First where clips may lie, then which of them are worth it.
        if rules.shots:
            each = [self._within(seen, a, b) for a, b in seen.spans.tolist()]
            clips = [c for shot in each for c in shot]
            short = sum(not shot for shot in each)
            if short:
                reasons.append(
                    f"{short} of {len(each)} shots are shorter than a clip of {self._shortest_s:.2f} s"
                )
        else:
            clips = self._whole(seen.info)
        # Reasons count against all that were cut, whatever an earlier rule has dropped.
        made = len(clips)
        shown = [self._shown(seen, *c) for c in clips]
        # Before copies: what is dropped here is not remembered, and has none.
        if rules.min_motion:
            moves = [seen.motion(a, z) >= rules.min_motion for a, _, z in shown]
            if not all(moves):
                reasons.append(
                    f"{made - sum(moves)} of {made} clips have less motion than {rules.min_motion:g}"
                )
            clips, shown = list(compress(clips, moves)), list(compress(shown, moves))
        if rules.near_duplicates is not None:
            signs = np.array(
                [
                    (seen.hashes[[a, m, z]], (seen.motion(a, m), seen.motion(m, z)))
                    for a, m, z in shown
                ],
                _SIGN,
            )
            fresh = np.array(
                [not self._is_known(sign, rules.near_duplicates) for sign in signs], bool
            )
            if not fresh.all():
                reasons.append(
                    f"{len(fresh) - int(fresh.sum())} of {made} clips are near duplicates of "
                    "earlier videos"
                )
            # Only now: within one video likeness is the rule, and motion the measure.
            self._remember(signs[fresh])
            clips = list(compress(clips, fresh))
        return Cut(seen.info, clips, tuple(reasons))

    @property
    def _shortest_s(self) -> float:
        # From the first frame to the last there is one gap less than there are frames.
        return (min([b.frames for b in self.buckets] or [self.clip.frames]) - 1) / self.clip.fps

    def _tile(self, info: VideoInfo, seconds: float) -> list[tuple[float, int]]:
        """Clips in so many seconds of a video: start from there, and bucket, 0 where there are
        none.
        """
        # Without buckets one of the video's own shape, so that only its length counts.
        sizes = self.buckets or [
            Bucket(frames=self.clip.frames, height=info.height, width=info.width)
        ]
        return [
            # Buckets are numbered from 1; 0 is the canvas of the stage.
            (at, b + 1 if self.buckets else 0)
            for at, b in tile(sizes, info.width, info.height, seconds, self.clip.fps)
        ]

    def _whole(self, info: VideoInfo) -> list[tuple[float, int]]:
        """Clips one after another from the start of a video to its end. DataError when there is
        room for none.
        """
        # The last frame stands for half a frame more.
        clips = self._tile(info, (info.frames - 0.5) / info.fps)
        if not clips:
            raise DataError(
                f"{info.duration_s:.2f} s are shorter than a clip of {self._shortest_s:.2f} s"
            )
        return clips

    def _within(self, seen: Look, first: int, stop: int) -> list[tuple[float, int]]:
        """Clips one after another that show frames first..stop-1 only; maybe none."""
        start = float(seen.times[first])
        # At a time just between two frames either may be shown.
        return [
            (start + at, b)
            for at, b in self._tile(seen.info, seen.shows_until(stop - 1) - start - 1e-6)
        ]

    def _shown(self, seen: Look, start_s: float, bucket: int) -> tuple[int, int, int]:
        """First, middle and last frame of a clip."""
        frames = self.buckets[bucket - 1].frames if bucket else self.clip.frames
        a, m, z = (seen.nearest(start_s + k / self.clip.fps) for k in (0, frames // 2, frames - 1))
        return a, m, z

    def _is_known(self, sign: np.void, distance: int) -> bool:
        """Compared with all, one after another hash: 0.2 ms for 100 000 clips, little beside
        decoding a video.
        """
        near = self.known[: self.count]
        # Each hash leaves fewer for the next.
        for k in range(3):
            near = near[np.bitwise_count(near["hashes"][:, k] ^ sign["hashes"][k]) <= distance]
        apart = np.abs(near["halves"] - sign["halves"])
        return bool((apart <= _MOTION_SHARE * sign["halves"] + _MOTION_LEVELS).all(1).any())

    def _remember(self, signs: np.ndarray) -> None:
        need = self.count + len(signs)
        # Room at least doubles: copying all of it for every video would be quadratic.
        if need > len(self.known):
            self.known = np.concatenate(
                [self.known[: self.count], np.empty(max(need, 1024), _SIGN)]
            )
        self.known[self.count : need] = signs
        self.count = need

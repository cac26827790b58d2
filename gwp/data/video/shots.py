"""What a plain video shows, from one pass over small pictures of its frames: shots, motion, and
a perceptual hash of every frame.

Cuts are found as PySceneDetect's AdaptiveDetector does, by a change that is large and stands
out from the changes around it, with two questions more: do the frames before and after differ
in structure (a lamp or an exposure step changes levels only), and do they differ over several
frames (a flash or a torn frame is over soon)? Dissolves and fades to or from black are
stretches whose frames are blends of their two ends.
"""

from dataclasses import dataclass

import numpy as np

from gwp.data.video.decode import open_video, small_frames
from gwp.data.video.probe import VideoInfo, probe
from gwp.errors import DataError

_WIDTH, _HEIGHT = 32, 18
_BLOCK = 2048
"""Frames at a time where arithmetic needs wider numbers than the pictures have."""

_LEAST_CHANGE, _STANDS_OUT = 4.0, 2.5
"""A cut changes at least that many levels of 255 on average, and that many times what its
neighbours change.
"""
_NEAR = 4
"""Frames before and after a cut that must differ from each other: what is over sooner is a
disturbance.
"""
_SAME = 0.85
"""Correlation of two pictures above which they show the same thing, whatever the light."""
_BLENDS_S = (1 / 3, 2 / 3, 4 / 3)
"""Lengths of stretches that are looked at for blends, seconds; longer blends are found from
parts of them.
"""
_BLEND_CHANGE = 6.0
"""Levels of 255 by which the ends of a blend differ at least."""
_BLEND_REST = 0.2
"""How far frames of a blend lie off the line between its ends at most, as a share of it."""
_BLEND_EVEN = 0.15
"""How far they lie along the line from where an even blend has them at most, as a share of it."""
_LAG_S = 0.25
"""Motion compares frames this far apart, so that it depends on neither frame rate nor sensor
noise per frame.
"""


@dataclass(frozen=True)
class Shot:
    """From its first frame to the first that is no longer of it, seconds; `motion` as in
    `Look.change`, mean over the shot.
    """

    start_s: float
    end_s: float
    motion: float


@dataclass(frozen=True)
class Look:
    """One video of n frames.

    `times` float64 `[n]`: seconds. `spans` int64 `[s, 2]`: first frame of each shot and one
    past its last; frames of a blend are in none. `change` float32 `[n]`: mean absolute
    difference of luma, levels of 255, to the frame nearest to 0.25 s later in the same shot,
    less the change of overall brightness; NaN where the shot has no later frame. `hashes`
    uint64 `[n]`: signs of the 64 lowest frequencies (DCT).
    """

    info: VideoInfo
    times: np.ndarray
    spans: np.ndarray
    change: np.ndarray
    hashes: np.ndarray

    def shows_until(self, frame: int) -> float:
        """The time from which the frame after `frame` is nearer, seconds."""
        if frame + 1 < len(self.times):
            return float(self.times[frame] + self.times[frame + 1]) / 2
        return float(self.times[frame]) + 0.5 / self.info.fps

    def nearest(self, at_s: float) -> int:
        """Number of the frame nearest to a time."""
        after = int(np.searchsorted(self.times, at_s))
        return min(
            (f for f in (after - 1, after) if 0 <= f < len(self.times)),
            key=lambda f: abs(self.times[f] - at_s),
        )

    def motion(self, first: int, last: int) -> float:
        """Mean of `change` over pairs of frames inside first..last; of the first pair where
        they are less than 0.25 s.
        """
        stop = max(
            first + 1,
            int(np.searchsorted(self.times, self.times[last] - _LAG_S + 1e-6, side="right")),
        )
        within = self.change[first:stop]
        within = within[~np.isnan(within)]
        return float(within.mean()) if len(within) else 0.0

    @property
    def shots(self) -> list[Shot]:
        """The shots in order."""
        ends = [*self.times.tolist(), float(self.times[-1]) + 1 / self.info.fps]
        return [Shot(ends[a], ends[b], self.motion(a, b - 1)) for a, b in self.spans.tolist()]


def look(uri: str, size: int | None = None, offset: int = 0) -> Look:
    """Decode a video once and describe it; depends on nothing but the file. 0.9 kB of memory
    per frame.

    `size`: bytes, if known; `offset`: where in the file it starts. DataError when it cannot be
    read to its end.
    """
    with open_video(uri, size, offset) as handle:
        info = probe(handle)
        seen = list(small_frames(handle, _WIDTH, _HEIGHT))
    if not seen:
        raise DataError("holds no readable frames")
    times = np.array([time for time, _ in seen])
    pictures = np.stack([picture for _, picture in seen])
    spans = find_spans(pictures, info.fps)
    return Look(info, times, spans, _change(pictures, times, spans), _hashes(pictures))


def find_spans(pictures: np.ndarray, fps: float) -> np.ndarray:
    """Shots of uint8 `[n, 27, 32]` as `small_frames` gives them: first frame and one past the
    last, int64 `[s, 2]`.
    """
    n = len(pictures)
    inside = np.ones(n, bool)
    for length in sorted({4 * max(2, round(fps * s / 4)) for s in _BLENDS_S}):
        for first in _blends(pictures, length):
            # Both ends are still pure.
            inside[first + 1 : first + length] = False

    # A shot begins at a cut, and where a blend ends; it ends where the next one, or a blend, begins.
    starts = np.zeros(n + 1, bool)
    starts[0] = starts[n] = True
    starts[_cuts(pictures)] = True
    starts[1:n] |= inside[1:] != inside[:-1]
    edges = np.flatnonzero(starts)
    spans = np.stack([edges[:-1], edges[1:]], 1)
    return spans[inside[spans[:, 0]]]


def _cuts(pictures: np.ndarray) -> list[int]:
    """Numbers of frames that begin after a hard cut."""
    n = len(pictures)
    change = np.zeros(n)
    for k in range(1, n, _BLOCK):
        # Signed: differences of uint8 would wrap around.
        step = np.diff(pictures[k - 1 : k + _BLOCK].astype(np.int16), axis=0)
        change[k : k + _BLOCK] = np.abs(step).mean((1, 2))

    # Changes of the two frames before and the two after; outside the video there are none to
    # count.
    offsets = (-2, -1, 1, 2)
    padded = np.pad(change, 2)
    known = np.pad((np.arange(n) > 0).astype(float), 2)
    total = sum(padded[2 + o : 2 + o + n] for o in offsets)
    count = sum(known[2 + o : 2 + o + n] for o in offsets)
    around = total / np.maximum(1, count)
    candidates = np.flatnonzero((change >= _LEAST_CHANGE) & (change >= _STANDS_OUT * around))

    # Every frame before has to differ from every frame after: a flash comes back to what was.
    cuts: list[int] = []
    for i in candidates.tolist():
        before = pictures[max(0, i - _NEAR) : i].astype(np.float32)
        after = pictures[i : i + _NEAR].astype(np.float32)
        apart = np.abs(before[:, None] - after).mean((2, 3)).min()
        alike = max(_correlation(np.broadcast_to(b, after.shape), after).max() for b in before)
        if apart >= change[i] / 2 and alike < _SAME:
            cuts.append(i)
    return cuts


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the luma of pictures `[k, 27, 32]` pairwise, `[k]`. Below one level of contrast it
    tends to 0: nothing to compare.
    """
    u, v = (x[:, :_HEIGHT].reshape(len(x), _HEIGHT * _WIDTH) for x in (a, b))
    u = u - u.mean(1, keepdims=True)
    v = v - v.mean(1, keepdims=True)
    return np.asarray((u * v).mean(1) / (np.sqrt((u * u).mean(1) * (v * v).mean(1)) + 1.0))


def _blends(pictures: np.ndarray, length: int) -> list[int]:
    """First frames of stretches of `length` frames (a multiple of 4) that pass evenly from one
    picture to a different one.
    """
    blends: list[int] = []
    for k in range(0, len(pictures) - length, _BLOCK):
        block = pictures[k : k + _BLOCK + length].astype(np.float32)
        first, last = block[:-length], block[length:]
        # Stretches whose ends differ; few are left after this.
        left = np.flatnonzero(np.abs(last - first).mean((1, 2)) >= _BLEND_CHANGE)
        left = left[_correlation(first[left], last[left]) < _SAME]
        # And whose frames at each quarter stand where an even blend has them.
        for quarter in (1, 2, 3):
            line = (last - first)[left]
            step = block[left + quarter * length // 4] - first[left]
            along = (step * line).sum((1, 2)) / (line * line).sum((1, 2))
            rest = step - along[:, None, None] * line
            off = np.sqrt((rest * rest).sum((1, 2)) / (line * line).sum((1, 2)))
            left = left[(np.abs(along - quarter / 4) <= _BLEND_EVEN) & (off <= _BLEND_REST)]
        blends += (left + k).tolist()
    return blends


def _change(pictures: np.ndarray, times: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """`Look.change`."""
    n = len(times)
    frames = np.arange(n)
    # Of each frame, the last one of its shot; a frame of a blend is its own.
    last = frames.copy()
    for start, stop in spans:
        last[start:stop] = stop - 1
    # Of each frame, the one nearest to 0.25 s later, but not past its shot.
    after = np.clip(np.searchsorted(times, times + _LAG_S), 1, n - 1) if n > 1 else frames
    nearer = times + _LAG_S - times[after - 1] <= times[after] - times - _LAG_S
    later = np.minimum(np.maximum(after - nearer, frames + 1), last)
    change = np.empty(n, np.float32)
    for k in range(0, n, _BLOCK):
        here = slice(k, k + _BLOCK)
        step = pictures[later[here], :_HEIGHT].astype(np.float32) - pictures[here, :_HEIGHT]
        change[here] = np.abs(step - step.mean((1, 2), keepdims=True)).mean((1, 2))
    change[later <= frames] = np.nan
    return change


def _cosines(size: int, count: int) -> np.ndarray:
    """The first `count` rows of the orthonormal DCT-II, float32 `[count, size]`; the constant
    row is longer by sqrt(2), unused here.
    """
    angles = np.pi / size * np.arange(count)[:, None] * (np.arange(size) + 0.5)
    return np.sqrt(2 / size) * np.cos(angles).astype(np.float32)


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """`Look.hashes`. Coefficients of less than two levels count as negative, so that flat
    pictures have one hash and not noise.
    """
    # From low to high; brightness itself, which is frequency 0, is left out.
    frequencies = [(v, u) for v in range(10) for u in range(10) if u + v]
    frequencies.sort(key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    rows, columns = np.array(frequencies[:64]).T
    hashes = np.empty(len(pictures), np.uint64)
    for k in range(0, len(pictures), _BLOCK):
        luma = pictures[k : k + _BLOCK, :_HEIGHT].astype(np.float32)
        waves = _cosines(_HEIGHT, 10) @ luma @ _cosines(_WIDTH, 10).T
        bits = np.packbits(waves[:, rows, columns] > 2, axis=1)
        hashes[k : k + _BLOCK] = np.ascontiguousarray(bits).view(">u8")[:, 0]
    return hashes

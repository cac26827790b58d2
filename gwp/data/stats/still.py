"""Which dimensions of a recording move: not how far in robot units, which may be metres or ticks,
but compared with the resolution of the recording and with the other dimensions.
"""

import numpy as np

_DIGITS = 8
"""Steps of the recorded numbers below which a range is what rounding leaves."""
_COUNTS = 1.5
"""Range above which whole numbers move where the recording would hold parts of them: counts."""
_SHARE = 1e-4
"""Range of noise, as a share of that of the other dimensions."""
_LEVELS, _FLICKER = 2.5, 1e-2
"""Noise also are so few of the smallest steps that were seen, where they are less than that
share of the other ranges: a sensor that flickers.
"""
_SMOOTH = 0.5
"""Squared change from row to row over the squared spread within an episode from which on numbers
are noise: of white noise it is 2, of a motion of many rows almost 0.
"""
_RESTS, _FAR = 8.0, 10.0
"""Usual changes from row to row up to which the middle 98 % of the rows are noise of a part at
rest, where its whole way is so many times as far.
"""
_WILD = 1e3
"""Times the usual size from which on single rows are wild."""
_ABOVE = 1.5
"""How far above such noise its resolution lies."""
_EXPONENTS = 256
"""Powers of two in which changes are counted, about 1."""
_TINY = float(np.finfo(np.float32).tiny)


class Motion:
    """How the rows of a feature move, gathered over episodes.

    jumps: bool `[d]`, where the furthest way of each is of single rows, not of a motion
    largest_step: `[d]`, largest change from row to row
    """

    def __init__(self, width: int) -> None:
        self._largest = np.zeros(width)
        self._usual_size = np.zeros(width)
        self._smallest_step = np.full(width, np.inf)
        self.largest_step = np.zeros(width)
        self._changes = np.zeros(width)
        self._spread = np.zeros(width)
        # What was recorded: rows; more digits than float32 has, in it and in what is subtracted;
        # whether anything is; and other than whole numbers.
        self._noted = 0
        self._fine = np.zeros(width, bool)
        self._fine_beside = np.zeros(width, bool)
        self._beside = np.zeros(width, bool)
        self._parts = np.zeros(width, bool)
        self._steps = np.zeros((width, _EXPONENTS), np.int64)
        # Of the episode in which each goes furthest: how far, and whether it jumps there and back.
        self._furthest = np.zeros(width)
        self.jumps = np.ones(width, bool)

    def add(self, rows: np.ndarray, beside: np.ndarray | None = None) -> None:
        """The finite rows `[n, d]` of an episode, robot units, absolute. beside: `[n, d]`, what
        will be subtracted from them.
        """
        if not len(rows):
            return
        for values in (rows, beside):
            if values is not None:
                sizes = np.abs(values)
                self._largest = np.maximum(self._largest, sizes.max(0))
                self._usual_size = np.maximum(self._usual_size, _medians(sizes))
        changes = np.diff(rows, axis=0)
        steps = np.where(changes == 0, np.inf, np.abs(changes)).min(0, initial=np.inf)
        self._smallest_step = np.minimum(self._smallest_step, steps)
        self.largest_step = np.maximum(self.largest_step, np.abs(changes).max(0, initial=0.0))
        squares, spread = (changes**2).sum(0), ((rows - rows.mean(0)) ** 2).sum(0)
        self._changes += squares
        self._spread += spread
        way = np.ptp(rows, axis=0)
        further = way > self._furthest
        self._furthest = np.where(further, way, self._furthest)
        self.jumps = np.where(further, squares > _SMOOTH * spread, self.jumps)
        exponents = np.clip(np.frexp(changes)[1] + _EXPONENTS // 2, 0, _EXPONENTS - 1)
        # Counted in one go: those of dimension i stand behind those of the ones before it.
        places = (exponents + _EXPONENTS * np.arange(rows.shape[1]))[changes != 0]
        self._steps += np.bincount(places, minlength=self._steps.size).reshape(self._steps.shape)

    def note(self, rows: np.ndarray, beside: np.ndarray | None = None) -> None:
        """The finite rows `[n, d]` of an episode as they were recorded, which tell the digits of
        the recording; rows that are computed between them have more. beside: `[n, d]`, what will
        be subtracted from them.
        """
        self._noted += len(rows)
        self._fine |= _fine(rows)
        self._parts |= (rows != np.rint(rows)).any(0)
        if beside is not None:
            self._fine_beside |= _fine(beside)
            self._beside |= (beside != 0).any(0)

    def resolution(self, ranges: np.ndarray, middle: np.ndarray | None = None) -> np.ndarray:
        """Range of each dimension below which it does not move, `[d]`, above 0. ranges: from
        the lowest to the highest number of each, `[d]`; middle: of the middle 98 % of the rows;
        None: not known, and no part is taken to rest noisily but for a rare way
        """
        # What the recording can tell apart at this distance from 0. A wild row says nothing of
        # where the others are.
        wild = self.jumps & (self._largest > _WILD * self._usual_size)
        largest = np.where(wild, self._usual_size, self._largest)
        largest = np.maximum(largest, _TINY)
        step = np.spacing(largest.astype(np.float32)).astype(np.float64)
        floor = _DIGITS * step
        others = _others(ranges, ranges >= floor)
        # Of more digits, too, what is small beside the others and not even some steps of float32
        # is no motion: simulators leave such drifts.
        fine = np.maximum(_DIGITS * np.spacing(largest), np.minimum(floor, _SHARE * others))
        counts = ~self._parts & ~self._beside & (self._noted > 0) & (self._fine | (step < 1))
        counted = np.minimum(floor, _COUNTS)
        floor = np.where(self._fine & (self._fine_beside | ~self._beside), fine, floor)
        floor = np.where(counts, counted, floor)
        few = _LEVELS * self._smallest_step
        noise = np.where(few <= _FLICKER * others, few, _SHARE * others)
        # What never changes within an episode is no motion either. What is small but smooth is.
        noisy = (self._changes == 0) | (self._changes > _SMOOTH * self._spread)
        found = np.where(noisy, np.maximum.reduce([floor, noise, _SHARE * others]), floor)
        if middle is None:
            return found
        # A way that lasts is none of single wild rows: those are no reason to take it whole.
        rests = ~self.jumps & (middle <= _RESTS * self._usual()) & (ranges >= _FAR * middle)
        return np.where(rests, np.maximum(found, _ABOVE * middle), found)

    def _usual(self) -> np.ndarray:
        """Median of the changes from row to row, but for those of 0, up to a power of two, `[d]`."""
        half = self._steps.sum(1, keepdims=True) / 2
        exponents = (np.cumsum(self._steps, 1) < half).sum(1) - _EXPONENTS // 2
        return np.ldexp(1.0, exponents)


def _fine(rows: np.ndarray) -> np.ndarray:
    """bool `[d]`: whether numbers of `[n, d]` have more digits than float32."""
    return np.asarray((rows.astype(np.float32) != rows).any(0))


def _medians(rows: np.ndarray) -> np.ndarray:
    """As `np.median(rows, axis=0)` of `[n, d]`, n > 0, in less than half of the time."""
    half = len(rows) // 2
    # Behind each other, what is compared is sorted faster.
    ordered = np.partition(rows.T.copy(), (max(0, half - 1), half), axis=1)
    high = ordered[:, half]
    return high if len(rows) % 2 else (ordered[:, half - 1] + high) / 2


def _others(ranges: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Median of the ranges of the other dimensions that move, `[d]`; 0 where there is none."""
    medians = np.zeros(len(ranges))
    for i in range(len(ranges)):
        rest = moving.copy()
        rest[i] = False
        if rest.any():
            medians[i] = np.median(ranges[rest])
    return medians

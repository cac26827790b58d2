"""How sure a figure is: of a rate, and of means over training seeds, tasks and episodes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

_Z95 = 1.959964
_RESAMPLES = 2000

Groups = Mapping[str, Sequence[float | None]]
"""Task -> a number for each episode, in the order of starts; None: it could not be had."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    seeds, episodes: of which it is the mean; episodes: those of all seeds
    """

    mean: float
    low: float
    high: float
    seeds: int
    episodes: int


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate (Wilson 1927).

    Sound for few episodes and for 0 %, as the normal interval is not.
    """
    # No episode says nothing: any rate is possible.
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    z2 = _Z95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    spread = math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    half = _Z95 * spread / (1 + z2 / episodes)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_of(groups: Groups) -> float | None:
    """Mean over tasks of the mean over their episodes; None where there is none."""
    tasks = _tasks(groups)
    return float(np.mean([task.mean() for task in tasks])) if tasks else None


def hierarchical(seeds: Sequence[Groups], *, rate: bool = False, seed: int = 0) -> Interval | None:
    """The mean over seeds of `mean_of`, with a percentile interval of a bootstrap that draws seeds,
    and starts within each task. None where there is no number.

    All seeds meet the same starts, so one draw of starts is that of all of them: more seeds do not
    make up for few starts. Tasks are not drawn: it says nothing of others. A bootstrap of n is too
    narrow by sqrt((n - 1) / n), so both parts are widened by that; of two or three it is still a
    rough one, and one seed says nothing of others. rate: numbers are 0 or 1, and the interval stays
    between them; where every draw gives the same it is Wilson's over all episodes, for drawing says
    nothing then.
    """
    known = [groups for groups in seeds if _tasks(groups)]
    if not known:
        return None
    own = np.array([mean_of(groups) for groups in known])
    mean, n = float(own.mean()), len(own)
    episodes = sum(len(task) for groups in known for task in _tasks(groups))
    low, high = _percentiles(known, own, np.random.default_rng(seed))
    if rate and low == high:
        low, high = wilson(round(mean * episodes), episodes)
    if rate:
        low, high = max(0.0, low), min(1.0, high)
    return Interval(mean, low, high, n, episodes)


def paired(
    first: Sequence[Groups], second: Sequence[Groups], *, rate: bool = False, seed: int = 0
) -> Interval | None:
    """The first less the second, as `hierarchical`; both of the same seeds, in their order, and on
    the same starts. An episode that one of them lacks is left out of both.
    """
    differences = [_difference(a, b) for a, b in zip(first, second, strict=True)]
    found = hierarchical(differences, seed=seed)
    if found is None or not rate:
        return found
    low, high = found.low, found.high
    if low == high:
        # Drawn again they always differ alike, which they also may when a few would not.
        most = wilson(0, found.episodes)[1]
        low, high = found.mean - most, found.mean + most
    return replace(found, low=max(-1.0, low), high=min(1.0, high))


def ratio(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval | None:
    """The second over the first, as the geometric mean over pairs, with an interval of a bootstrap
    of the pairs, widened as in `hierarchical`. Numbers above 0.
    """
    if not first:
        return None
    logs = [{"": [math.log(b / a)]} for a, b in zip(first, second, strict=True)]
    found = hierarchical(logs, seed=seed)
    assert found is not None
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    return Interval(mean, low, high, len(first), len(first))


def _tasks(groups: Groups) -> list[np.ndarray]:
    """Numbers of each task that has some, float64 `[n]`."""
    known = ([value for value in values if value is not None] for values in groups.values())
    return [np.asarray(values, np.float64) for values in known if values]


def _difference(first: Groups, second: Groups) -> dict[str, list[float | None]]:
    return {
        task: [
            None if a is None or b is None else a - b
            for a, b in zip(first[task], second[task], strict=True)
        ]
        for task in first
        if task in second
    }


def _starts(seeds: Sequence[Groups], task: str) -> np.ndarray:
    """Mean over seeds at each start of a task where some seed has a number `[m]`."""
    rows = [groups.get(task, ()) for groups in seeds]
    at_starts = ([value for value in column if value is not None] for column in zip_longest(*rows))
    return np.array([np.mean(values) for values in at_starts if values], np.float64)


def _percentiles(
    seeds: Sequence[Groups], own: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """own: the mean of each seed `[n]`"""
    n = len(seeds)
    between = own[rng.integers(n, size=(_RESAMPLES, n))].mean(1) - own.mean()
    tasks = dict.fromkeys(task for groups in seeds for task in groups)
    starts = [values for task in tasks if len(values := _starts(seeds, task))]
    moved = np.zeros(_RESAMPLES)
    for values in starts:
        m = len(values)
        again = values[rng.integers(m, size=(_RESAMPLES, m))].mean(1) - values.mean()
        moved += _wider(m) * again / len(starts)
    low, high = np.percentile(own.mean() + _wider(n) * between + moved, (2.5, 97.5))
    return float(low), float(high)


def _wider(n: int) -> float:
    return math.sqrt(n / (n - 1)) if n > 1 else 1.0

"""How sure a figure is: of a rate, and of means over training seeds, tasks and episodes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    and within each drawn one the episodes of each task. None where there is no number.

    A bootstrap of few seeds is too narrow by sqrt((n - 1) / n), so what lies between seeds is
    widened by that; of two or three seeds it is still a rough one. rate: numbers are 0 or 1, and
    the interval stays between them; where all are equal it is Wilson's over all episodes, for
    resampling those says nothing.
    """
    drawn = [tasks for groups in seeds if (tasks := _tasks(groups))]
    if not drawn:
        return None
    values = np.concatenate([task for tasks in drawn for task in tasks])
    own = np.array([np.mean([task.mean() for task in tasks]) for tasks in drawn])
    mean, n = float(own.mean()), len(own)
    if rate and values.min() == values.max() and values[0] in (0.0, 1.0):
        low, high = wilson(int(values.sum()), len(values))
        return Interval(mean, low, high, n, len(values))
    low, high = _percentiles(drawn, own, np.random.default_rng(seed))
    if rate:
        low, high = max(0.0, low), min(1.0, high)
    return Interval(mean, low, high, n, len(values))


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
    if found.low == found.high == 0.0:
        # They did the same everywhere, which they also may when a few would differ.
        most = wilson(0, found.episodes)[1]
        return Interval(0.0, -most, most, found.seeds, found.episodes)
    return Interval(
        found.mean, max(-1.0, found.low), min(1.0, found.high), found.seeds, found.episodes
    )


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


def _percentiles(
    drawn: Sequence[Sequence[np.ndarray]], own: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """own: the mean of each seed `[n]`, of whose tasks `drawn` has the numbers"""
    n = len(drawn)
    picks = rng.integers(n, size=(_RESAMPLES, n))
    # What another draw of episodes does to the mean of each pick.
    moved = np.zeros(picks.shape)
    for number, tasks in enumerate(drawn):
        here = np.nonzero(picks == number)
        again = np.zeros(len(here[0]))
        for task in tasks:
            again += task[rng.integers(len(task), size=(len(again), len(task)))].mean(1)
        moved[here] = again / len(tasks) - own[number]
    wider = math.sqrt(n / (n - 1)) if n > 1 else 1.0
    between = own[picks].mean(1) - own.mean()
    means = own.mean() + wider * between + moved.mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)

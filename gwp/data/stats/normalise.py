"""Normalisation: statistics under the loader's own window rule, and the map that uses them.

The rule of the released models: every row is a start, the action window is clamped at the end
of the episode and clamped rows count (so that published statistics and ours are
interchangeable; the loss masks those rows), masked dimensions are relative to the state at the
start, quantiles q01 and q99 go to -1 and 1, nothing is clamped.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from gwp.data.embodiment import Embodiment
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import ACTION, STATE, check_embodiment, rows_per_step
from gwp.data.formats.vectors import episode_vectors
from gwp.data.rates import at_steps, row_span, steps_of
from gwp.data.source import Source, as_ranges
from gwp.data.stats.moments import Moments
from gwp.data.window import Window
from gwp.errors import DataError

BOUNDARY = "clamped rows count"
_FLOOR = 1e-4
"""Ranges below this (robot units: rad, m, share of a gripper's way) are noise of a part that
does not move.
"""
_PIECE = 1 << 20
"""Numbers of the windows that are in memory at a time."""
_AGAIN = "run `gwp data stats` again"


@dataclass(frozen=True)
class FeatureStats:
    """Statistics of one feature, float64 `[d]` each, in robot units."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @property
    def low_high(self) -> tuple[np.ndarray, np.ndarray]:
        """What goes to -1 and 1: the quantiles; for a part that moves in less than 2 % of the
        rows (a rare grip), the extremes.
        """
        rare = self.q99 - self.q01 < _FLOOR
        return np.where(rare, self.min, self.q01), np.where(rare, self.max, self.q99)

    @property
    def constant(self) -> np.ndarray:
        """bool `[d]`: dimensions that do not move. Normalised they are 0; the inverse gives
        their mean.
        """
        low, high = self.low_high
        return high - low < _FLOOR

    def head(self, width: int) -> "FeatureStats":
        """The first `width` dimensions: published files pad to the width of the model."""
        return FeatureStats(*(getattr(self, f.name)[:width] for f in fields(self)))

    def to_json(self, width: int) -> dict[str, list[float] | list[int]]:
        """The values by name, with zeros up to `width`, and `constant`: indices of dimensions
        that do not move.
        """
        zeros = np.zeros(width - len(self.mean))
        values: dict[str, list[float] | list[int]] = {
            f.name: np.concatenate([getattr(self, f.name), zeros]).tolist() for f in fields(self)
        }
        return values | {"constant": np.flatnonzero(self.constant).tolist()}


@dataclass(frozen=True)
class Stats:
    """Statistics of state and (delta) action of one robot, and the rule they were computed
    under.
    """

    state: FeatureStats
    action: FeatureStats
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self, width: int | None = None) -> dict[str, Any]:
        """The published form, with `constant` (indices of dimensions that do not move) in each
        feature and our `metadata`.

        `width`: of the model, to which published files pad with zeros; None: the robot's own.
        DataError when it is too small.
        """
        widest = max(len(self.state.mean), len(self.action.mean))
        if width is not None and width < widest:
            raise DataError(f"statistics of {widest} dimensions do not fit a width of {width}")
        features = {STATE: self.state, ACTION: self.action}
        norm = {key: f.to_json(width or len(f.mean)) for key, f in features.items()}
        metadata = self.metadata | ({"model_dim": width} if width else {})
        return {"norm_stats": norm, "metadata": metadata}

    def cut(self, embodiment: Embodiment) -> "Stats":
        """At the robot's own widths, without the padding of a file."""
        metadata = {key: value for key, value in self.metadata.items() if key != "model_dim"}
        return Stats(
            self.state.head(len(embodiment.state_names)),
            self.action.head(len(embodiment.action_names)),
            metadata,
        )

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Stats":
        """From `to_json` or a published file; `min` and `max` may be missing there. DataError
        when it is neither.
        """
        try:
            state, action = (_parse(raw["norm_stats"][key]) for key in (STATE, ACTION))
            return cls(state, action, dict(raw.get("metadata") or {}))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not statistics ({type(error).__name__}: {error}); expected norm_stats with "
                f"{STATE} and {ACTION}, "
                "each with mean, std, q01, q99"
            ) from error

    def check(self, embodiment: Embodiment, window: Window | None = None) -> None:
        """DataError when these were computed under another rule than this robot and window
        have.

        What a published file does not state cannot be compared, and what it states in words of
        its own neither; widths always are.
        """
        wanted = rule(embodiment, window.chunk if window else embodiment.chunk)
        stated = dict(self.metadata)
        if "state_names" not in stated:
            # A published file: of what it states, these two mean the same as ours.
            mask = list(stated.get("delta_mask") or embodiment.delta)
            own = len(embodiment.delta)
            # Padded as the vectors are.
            if not any(mask[own:]):
                mask = mask[:own]
            horizon = stated.get("action_horizon", wanted["action_horizon"])
            stated = {"delta_mask": mask, "action_horizon": horizon}
        for key, ours in wanted.items():
            # Not stated: nothing to compare.
            theirs = stated.get(key, ours)
            if theirs != ours:
                raise DataError(
                    f"statistics were computed with {key} {theirs}, embodiment "
                    f"{embodiment.name} needs {ours}; {_AGAIN}"
                )
        widths = (
            (self.state, embodiment.state_names, "state"),
            (self.action, embodiment.action_names, "action"),
        )
        for stats, names, what in widths:
            # Wider is allowed, for published files are padded to the width of the model.
            if len(stats.mean) < len(names):
                raise DataError(
                    f"statistics have {len(stats.mean)} {what} dimensions, embodiment "
                    f"{embodiment.name} has {len(names)}; {_AGAIN}"
                )


def _parse(raw: dict[str, Any]) -> FeatureStats:
    # Published files may have no extremes; the quantiles stand in.
    complete = {"min": raw["q01"], "max": raw["q99"]} | raw
    arrays = [np.asarray(complete[f.name], np.float64) for f in fields(FeatureStats)]
    if (
        len({a.shape for a in arrays}) != 1
        or arrays[0].ndim != 1
        or not all(np.isfinite(a).all() for a in arrays)
    ):
        raise ValueError("vectors of different lengths, or not finite")
    stats = FeatureStats(*arrays)
    if (stats.q01 > stats.q99).any() or (stats.min > stats.max).any() or (stats.std < 0).any():
        raise ValueError("a lower quantile or extreme above the upper one, or a negative std")
    return stats


def rule(embodiment: Embodiment, chunk: int) -> dict[str, Any]:
    """What statistics depend on besides the data."""
    return {
        "action_horizon": chunk,
        "fps": embodiment.fps,
        "delta_mask": list(embodiment.delta),
        "boundary": BOUNDARY,
        "action_representation": "relative to the state at the start where delta_mask",
        "state_names": list(embodiment.state_names),
        "action_names": list(embodiment.action_names),
        "resample": list(embodiment.resampling),
    }


def delta_base(state: np.ndarray, delta: Sequence[bool]) -> np.ndarray:
    """What is subtracted from actions: float64 `[..., 1, da]`, the state `[..., ds]` where the
    mask is True, else 0.
    """
    mask = np.asarray(delta, bool)
    # Action i is relative to state i: by the mask both are the same quantity.
    base = np.zeros((*np.shape(state)[:-1], 1, len(mask)))
    base[..., 0, mask] = np.asarray(state, np.float64)[..., np.flatnonzero(mask)]
    return base


def compute_stats(
    sources: Sequence[Source],
    embodiment: Embodiment,
    window: Window,
    reader: FileReader | None = None,
) -> Stats:
    """Statistics of one robot over its labelled sources, pooled without weights. Reads rows
    only, no pictures.

    Samples that the loader would skip (broken episodes, NaN or Inf) do not count. Quantiles are
    exact up to 2 M rows per feature, above that of a uniform sample of so many. They depend on
    the data sets and their chosen episodes, whatever order those are given in. `reader`: keeps
    what is read of files; None: one for this call. DataError when
    no usable row is left.
    """
    # Over all sources together; only sums and a sample of the rows stay in memory.
    states = Moments(len(embodiment.state_names))
    actions = Moments(len(embodiment.action_names))
    datasets: list[dict[str, Any]] = []
    reader = reader or FileReader()
    left_out = 0
    for source in sources:
        data = robots_at(source, reader)
        if data is None:
            raise DataError(f"{source.uri}: plain videos have no actions to compute statistics of")
        check_embodiment(data, embodiment, source.resample)
        ratio = rows_per_step(data, embodiment)
        # As a stage would use it: statistics may be made of a set that no stage names yet.
        labelled = source.model_copy(update={"embodiment": embodiment.name, "with_actions": True})
        # Some are known to be broken from the index, others only when their rows are read.
        # No camera is asked for: rows are all that is read.
        good, bad = usable_episodes(data, labelled, [], reader)
        unusable = [e.index for e, _ in bad]
        for episode, first in good:
            try:
                state, action = episode_vectors(data, episode, first, reader)
                _check_widths(state, action, embodiment, episode.data_file)
            except DataError:
                unusable.append(episode.index)
                continue
            name = f"{data.fingerprint}/{episode.index}"
            left_out += _add(states, actions, state, action, ratio, window.chunk, embodiment, name)
        # What was asked for, and what of it could not be used: a run is compared with the
        # first.
        chosen = [e.index for e, _ in [*good, *bad]]
        datasets.append(
            {
                "fingerprint": data.fingerprint,
                "episodes": as_ranges(chosen),
                "unusable_episodes": as_ranges(unusable),
                "num_episodes": len(chosen) - len(unusable),
            }
        )
    if not states.count:
        raise DataError(
            f"no usable rows for the statistics of {embodiment.name}; look at its sources with "
            "`gwp data inspect`"
        )
    state_stats = FeatureStats(**states.result())
    action_stats = FeatureStats(**actions.result())
    # The fingerprint is of rule and data alone, in an order of their own.
    used_rule = rule(embodiment, window.chunk)
    in_order = sorted(datasets, key=lambda d: (d["fingerprint"], d["episodes"]))
    basis = json.dumps([used_rule, in_order], sort_keys=True)
    metadata = used_rule | {
        "embodiment": embodiment.name,
        "fingerprint": hashlib.sha256(basis.encode()).hexdigest()[:12],
        "datasets": datasets,
        "num_episodes": sum(d["num_episodes"] for d in datasets),
        "num_state_samples": states.count,
        "num_action_samples": actions.count,
        "num_windows_left_out": left_out,
        "quantile_sample_limit": Moments.SAMPLE,
        "constant_state": _named(state_stats, embodiment.state_names),
        "constant_action": _named(action_stats, embodiment.action_names),
    }
    return Stats(state_stats, action_stats, metadata)


def _named(stats: FeatureStats, names: Sequence[str]) -> list[str]:
    return [name for name, still in zip(names, stats.constant, strict=True) if still]


def _check_widths(state: np.ndarray, action: np.ndarray, embodiment: Embodiment, file: str) -> None:
    """DataError when rows of a file are not as wide as the robot says."""
    wide = (state.shape[1], action.shape[1])
    wanted = (len(embodiment.state_names), len(embodiment.action_names))
    if wide != wanted:
        raise DataError(
            f"{file}: state and action are {wide[0]} and {wide[1]} wide, {embodiment.name} has "
            f"{wanted[0]} and {wanted[1]}"
        )


def _add(
    states: Moments,
    actions: Moments,
    state: np.ndarray,
    action: np.ndarray,
    ratio: float,
    chunk: int,
    embodiment: Embodiment,
    name: str,
) -> int:
    """Add every window of one episode; the number of windows with NaN or Inf, which are left
    out as the loader leaves them out.
    """
    rows = len(action)
    steps = steps_of(rows, ratio)
    missing = ~np.isfinite(action).all(1)
    if ratio != 1:
        state = at_steps(state, 0, steps, ratio)
        # Sums run over the whole episode here; a missing row spoils only the windows that read
        # it.
        action = at_steps(
            np.where(missing[:, None], 0, action), 0, steps, ratio, embodiment.resampling
        )
    # A window is usable when as many rows are missing before its end as before its begin.
    before = np.concatenate([[0], np.cumsum(missing)])
    begin, end = np.array([row_span(k, min(chunk, steps - k), ratio, rows) for k in range(steps)]).T
    # The state is read at the start alone, actions over the whole window.
    usable = np.flatnonzero(np.isfinite(state).all(1) & (before[end] == before[begin]))
    # Which rows are sampled for quantiles is a property of the row.
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    of_states, of_actions = (
        np.random.default_rng(np.random.SeedSequence((salt, seed))) for salt in (13, 17)
    )

    # Windows overlap: all of an episode's at once would be `chunk` times as large as it.
    piece = max(1, _PIECE // (chunk * action.shape[1]))
    for first in range(0, len(usable), piece):
        starts = usable[first : first + piece]
        # Clamped at the end of the episode, as the rule says.
        steps_read = np.minimum(starts[:, None] + np.arange(chunk), steps - 1)
        windows = action[steps_read] - delta_base(state[starts], embodiment.delta)
        states.add(state[starts], of_states.random(len(starts)))
        actions.add(windows.reshape(-1, action.shape[1]), of_actions.random(len(starts) * chunk))
    return steps - len(usable)


class Normalizer:
    """Robot units to model units and back, at the robot's own widths. DataError when the
    statistics are of another rule.
    """

    def __init__(self, stats: Stats, embodiment: Embodiment) -> None:
        stats.check(embodiment)
        self._delta = embodiment.delta
        self._state = _Affine(stats.state.head(len(embodiment.state_names)))
        self._action = _Affine(stats.action.head(len(embodiment.action_names)))

    def state(self, x: np.ndarray) -> np.ndarray:
        """State `[..., ds]`, robot units, to float32 model units."""
        return self._state.forward(np.asarray(x, np.float64))

    def actions(self, a: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Actions `[..., p, da]` of the chunk that starts at `state` `[..., ds]`, both robot
        units, to float32 model units.
        """
        return self._action.forward(np.asarray(a, np.float64) - delta_base(state, self._delta))

    def inverse_actions(self, y: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The way back: float32 robot units."""
        relative = self._action.backward(np.asarray(y, np.float64))
        return (relative + delta_base(state, self._delta)).astype(np.float32)


class _Affine:
    """The map of one feature: low to -1, high to 1, what does not move to 0.

    Sums are float64, for robot units of a large offset have few digits left in float32.
    """

    def __init__(self, stats: FeatureStats) -> None:
        self._low, high = stats.low_high
        self._still = stats.constant
        self._mean = stats.mean
        # 1 where nothing moves: that side is computed, too, and must not divide by zero.
        self._width = np.where(self._still, 1.0, high - self._low)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """float64 `[..., d]`, robot units, to float32 model units."""
        return np.where(self._still, 0.0, 2 * (x - self._low) / self._width - 1).astype(np.float32)

    def backward(self, y: np.ndarray) -> np.ndarray:
        """float64 `[..., d]`, model units, to float64 robot units."""
        return np.where(self._still, self._mean, (y + 1) / 2 * self._width + self._low)

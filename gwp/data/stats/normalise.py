"""Normalisation: statistics under the loader's own window rule, and the map that uses them.

The rule of the released models: every row is a start, the action window is clamped at the end
of the episode and clamped rows count (so that published statistics and ours are
interchangeable; the loss masks those rows), masked dimensions are relative to the state at the
start, quantiles q01 and q99 go to -1 and 1, nothing is clamped.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.robot_set import ACTION, STATE, check_embodiment, rows_per_step
from gwp.data.formats.vectors import vectors_of
from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.kinds import Gripper, Reference, grippers_of
from gwp.data.source import Source, as_ranges
from gwp.data.sources import Once, episodes_read
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.moments import Moments
from gwp.data.stats.references import ReferenceSums, read, written
from gwp.data.stats.still import Motion
from gwp.data.stats.windows import Rotations, WindowSums, check_ranges
from gwp.data.window import Window
from gwp.errors import DataError

BOUNDARY = "clamped rows count"
RANGES, PUBLISHED = "ranges", "published"
"""Entry of the metadata, and what it says where narrow ranges are divided by as published."""
_PUBLISHED_FLOOR = 1e-8
_AGAIN = "run `gwp data stats` again"


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
            state, action = (
                FeatureStats.from_json(raw["norm_stats"][key]) for key in (STATE, ACTION)
            )
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
        elif "kinds" in stated or embodiment.kinds:
            # Ours say nothing where all are plain numbers.
            stated = {"kinds": {}} | stated
            wanted = {"kinds": {}} | wanted
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


def rule(embodiment: Embodiment, chunk: int) -> dict[str, Any]:
    """What statistics depend on besides the data."""
    written = embodiment.model_dump(mode="json")
    kinds = {"kinds": written["kinds"]} if embodiment.kinds else {}
    return kinds | {
        "action_horizon": chunk,
        "fps": embodiment.fps,
        "delta_mask": list(embodiment.delta),
        "boundary": BOUNDARY,
        "action_representation": "relative to the state at the start where delta_mask",
        "state_names": list(embodiment.state_names),
        "action_names": list(embodiment.action_names),
        "resample": list(embodiment.resampling),
    }


def compute_stats(
    sources: Sequence[Source],
    embodiment: Embodiment,
    window: Window,
    reader: FileReader | None = None,
) -> Stats:
    """Statistics of one robot over its labelled sources, pooled without weights. Reads rows, and
    of pictures no more than whether they are there.

    Samples that the loader would skip (broken episodes, those that lack a camera, NaN or Inf) do
    not count; a camera that a set does not know is no reason here. Quantiles are
    exact up to 2 M rows per feature, above that of a uniform sample of so many. They depend on
    the data sets and their chosen episodes, whatever order those are given in. `reader`: keeps
    what is read of files; None: one for this call. DataError when
    no usable row is left, or where two sources name the same episodes.
    """
    reader = reader or FileReader()
    rotations = ReferenceSums(embodiment)
    # Signs and turns are free: what is taken must be known before they are added up.
    if rotations.needed:
        for source in sources:
            for _, rows in _Rows(source, embodiment, reader):
                rotations.add(*rows)
    references = rotations.references()
    # Over all sources together; only sums and a sample of the rows stay in memory.
    sums = WindowSums(embodiment, window.chunk, Rotations(embodiment, references))
    datasets: list[dict[str, Any]] = []
    once = Once()
    why = ""
    for source in sources:
        episodes = _Rows(source, embodiment, reader)
        once.note(source, episodes.read)
        for name, (state, action) in episodes:
            check_ranges(state, action, embodiment, f"{source.uri}, episode {name}")
            fingerprint = f"{episodes.data.fingerprint}/{name}"
            sums.add(state, action, episodes.ratio, fingerprint)
        datasets.append(episodes.account())
        why = why or episodes.why
    if not sums.states.count:
        raise DataError(
            f"no usable rows for the statistics of {embodiment.name}{why and f' ({why})'}; look at "
            "its sources with `gwp data inspect`"
        )
    state_stats = _resolved(sums.states, sums.motion[0])
    action_stats = _resolved(sums.actions, sums.motion[1])
    # The fingerprint is of rule and data alone, in an order of their own.
    used_rule = rule(embodiment, window.chunk)
    in_order = sorted(datasets, key=lambda d: (d["fingerprint"], d["episodes"]))
    basis = json.dumps([used_rule, in_order], sort_keys=True)
    metadata = used_rule | {
        "embodiment": embodiment.name,
        "fingerprint": hashlib.sha256(basis.encode()).hexdigest()[:12],
        "datasets": datasets,
        "num_episodes": sum(d["num_episodes"] for d in datasets),
        "num_state_samples": sums.states.count,
        "num_action_samples": sums.actions.count,
        "num_windows_left_out": sums.left_out,
        "quantile_sample_limit": Moments.SAMPLE,
        "constant_state": _named(state_stats, embodiment.state_names),
        "constant_action": _named(action_stats, embodiment.action_names),
    }
    if rotations.needed:
        metadata |= written(references)
    return Stats(state_stats, action_stats, metadata)


class _Rows:
    """The episodes of a source that can train, one after another: number, and rows of state and
    action.
    """

    def __init__(self, source: Source, embodiment: Embodiment, reader: FileReader) -> None:
        data = robots_at(source, reader)
        if data is None:
            raise DataError(f"{source.uri}: plain videos have no actions to compute statistics of")
        check_embodiment(data, embodiment, source.resample)
        self.data, self.ratio = data, rows_per_step(data, embodiment)
        self._embodiment, self._reader = embodiment, reader
        # As a stage would use it: statistics may be made of a set that no stage names yet.
        labelled = source.model_copy(update={"embodiment": embodiment.name, "with_actions": True})
        # An episode that lacks a picture trains nothing. Cameras of the robot that the set does not
        # know are an error where samples are listed; those that the source itself names, here too.
        data.slots(source.cameras or {})
        wanted = (source.cameras or embodiment.cameras).values()
        cameras = [camera for camera in wanted if camera in data.cameras]
        # Some are known to be broken from the index, others only when their rows are read.
        self._good, bad = usable_episodes(data, labelled, cameras, reader)
        self._unusable = {e.index for e, _ in bad}
        self.read = episodes_read(data, self._good)
        self.why = next((reason for _, reason in bad), "")

    def __iter__(self) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        read = vectors_of(self.data, self._good, self._reader)
        for (episode, _), vectors in zip(self._good, read, strict=True):
            try:
                if isinstance(vectors, DataError):
                    raise vectors
                state, action = vectors
                _check_widths(state, action, self._embodiment, episode.data_file)
            except DataError as error:
                self._unusable.add(episode.index)
                self.why = self.why or str(error)
                continue
            yield episode.index, (state, action)

    def account(self) -> dict[str, Any]:
        """What was asked for, and what of it could not be used, once all were read: a run is
        compared with the first.
        """
        chosen = {e.index for e, _ in self._good} | self._unusable
        return {
            "fingerprint": self.data.fingerprint,
            "episodes": as_ranges(chosen),
            "unusable_episodes": as_ranges(self._unusable),
            "num_episodes": len(chosen) - len(self._unusable),
        }


def _resolved(sums: Moments, motion: Motion) -> FeatureStats:
    stats = FeatureStats(**sums.result())
    noise = motion.resolution(stats.max - stats.min, stats.q99 - stats.q01)
    told = replace(stats, resolution=noise, step=motion.largest_step)
    return told.without_wild(motion.jumps)


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


class Normalizer:
    """Robot units to model units and back, at the robot's own widths. DataError when the
    statistics are of another rule.
    """

    def __init__(self, stats: Stats, embodiment: Embodiment) -> None:
        stats.check(embodiment)
        states, actions = embodiment.state_names, embodiment.action_names
        self._rotations = Rotations(embodiment, _references(stats, embodiment))
        self._mean = stats.action.head(len(actions)).mean
        kinds = embodiment.kinds
        published = stats.metadata.get(RANGES) == PUBLISHED
        state, action = stats.state.head(len(states)), stats.action.head(len(actions))
        self._state = _Affine(state, grippers_of(states, kinds), published)
        self._action = _Affine(action, grippers_of(actions, kinds), published)

    def state(self, x: np.ndarray) -> np.ndarray:
        """State `[..., ds]`, robot units, to float32 model units."""
        return self._state.forward(self._rotations.state(np.asarray(x, np.float64)))

    def inverse_state(self, y: np.ndarray) -> np.ndarray:
        """The way back: float64 robot units; rotations in the numbers that the statistics are of."""
        return self._state.backward(np.asarray(y, np.float64))

    def actions(self, a: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Actions `[..., p, da]` of the chunk that starts at `state` `[..., ds]`, both robot
        units, to float32 model units.
        """
        return self._action.forward(self._rotations.relative(np.asarray(a, np.float64), state))

    def inverse_actions(self, y: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The way back: float32 robot units."""
        relative = self._action.backward(np.asarray(y, np.float64))
        return self._rotations.absolute(relative, state).astype(np.float32)

    def mean_action(self, state: np.ndarray) -> np.ndarray:
        """The mean action of the data, float32 `[..., da]`, robot units, where the robot is at
        `state` `[..., ds]`.
        """
        absolute = self._rotations.absolute(self._mean, state)
        return np.asarray(absolute[..., 0, :], np.float32)


def _references(stats: Stats, embodiment: Embodiment) -> tuple[Reference, Reference]:
    """Which of several numbers for one rotation these statistics are of."""
    found = read(stats.metadata, embodiment)
    if found is None:
        raise DataError(
            f"statistics of {embodiment.name} do not say what its quaternions are near to; {_AGAIN}"
        )
    return found


class _Affine:
    """The map of one feature: low to -1, high to 1, what does not move to 0. `published`: q01 to
    -1, q99 to 1, and all moves: ranges of less than 1e-8 count as that.

    Sums are float64, for robot units of a large offset have few digits left in float32.
    """

    def __init__(
        self, stats: FeatureStats, grippers: Mapping[int, Gripper], published: bool = False
    ) -> None:
        self._low, high = stats.low_high
        self._still = stats.constant
        if published:
            self._low, high = stats.q01.copy(), stats.q99.copy()
            self._still = np.zeros(len(high), bool)
        self._mean = stats.mean
        for i, gripper in grippers.items():
            # Single wild rows are no end of its way.
            wild = stats.wild is not None and stats.wild[i]
            extremes = (self._low[i], high[i]) if wild else (stats.min[i], stats.max[i])
            ends = gripper.range or extremes
            self._still[i] = ends[0] == ends[1]
            self._low[i], high[i] = ends[::-1] if gripper.invert else ends
        self._binary = [i for i, gripper in grippers.items() if gripper.binary]
        # 1 where nothing moves: that side is computed, too, and must not divide by zero.
        self._width = np.where(self._still, 1.0, high - self._low)
        if published:
            # Not of grippers, whose way may go down.
            narrow = [i for i in range(len(high)) if i not in grippers]
            self._width[narrow] = np.maximum(self._width[narrow], _PUBLISHED_FLOOR)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """float64 `[..., d]`, robot units, to float32 model units."""
        return np.where(self._still, 0.0, 2 * (x - self._low) / self._width - 1).astype(np.float32)

    def backward(self, y: np.ndarray) -> np.ndarray:
        """float64 `[..., d]`, model units, to float64 robot units."""
        y = np.array(y)
        y[..., self._binary] = np.where(y[..., self._binary] < 0, -1.0, 1.0)
        return np.where(self._still, self._mean, (y + 1) / 2 * self._width + self._low)

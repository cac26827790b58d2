"""The plan: which sample comes when. A pure function of the manifest, its weights, a seed and
the epoch.

Each source is an endless sequence: one shuffled pass over its samples after another. An epoch
takes `weight` x its number of samples from it, going on where the epoch before stopped. So
weight 1 shows every sample once per epoch, 0.5 in every second one, 2 twice.

A few windows of one file stand next to each other, so that it is opened once for all of them;
which ones is drawn anew in every pass.

Batches are of one kind, so that all ranks run the same graph: of one bucket, and with actions or
without, unless those are mixed; their order is shuffled. What does not fill a global batch at the
end of an epoch comes first in the next: no batch is partial, and no sample is lost.
"""

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gwp.data.plan.manifest import Manifest
from gwp.errors import DataError

_SOURCE, _EPOCH, _BATCHES = 0, 1, 2
"""Streams of random numbers that must not coincide."""


@dataclass(frozen=True)
class Rules:
    """What a plan depends on besides manifest, seed and epoch.

    batch: samples per global batch, of each bucket of the manifest; together: windows of one
    file that stand next to each other; mixed: samples with actions and without share batches
    """

    batch: tuple[int, ...]
    together: int = 1
    mixed: bool = False

    @classmethod
    def even(cls, global_batch: int, together: int = 1) -> "Rules":
        """The same number of samples in every batch."""
        return cls((global_batch,), together)

    def of(self, bucket: int) -> int:
        # `even` has one number for all buckets.
        return self.batch[min(bucket, len(self.batch) - 1)]


@dataclass(frozen=True)
class Plan:
    """One epoch: manifest positions int64 in order, samples in each of its global batches, and
    the sha256 that names it.
    """

    order: np.ndarray
    batches: np.ndarray
    hash: str


@dataclass(frozen=True)
class Mixing:
    """How well a plan mixes: distinct episodes (or videos) per global batch, mean, beside that
    of independent draws; files opened per 1000 samples.
    """

    episodes_per_batch: float
    episodes_if_independent: float
    opens_per_thousand: float


def make_plan(manifest: Manifest, seed: int, epoch: int, rules: Rules) -> Plan:
    """The plan of one epoch; the same arguments give the same plan on every machine.

    DataError when an epoch of the manifest fills no global batch.
    """
    batches: list[np.ndarray] = []
    kinds = _kinds(manifest, rules)
    _require_one(kinds, rules)
    for kind in kinds:
        # From earlier epochs, as many as did not fill a batch of theirs.
        waiting, parts, earlier = (
            kind.before(epoch) % kind.batch,
            [kind.shuffled(seed, epoch, rules.together)],
            epoch,
        )
        while waiting:
            # The end of each epoch before; a small one may not hold all that waits.
            earlier -= 1
            last = kind.shuffled(seed, earlier, rules.together)[-waiting:]
            parts.insert(0, last)
            waiting -= len(last)
        taken = np.concatenate(parts)
        batches += list(taken[: kind.whole(epoch)].reshape(-1, kind.batch))
    if not batches:
        return Plan(np.empty(0, np.int64), np.empty(0, np.int64), "")
    # Kinds mix over the epoch; each batch stays of one kind.
    every = [batches[i] for i in _shuffled(len(batches), seed, _BATCHES, epoch)]
    order = np.concatenate(every)
    name = f"{manifest.fingerprint} {seed} {epoch} {rules.batch} {rules.together} "
    if rules.mixed:
        name += "mixed "
    digest = hashlib.sha256(name.encode() + order.astype("<i8").tobytes())
    return Plan(order, np.array([len(b) for b in every]), digest.hexdigest())


def plan_slice(
    manifest: Manifest, seed: int, start: int, batches: int, rules: Rules
) -> list[np.ndarray]:
    """Manifest positions int64 of `batches` global batches, from the one that begins at place
    `start` of the endless row of epochs.

    Resuming is a slice at `samples_seen`; the number of workers does not matter. Raises as
    `make_plan`; DataError when no batch begins at `start`.
    """
    found: list[np.ndarray] = []
    kinds = _kinds(manifest, rules)
    _require_one(kinds, rules)
    epoch = before = 0
    while len(found) < batches:
        # Counted only: epochs that end before `start` are passed without shuffling them.
        length = sum(kind.whole(epoch) for kind in kinds)
        if before + length > start:
            plan = make_plan(manifest, seed, epoch, rules)
            # Where batches of this epoch begin and end, as places in the row of all epochs.
            edges = before + np.concatenate([[0], np.cumsum(plan.batches)])
            if start > before and start not in edges:
                raise DataError(
                    f"no global batch begins at sample {start}; the run was made by another plan"
                )
            found += [plan.order[a - before : b - before] for a, b in pairwise(edges) if a >= start]
        before, epoch = before + length, epoch + 1
    return found[:batches]


def mixing(manifest: Manifest, plan: Plan, workers: int = 1) -> Mixing:
    """How many episodes a global batch meets, and how many files are opened when each of
    `workers` reads its part of every batch.

    Views of one moment count as one file. DataError when the epoch has no batch.
    """
    if not len(plan.order):
        raise DataError("this epoch has no batch")
    # An id is data set / episode or video / moment.
    first = np.unique(manifest.place, return_index=True)[1]
    # By name, not by place: a set in two sources has its episodes once.
    names = pc.replace_substring_regex(
        manifest.samples["sample_id"].take(pa.array(first)).combine_chunks(), "/[^/]*$", ""
    )
    episodes = names.dictionary_encode().indices.to_numpy()[manifest.place][plan.order]
    edges = np.cumsum(plan.batches)[:-1]
    met = np.mean([len(np.unique(batch)) for batch in np.split(episodes, edges)])
    files = np.split(manifest.files[plan.order], edges)
    opened = sum(len(np.unique(part)) for batch in files for part in np.array_split(batch, workers))
    shares = np.bincount(episodes) / len(plan.order)
    # Expected number of distinct ones in n draws with these shares.
    independent = np.mean([(1 - (1 - shares) ** n).sum() for n in plan.batches])
    return Mixing(float(met), float(independent), 1000 * opened / len(plan.order))


@dataclass(frozen=True)
class _Source:
    """Positions of a source's samples, the number of each one's file, and the source's weight."""

    ids: np.ndarray
    files: np.ndarray
    weight: Fraction

    def range(self, epoch: int) -> tuple[int, int]:
        """Part of its endless sequence that an epoch takes."""
        n = len(self.ids)
        return int(epoch * self.weight * n), int((epoch + 1) * self.weight * n)


@dataclass(frozen=True)
class _Kind:
    """Samples that may stand in one batch."""

    number: int
    sources: list[_Source]
    batch: int

    def before(self, epoch: int) -> int:
        """Samples that earlier epochs took."""
        return sum(source.range(epoch)[0] for source in self.sources)

    def whole(self, epoch: int) -> int:
        """Samples of the epoch's whole batches; what waits from earlier ones is among them."""
        return (
            self.before(epoch + 1) // self.batch - self.before(epoch) // self.batch
        ) * self.batch

    def shuffled(self, seed: int, epoch: int, together: int) -> np.ndarray:
        """Positions that an epoch takes from all sources, mixed."""
        parts = [_take(source, seed, epoch, together) for source in self.sources]
        taken = np.concatenate([ids for ids, _ in parts])
        # Numbers of sources must not meet; no position comes near 2^40.
        groups = np.concatenate([g + (1 << 40) * i for i, (_, g) in enumerate(parts)])
        return taken[_shuffled_groups(groups, seed, _EPOCH, epoch, self.number)]


def _require_one(kinds: list[_Kind], rules: Rules) -> None:
    if not any(kind.whole(0) for kind in kinds):
        counts = ", ".join(f"{kind.before(1)} of {kind.batch}" for kind in kinds)
        of = "" if rules.mixed else "with and without actions and "
        raise DataError(
            f"no global batch is filled in an epoch (samples {of}of each bucket: {counts}); add "
            "data, or lower engine.global_batch"
            if kinds
            else "the manifest has no samples"
        )


def _kinds(manifest: Manifest, rules: Rules) -> list[_Kind]:
    source, weight, bucket, labelled = (
        manifest.column(name) for name in ("source", "weight", "bucket", "has_action")
    )
    files = manifest.files
    kinds: dict[int, _Kind] = {}
    # With actions before without, for each bucket; then sources in their order.
    # `~` negates arrays of bool; of a Python bool it would give -1 or -2.
    number = 2 * bucket if rules.mixed else 2 * bucket + ~labelled
    for kind in np.unique(number):
        for which in np.unique(source[number == kind]):
            ids = np.flatnonzero((source == which) & (number == kind))
            # Exact: with a float, 0.29 of 100 samples would be 28.
            share = Fraction(float(weight[ids[0]])).limit_denominator(1_000_000)
            found = kinds.setdefault(int(kind), _Kind(int(kind), [], rules.of(int(kind) // 2)))
            found.sources.append(_Source(ids, files[ids], share))
    return list(kinds.values())


def _take(source: _Source, seed: int, epoch: int, together: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that an epoch takes from a source, and the group of each: windows of one file
    that stay together.
    """
    n = len(source.ids)
    first, last = source.range(epoch)
    ids, groups = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for k in range(first // n, -(-last // n)):
        # A source is named by its first position, which no other has.
        order = _shuffled(n, seed, _SOURCE, int(source.ids[0]), k)
        group = _grouped(source.files[order], together)
        # A group stands where its first member was drawn.
        together_now = np.argsort(group, kind="stable")
        ids.append(source.ids[order[together_now]])
        groups.append(group[together_now] + k * n)
    cut = slice(first - first // n * n, last - first // n * n)
    return np.concatenate(ids)[cut], np.concatenate(groups)[cut]


def _grouped(files: np.ndarray, together: int) -> np.ndarray:
    """For each window in drawn order, the place of the first one of its group: up to `together`
    of one file.
    """
    n = len(files)
    # Windows of one file behind each other, in the order of the draw: the sort is stable.
    by_file = np.argsort(files, kind="stable")
    sorted_files = files[by_file]
    begins = (
        np.concatenate([[True], sorted_files[1:] != sorted_files[:-1]]) if n else np.empty(0, bool)
    )
    rank = np.arange(n) - np.maximum.accumulate(np.where(begins, np.arange(n), 0))
    # Every `together`-th window of a file leads a group, and those behind it follow.
    leader = np.where(rank % together == 0, np.arange(n), 0)
    group = np.empty(n, np.int64)
    group[by_file] = by_file[np.maximum.accumulate(leader)]
    return group


def _shuffled_groups(groups: np.ndarray, *key: int) -> np.ndarray:
    """A permutation that keeps runs of equal `groups` together, in their order."""
    n = len(groups)
    run = (
        np.cumsum(np.concatenate([[False], groups[1:] != groups[:-1]]))
        if n
        else np.empty(0, np.int64)
    )
    # Whole runs are shuffled: where each of them goes.
    place = np.empty(int(run[-1]) + 1 if n else 0, np.int64)
    place[_shuffled(len(place), *key)] = np.arange(len(place))
    return np.argsort(place[run], kind="stable")


def _shuffled(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. n-1. Raw bits, because numpy promises those (and not `permutation`)
    to stay the same over versions.
    """
    bits: np.ndarray = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")

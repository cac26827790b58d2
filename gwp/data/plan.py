"""The plan: which sample comes when. A pure function of the manifest, its weights, a seed and the epoch.

Each source is an endless sequence: one shuffled pass over its samples after another. An epoch takes `weight` x its number of samples
from it, going on where the epoch before stopped. So weight 1 shows every sample once per epoch, 0.5 in every second one, 2 twice.

Batches are of one kind, with actions or without, so that all ranks run the same graph; their order is shuffled. What does not fill
a global batch at the end of an epoch is left out, other samples each time.
"""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gwp.data.manifest import Manifest
from gwp.errors import DataError

_SOURCE, _EPOCH, _BATCHES = 0, 1, 2
"""Streams of random numbers that must not coincide."""


@dataclass(frozen=True)
class Plan:
    """One epoch: manifest positions int64 in order, a multiple of the global batch, and the sha256 that names it."""

    order: np.ndarray
    hash: str


def make_plan(manifest: Manifest, seed: int, epoch: int, global_batch: int) -> Plan:
    """The plan of one epoch; the same arguments give the same plan on every machine.

    DataError when the samples with actions, or those without, do not fill one global batch.
    """
    batches = []
    for kind, sources in enumerate(_kinds(manifest)):
        if sources:
            taken = np.concatenate([_take(ids, weight, seed, epoch) for ids, weight in sources])
            taken = taken[_shuffled(len(taken), seed, _EPOCH, epoch, kind)]
            batches.append(taken[: _whole(sources, epoch, global_batch)].reshape(-1, global_batch))
    if not batches:
        raise DataError("the manifest has no samples")
    every = np.concatenate(batches)
    order = every[_shuffled(len(every), seed, _BATCHES, epoch)].reshape(-1)
    digest = hashlib.sha256(f"{manifest.fingerprint} {seed} {epoch} {global_batch} ".encode() + order.astype("<i8").tobytes())
    return Plan(order, digest.hexdigest())


def plan_slice(manifest: Manifest, seed: int, start: int, count: int, global_batch: int) -> np.ndarray:
    """Manifest positions int64 `[count]` at places `start ..` of the endless row of epochs.

    Resuming is a slice at `samples_seen`; the number of workers does not matter. Raises as `make_plan`.
    """
    parts = [np.empty(0, np.int64)]
    kinds = _kinds(manifest)
    epoch = before = 0
    while before < start + count:
        length = sum(_whole(sources, epoch, global_batch) for sources in kinds if sources)
        if not length:
            raise DataError("the manifest has no samples")
        if before + length > start:
            parts.append(make_plan(manifest, seed, epoch, global_batch).order[max(0, start - before) : start + count - before])
        before, epoch = before + length, epoch + 1
    return np.concatenate(parts)


_Sources = list[tuple[np.ndarray, Fraction]]


def _kinds(manifest: Manifest) -> tuple[_Sources, _Sources]:
    """Sources with actions and without: positions of their samples and their weight."""
    source = manifest.table["source"].to_numpy()
    weight = manifest.table["weight"].to_numpy()
    labelled = manifest.table["has_action"].to_numpy(zero_copy_only=False).astype(bool)
    kinds: tuple[_Sources, _Sources] = ([], [])
    for number in np.unique(source):
        ids = np.flatnonzero(source == number)
        kinds[0 if labelled[ids[0]] else 1].append((ids, Fraction(float(weight[ids[0]])).limit_denominator(1_000_000)))
    return kinds


def _range(n: int, weight: Fraction, epoch: int) -> tuple[int, int]:
    """Part of a source's endless sequence that an epoch takes."""
    return int(epoch * weight * n), int((epoch + 1) * weight * n)


def _whole(sources: _Sources, epoch: int, global_batch: int) -> int:
    count = 0
    for ids, weight in sources:
        first, last = _range(len(ids), weight, epoch)
        count += last - first
    if count < global_batch:
        raise DataError(
            f"{count} samples of one kind (with or without actions) do not fill one global batch of {global_batch}; add data"
        )
    return count - count % global_batch


def _take(ids: np.ndarray, weight: Fraction, seed: int, epoch: int) -> np.ndarray:
    n = len(ids)
    first, last = _range(n, weight, epoch)
    passes = [ids[_shuffled(n, seed, _SOURCE, int(ids[0]), k)] for k in range(first // n, -(-last // n))]
    return np.concatenate([np.empty(0, np.int64), *passes])[first - first // n * n :][: last - first]


def _shuffled(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. n-1. Raw bits, because numpy promises those (and not `permutation`) to stay the same over versions."""
    bits: np.ndarray = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")

"""A decoding process: rows of the manifest to columns of samples.

Ray starts it on machines that may have nothing else to do, several times each. So it imports
neither torch nor what trains.
"""

import gc
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from gwp.data.canvas import SLOTS
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import LatentCache
from gwp.data.plan.manifest import Manifest
from gwp.data.records import PackedBlock, Pictured, Row, Sample, Share, StreamBatch
from gwp.metrics.names import DATA_BYTES, DATA_FAILURES, DATA_SAMPLES, DATA_SECONDS
from pipelines.tracking.live import meter_of
from pipelines.training.control.stopped import lasting
from pipelines.training.samples.shares import PADDING


class Decoder:
    """A decoding process. What it has read of data files stays from block to block; what it
    gave away is never written to again.

    samples: reference to the manifest and the place of each sample in `cache`; run: its name
    """

    def __init__(self, samples: Any, spec: SampleSpec, cache: LatentCache | None, run: str) -> None:
        self.manifest, self.cached = ray.get(samples)
        self.spec, self.cache = spec, cache
        self.reader = FileReader()
        self.meter = meter_of(run)
        # Ray collects garbage often, and what was imported is none.
        gc.freeze()

    def __call__(self, table: pa.Table) -> StreamBatch:
        """The shares that the only row of a block names."""
        (row,) = table.to_pylist()
        begin = time.perf_counter()
        with lasting():
            rows = unpacked(self.manifest, self.cached, row)
            decoded = decode_block(rows, self.spec, self.cache, self.reader)
        self._count(decoded, time.perf_counter() - begin)
        return decoded

    def _count(self, decoded: StreamBatch, seconds: float) -> None:
        whole, wanted = decoded["ok"].astype(bool), decoded["position"] != PADDING
        self.meter.add(DATA_SECONDS, seconds)
        self.meter.add(DATA_SAMPLES, int(whole.sum()))
        self.meter.add(DATA_FAILURES, int((wanted & ~whole).sum()))
        arrays = [column for column in decoded.values() if isinstance(column, np.ndarray)]
        self.meter.add(DATA_BYTES, sum(column.nbytes for column in arrays))


def unpacked(manifest: Manifest, cached: pa.Array | None, row: PackedBlock) -> pa.Table:
    """Manifest rows of a row of `packed_blocks`."""
    return pa.concat_tables([block(manifest, cached, share) for share in row["shares"]])


def block(manifest: Manifest, cached: pa.Array | None, row: Share) -> pa.Table:
    """Manifest rows of a row of `planned`, each with its `position` in the plan, the size of
    its `batch` and where it is `cached`.
    """
    count = len(row["ids"])
    # Padding looks like the last sample, and is told by its position.
    ids = np.array(row["ids"] + row["ids"][-1:] * (row["rows"] - count), np.int64)
    table = manifest.take(ids)
    if cached is not None:
        table = table.append_column("cached", cached.take(pa.array(ids)))
    positions = np.full(len(ids), PADDING)
    positions[:count] = row["first"] + np.arange(count)
    table = table.append_column("position", pa.array(positions))
    return table.append_column("batch", pa.array(np.full(len(ids), row["batch"])))


def decode_block(
    table: pa.Table, spec: SampleSpec, cache: LatentCache | None, reader: FileReader
) -> StreamBatch:
    """Columns of shares, whose manifest rows these are."""
    rows: list[Row] = table.to_pylist()
    wanted = [row for row in rows if row["position"] != PADDING]
    samples, failures = decode_samples(wanted, spec, reader, cache)
    return batch_columns(rows, samples, dict(failures), spec, cache)


def batch_columns(
    rows: Sequence[Row],
    samples: Sequence[Sample],
    failures: dict[str, str],
    spec: SampleSpec,
    cache: LatentCache | None = None,
) -> StreamBatch:
    """Columns of one block in row order; failed samples hold their place with `ok` False and
    the reason, padding with neither name nor reason.
    """
    # In order and not by id: a source of weight 2 may show a sample twice in one batch, under
    # another crop.
    left = iter(samples)
    # All samples of a block have one shape; where none is whole, it follows from the row.
    template = samples[0] if samples else None
    columns: dict[str, list[Any]] = {}
    for row in rows:
        padding = row["position"] == PADDING
        name = "" if padding else row["sample_id"]
        sample = None if padding or name in failures else next(left)
        values: dict[str, Any] = {
            **(sample or (_empty_like(template) if template else _empty(row, spec, cache))),
            "sample_id": name,
            "position": row["position"],
            "batch": row["batch"],
            "source": PADDING if padding else row["source"],
            "ok": sample is not None,
            "reason": failures.get(name, ""),
        }
        for key, value in values.items():
            columns.setdefault(key, []).append(value)
    stacked = {
        key: _stacked(v) if isinstance(v[0], np.ndarray) else np.array(v)
        for key, v in columns.items()
    }
    return cast(StreamBatch, stacked)


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """`np.stack`, without a copy where they lie behind each other in one array already."""
    first, size = arrays[0], arrays[0].nbytes
    begin = first.__array_interface__["data"][0]
    for i, a in enumerate(arrays):
        # Views of one array, each beginning where the one before it ended.
        if (
            a.base is None
            or a.base is not first.base
            or not a.flags.c_contiguous
            or a.shape != first.shape
            or (a.__array_interface__["data"][0] != begin + i * size)
        ):
            return np.stack(arrays)
    return np.lib.stride_tricks.as_strided(
        first, (len(arrays), *first.shape), (size, *first.strides)
    )


def _empty_like(sample: Sample) -> Sample:
    zeros = {
        k: np.zeros_like(v) if isinstance(v, np.ndarray) else type(v)() for k, v in sample.items()
    }
    return cast(Sample, zeros)


def _empty(row: Row, spec: SampleSpec, cache: LatentCache | None) -> Sample:
    p, d = spec.window.chunk, spec.model_dim
    pictured: Pictured = (
        {"latents": np.zeros(row["cached"]["shape"], cache.dtype)}
        if cache
        else {"frames": spec.canvas_of(row).empty(spec.frames_of(row))}
    )
    return {
        **pictured,
        "view_valid": np.zeros(len(SLOTS), bool),
        "state": np.zeros(d, np.float32),
        "actions": np.zeros((p, d), np.float32),
        "step_valid": np.zeros(p, bool),
        "dim_valid": np.zeros(d, bool),
        "has_action": False,
        "text_key": "",
        "embodiment_id": 0,
        "sample_id": "",
    }

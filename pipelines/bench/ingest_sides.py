"""What the stream is measured against: bare PyAV, and torch's DataLoader over the same reader.
No Ray.

Both use as many processes as the stream has decoding tasks, and warm up before their clocks
start.
"""

import multiprocessing as mp
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import av
import numpy as np
import pyarrow as pa
import torch
from av.video.reformatter import VideoReformatter
from torch.utils.data import DataLoader, Dataset

from gwp.data.decode import SampleSpec, frame_times
from gwp.data.formats.reader import FileReader
from gwp.data.latent_cache import LatentCache
from gwp.data.video.decode import SEEK_SAVES, WORK
from pipelines.training.stream import decode_block

_START_S = 120.0

Wanted = dict[str, list[float]]
"""Path of a video -> times of the frames wanted from it, seconds, ascending."""


@dataclass(frozen=True)
class Side:
    """What one side did after its warm-up: samples and seconds; over all blocks: frames decoded
    and files opened, where it tells.
    """

    samples: int
    seconds: float
    decoded: int | None = None
    opened: int | None = None

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds


def wanted_of(table: pa.Table, spec: SampleSpec) -> Wanted:
    """Distinct frames that the rows of a micro-batch take from videos."""
    found: dict[str, set[float]] = {}
    for row in table.to_pylist():
        for view in row["views"]:
            found.setdefault(view["uri"], set()).update(
                round(t, 6) for t in frame_times(row, view, spec)
            )
    return {uri: sorted(times) for uri, times in found.items()}


@lru_cache(maxsize=256)
def _keys(path: str) -> tuple[list[int], float]:
    """Presentation times of the key frames, and the distance between two frames, both in ticks;
    empty without an index.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        index = (
            [e for e in stream.index_entries if not e.is_discard]
            if "mp4" in container.format.name
            else []
        )
        if len(index) < 2:
            return [], 0.0
        shift = int(stream.start_time or 0) - index[0].timestamp
        return [e.timestamp + shift for e in index if e.is_keyframe], (
            index[-1].timestamp - index[0].timestamp
        ) / (len(index) - 1)


def bare_block(wanted: Wanted) -> tuple[int, int]:
    """Decode the wanted frames to RGB and drop them: frames wanted and frames decoded."""
    convert, given, decoded = VideoReformatter(), 0, 0
    for path, times in wanted.items():
        keys, period = _keys(path)
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            tick, origin = float(stream.time_base), int(stream.start_time or 0)
            frames, at, frame = container.decode(stream), origin - period - 1, None
            for t in times:
                target = origin + round(t / tick)
                key = bisect_right(keys, target) - 1
                if key > 0 and keys[key] - at > SEEK_SAVES * period:
                    container.seek(keys[key], stream=stream, backward=True)
                    frames, at = container.decode(stream), keys[0] - period - 1
                while at < target - period / 2 and (following := next(frames, None)) is not None:
                    frame, at, decoded = following, following.pts, decoded + 1
                assert frame is not None, f"no frame at {t} s"
                convert.reformat(frame, format="rgb24").to_ndarray()
                given += 1
    return given, decoded


def _bare(
    number: int, barrier: Any, warm: Sequence[Wanted], blocks: Sequence[Wanted]
) -> tuple[float, int, int]:
    for wanted in warm:
        bare_block(wanted)
    barrier.wait(_START_S)
    begin = time.perf_counter()
    counts = (
        np.array([bare_block(wanted) for wanted in blocks[number :: barrier.parties]])
        .reshape(-1, 2)
        .sum(0)
    )
    return time.perf_counter() - begin, int(counts[0]), int(counts[1])


def bare(
    warm: Sequence[pa.Table], blocks: Sequence[pa.Table], spec: SampleSpec, processes: int
) -> tuple[Side, int]:
    """One loop per process, all at once, over blocks of local files; and the number of frames
    wanted.
    """
    first, rest = ([wanted_of(b, spec) for b in some] for some in (warm, blocks))
    context = mp.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        barrier = manager.Barrier(processes)
        done = list(
            pool.map(partial(_bare, barrier=barrier, warm=first, blocks=rest), range(processes))
        )
    # Shares differ by a block or two: the time of all work, spread evenly.
    seconds = sum(s for s, _, _ in done) / processes
    return Side(sum(len(b) for b in blocks), seconds, sum(d for _, _, d in done)), sum(
        w for _, w, _ in done
    )


class _Blocks(Dataset[dict[str, Any]]):
    """Micro-batches as the stream cuts them."""

    def __init__(
        self, blocks: Sequence[pa.Table], spec: SampleSpec, cache: LatentCache | None
    ) -> None:
        self.blocks, self.spec, self.cache = blocks, spec, cache

    @cached_property
    def reader(self) -> FileReader:
        """Of the process that decodes, so made there."""
        return FileReader()

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        before = (WORK.decoded, WORK.opened)
        columns = decode_block(self.blocks[index], self.spec, self.cache, self.reader)
        work = (WORK.decoded - before[0], WORK.opened - before[1])
        return {
            k: torch.from_numpy(v) if v.dtype.kind in "biuf" else v.tolist()
            for k, v in columns.items()
        } | {"work": work}


class _Samples(Dataset[dict[str, Any]]):
    """One sample at a time, to be put together by torch: how a DataLoader is commonly used."""

    def __init__(self, blocks: Sequence[pa.Table], spec: SampleSpec) -> None:
        self.table, self.spec = pa.concat_tables(blocks), spec

    @cached_property
    def reader(self) -> FileReader:
        """Of the process that decodes, so made there."""
        return FileReader()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns = decode_block(self.table.slice(index, 1), self.spec, None, self.reader)
        return {k: torch.from_numpy(v[0]) if v[0].ndim else v[0].item() for k, v in columns.items()}


def _loaded(data: Dataset[dict[str, Any]], batch: int | None, processes: int) -> Iterator[Any]:
    context = mp.get_context("spawn")
    yield from DataLoader(
        data, batch_size=batch, num_workers=processes, multiprocessing_context=context
    )


def dataloader(
    every: Sequence[pa.Table],
    measured: tuple[int, int],
    spec: SampleSpec,
    processes: int,
    by_sample: bool = False,
) -> Side:
    """A DataLoader whose items are micro-batches, decoded as the stream does it, or
    (`by_sample`) single samples.

    measured: number of the first micro-batch that counts and of the first that does not any
    more.
    """
    size, (first, end) = every[0].num_rows, measured
    stream = (
        _loaded(_Samples(every, spec), size, processes)
        if by_sample
        else _loaded(_Blocks(every, spec, None), None, processes)
    )
    decoded = opened = 0
    times = []
    for number, batch in enumerate(stream):
        assert bool(torch.as_tensor(batch["ok"]).all())
        times.append(time.perf_counter())
        if first <= number < end and not by_sample:
            decoded, opened = decoded + int(batch["work"][0]), opened + int(batch["work"][1])
    seconds, samples = times[end] - times[first], sum(b.num_rows for b in every[first:end])
    return Side(samples, seconds) if by_sample else Side(samples, seconds, decoded, opened)

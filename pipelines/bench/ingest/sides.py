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
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import torch
from av.video.reformatter import VideoReformatter
from torch.utils.data import DataLoader, Dataset

from gwp.data.decode import SampleSpec, frame_times
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import LatentCache
from gwp.data.records import StreamBatch
from gwp.data.video.decode import SEEK_SAVES, WORK
from pipelines.training.samples.decoder import decode_block

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
    wanted: dict[str, set[float]] = {}
    for row in table.to_pylist():
        for view in row["views"]:
            # To a microsecond: windows that overlap ask for the same frame by times that
            # differ in their last digits.
            times = {round(t, 6) for t in frame_times(row, view, spec)}
            wanted.setdefault(view["uri"], set()).update(times)
    return {uri: sorted(times) for uri, times in wanted.items()}


@lru_cache(maxsize=256)
def _keys(path: str) -> tuple[list[int], float]:
    """Presentation times of the key frames, and the distance between two frames, both in ticks;
    empty without an index.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        # Other containers have no whole index before they were read to the end.
        if "mp4" not in container.format.name:
            return [], 0.0
        index = [e for e in stream.index_entries if not e.is_discard]
        if len(index) < 2:
            return [], 0.0
        first = index[0].timestamp
        # The index holds decoding times, which begin before presentation where frames are
        # stored out of order.
        shift = int(stream.start_time or 0) - first
        period = (index[-1].timestamp - first) / (len(index) - 1)
        return [e.timestamp + shift for e in index if e.is_keyframe], period


def bare_block(wanted: Wanted) -> tuple[int, int]:
    """Decode the wanted frames to RGB and drop them: frames wanted and frames decoded."""
    convert = VideoReformatter()
    given = 0
    decoded = 0
    for path, times in wanted.items():
        keys, period = _keys(path)
        with av.open(path) as container:
            stream = container.streams.video[0]
            # One core per process, as every side has it.
            stream.codec_context.thread_count = 1
            tick = float(stream.time_base)
            origin = int(stream.start_time or 0)
            frames = container.decode(stream)
            frame = None
            # Presentation time of `frame`; before the first one, earlier than any.
            at = origin - period - 1
            for t in times:
                target = origin + round(t / tick)
                # Jump where the nearest key frame lies far enough ahead to pay for it, else scan.
                key = bisect_right(keys, target) - 1
                if key > 0 and keys[key] - at > SEEK_SAVES * period:
                    container.seek(keys[key], stream=stream, backward=True)
                    frames = container.decode(stream)
                    at = keys[0] - period - 1
                while at < target - period / 2 and (following := next(frames, None)) is not None:
                    frame = following
                    at = frame.pts
                    decoded += 1
                assert frame is not None, f"no frame at {t} s"
                convert.reformat(frame, format="rgb24").to_ndarray()
                given += 1
    return given, decoded


def _bare(
    number: int, barrier: Any, warm: Sequence[Wanted], blocks: Sequence[Wanted]
) -> tuple[float, int, int]:
    """The share of process `number`: seconds, frames wanted, frames decoded."""
    for wanted in warm:
        bare_block(wanted)
    # Processes start seconds apart; the clock of all starts when the last one is warm.
    barrier.wait(_START_S)
    given = 0
    decoded = 0
    begin = time.perf_counter()
    for wanted in blocks[number :: barrier.parties]:
        of_block = bare_block(wanted)
        given += of_block[0]
        decoded += of_block[1]
    return time.perf_counter() - begin, given, decoded


def bare(
    warm: Sequence[pa.Table], blocks: Sequence[pa.Table], spec: SampleSpec, processes: int
) -> tuple[Side, int]:
    """One loop per process, all at once, over blocks of local files; and the number of frames
    wanted.
    """
    first = [wanted_of(block, spec) for block in warm]
    rest = [wanted_of(block, spec) for block in blocks]
    # Spawned and not forked: FFmpeg and Ray have threads in this process already.
    context = mp.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        barrier = manager.Barrier(processes)
        share = partial(_bare, barrier=barrier, warm=first, blocks=rest)
        shares = list(pool.map(share, range(processes)))
    # Shares differ by a block or two: the time of all work, spread evenly.
    seconds = sum(s for s, _, _ in shares) / processes
    given = sum(count for _, count, _ in shares)
    decoded = sum(count for _, _, count in shares)
    return Side(sum(len(block) for block in blocks), seconds, decoded), given


def _arrays(batch: StreamBatch) -> dict[str, np.ndarray]:
    """Its columns, whatever they are called."""
    return cast(dict[str, np.ndarray], batch)


class _Blocks(Dataset[dict[str, Any]]):
    """Micro-batches as the stream cuts them."""

    def __init__(
        self, blocks: Sequence[pa.Table], spec: SampleSpec, cache: LatentCache | None
    ) -> None:
        self.blocks = blocks
        self.spec = spec
        self.cache = cache

    @cached_property
    def reader(self) -> FileReader:
        """Of the process that decodes, so made there."""
        return FileReader()

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        before = (WORK.decoded, WORK.opened)
        columns = _arrays(decode_block(self.blocks[index], self.spec, self.cache, self.reader))
        work = (WORK.decoded - before[0], WORK.opened - before[1])
        return {
            k: torch.from_numpy(v) if v.dtype.kind in "biuf" else v.tolist()
            for k, v in columns.items()
        } | {"work": work}


class _Samples(Dataset[dict[str, Any]]):
    """One sample at a time, to be put together by torch: how a DataLoader is commonly used."""

    def __init__(self, blocks: Sequence[pa.Table], spec: SampleSpec) -> None:
        self.table = pa.concat_tables(blocks)
        self.spec = spec

    @cached_property
    def reader(self) -> FileReader:
        """Of the process that decodes, so made there."""
        return FileReader()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns = _arrays(decode_block(self.table.slice(index, 1), self.spec, None, self.reader))
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
    first, end = measured
    if by_sample:
        batches = _loaded(_Samples(every, spec), every[0].num_rows, processes)
    else:
        batches = _loaded(_Blocks(every, spec, None), None, processes)
    decoded = 0
    opened = 0
    times = []
    for number, batch in enumerate(batches):
        assert bool(torch.as_tensor(batch["ok"]).all())
        times.append(time.perf_counter())
        if first <= number < end and not by_sample:
            decoded += int(batch["work"][0])
            opened += int(batch["work"][1])
    seconds = times[end] - times[first]
    samples = sum(block.num_rows for block in every[first:end])
    # Items of one sample have no count of the work beside them, as micro-batches do.
    return Side(samples, seconds) if by_sample else Side(samples, seconds, decoded, opened)

"""What a GPU has to hold while a stage is loaded and trains, by part.

How DeepSpeed shards is written down once, here: see `parts`. The activations are counted on the
training model itself.
"""

from dataclasses import dataclass

import torch

from gwp.model.codecs.wan import WanCodecConfig
from gwp.model.cost import parameter_counts
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.activations import activation_bytes
from pipelines.plan.machines import CARDS
from pipelines.plan.sample import SampleShape

GPUS_GB = tuple(CARDS)
"""Sizes that a plan looks at."""
STAGES = (1, 2, 3)

USABLE = 0.92
"""Of a GPU: the rest is the driver's, the libraries', and gaps between blocks."""
_BUCKET = 500_000_000
"""Numbers of DeepSpeed's `reduce_bucket_size`, by default. It is made whole, however small the
model is.
"""
_LIVE = 1_000_000_000
"""Numbers of `stage3_max_live_parameters`, by default: where forward becomes backward, so many are
gathered.
"""
_WAN_PARAMETERS = 705_000_000
"""Of the video codec of Wan 2.2: 2.82 GB in fp32 on disk."""
# Widest feature maps of that codec's encoder: channels, pixels a side, frames at a time, alive.
_WAN_MAPS = (160, 2, 4, 4)


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU.

    parts:   name -> bytes, while it trains
    loading: while weights are loaded, before they are sharded
    host:    of the machine's memory meanwhile, for this worker
    """

    parts: dict[str, int]
    loading: int
    host: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.total, self.loading)

    def fits(self, gpu_gb: float) -> bool:
        """Whether a GPU of so many 1e9 bytes holds it."""
        return self.peak <= USABLE * gpu_gb * 1e9


def memory_of(
    job: TrainJob,
    workers: int | None = None,
    zero_stage: int | None = None,
    micro_batch: int | None = None,
) -> Memory:
    """Of a GPU of a job, with the job's own numbers where none are given."""
    workers = workers or job.cluster.min_workers
    stage = job.engine.zero_stage if zero_stage is None else zero_stage
    share = job.share(workers)
    micro = min(micro_batch or job.engine.micro_batch or share, share)
    shape = SampleShape.of(job)
    mixed = job.engine.precision == "bf16"
    dtype = torch.bfloat16 if mixed else torch.float32
    config = job.model_config_
    rows = shape.text_rows
    # As if nothing were computed again where products are kept: an upper bound.
    again = job.engine.recomputed(config.num_layers)
    kept = 0
    for part, checkpointed in ((again, True), (1 - again, False)):
        if part:
            each = activation_bytes(
                config, shape.largest, shape.latent, rows, dtype, checkpointed, micro
            )
            kept += round(part * each)
    count, trained = sum(parameter_counts(config).values()), job.trained
    accumulates = share > micro or (job.cluster.elastic and job.engine.micro_batch is not None)
    zero = job.engine.overrides.get("zero_optimization") or {}
    bucket = int(zero.get("reduce_bucket_size", _BUCKET))
    live = int(zero.get("stage3_max_live_parameters", _LIVE))
    found = _sharded(count, trained, workers, stage, mixed, accumulates, bucket, live)
    found["average of weights"] = 4 * trained // workers if job.engine.ema_decay else 0
    found["activations"] = kept
    found["video codec"] = _codec(job, micro)
    wide = 2 if mixed else 4
    # Whole on each GPU; of stage 3 a rank's share of them is made beside, part by part.
    loading = wide * (count + (count // workers if stage == 3 else 0))
    # In fp32, as they come out of the files.
    return Memory(found, loading, host=4 * count)


def largest_micro_batch(
    job: TrainJob, gpu_gb: float, workers: int | None = None, zero_stage: int | None = None
) -> int:
    """Samples at a time that a GPU of so many 1e9 bytes has room for, of a worker's share of the
    batch; 0: none.
    """
    share = job.share(workers or job.cluster.min_workers)
    # First: of one pass nothing is summed, so that all can fit where a few less do not.
    if memory_of(job, workers, zero_stage, share).fits(gpu_gb):
        return share
    low, high = 0, share - 1
    while low < high:
        middle = (low + high + 1) // 2
        if memory_of(job, workers, zero_stage, middle).fits(gpu_gb):
            low = middle
        else:
            high = middle - 1
    return low


def usable_stages(job: TrainJob) -> tuple[int, ...]:
    """ZeRO stages that a job can have: none without sharding in bf16, which has masters in fp32 in
    the others alone; not 3 with compiled blocks; and its own of a recipe that says one.
    """
    if job.recipe == "published":
        return (job.engine.zero_stage,)
    stages = STAGES if job.engine.precision == "bf16" else (0, *STAGES)
    return tuple(s for s in stages if not (s == 3 and job.engine.compile))


def _sharded(
    count: int,
    trained: int,
    workers: int,
    stage: int,
    mixed: bool,
    accumulates: bool,
    bucket: int,
    live: int,
) -> dict[str, int]:
    """Parameters, gradients and optimiser of DeepSpeed's engines, with what they send. Measured of
    its engines on two ranks; see docs/clusters.md.

    trained: of `count` parameters, or beside them; mixed: weights in bf16 beside fp32 masters;
    accumulates: gradients are summed in fp32, over several micro-batches; bucket, live: numbers of
    buckets of gradients, of gathered parameters
    """
    wide = 2 if mixed else 4
    each, whole = -(-trained // workers), -(-count // workers)
    sums = 4 if accumulates or not mixed else wide
    # Stage 0 shards nothing, and needs no second copy: it is for fp32 alone.
    if stage == 0:
        return {
            "parameters": 4 * count,
            "gradients": 4 * trained,
            "optimiser": 8 * trained,
            # Copies of what is sent.
            "buffers": 4 * min(bucket, trained) if workers > 1 else 0,
        }
    gradients = {1: sums * trained, 2: sums * each, 3: sums * each}[stage]
    # A bucket of gradients; of the sums where ZeRO-1 sends those.
    buffers = (sums if stage == 1 else wide) * bucket
    if stage == 3:
        buffers += wide * min(live, count)
    return {
        "parameters": wide * (whole if stage == 3 else count),
        "gradients": gradients,
        # Masters and two moments in fp32.
        "optimiser": 12 * each,
        "buffers": buffers,
    }


def _codec(job: TrainJob, micro: int) -> int:
    """Weights and widest maps of the video codec; none where latents are read from a cache, and
    next to nothing of a linear one.
    """
    wan = isinstance(job.codec, WanCodecConfig)
    if job.data.cache is not None or not wan:
        return 0
    assert isinstance(job.codec, WanCodecConfig)
    wide = 2 if job.codec.dtype == "bfloat16" else 4
    channels, pixels, frames, alive = _WAN_MAPS
    canvas = job.data.canvas
    maps = channels * frames * (canvas.height // pixels) * (canvas.width // pixels) * alive
    return wide * (_WAN_PARAMETERS + maps * micro)

"""A stage as a whole: memory, time, decoding, traffic, checkpoints and price."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gwp.errors import GwpError
from gwp.model.cost import parameter_counts
from pipelines.jobs.train_job import TrainJob
from pipelines.jobs.validation import ValidatorConfig
from pipelines.plan.memory import (
    GPUS_GB,
    STAGES,
    Memory,
    fits,
    largest_micro_batch,
    memory_of,
)
from pipelines.plan.sample import SampleShape


@dataclass(frozen=True)
class Gpu:
    """bf16: peak of dense bf16 products with sums in fp32, FLOP/s, as its maker states it;
    memory_gb: 1e9 bytes
    """

    bf16: float
    memory_gb: float


GPUS: dict[str, Gpu] = {
    "l4": Gpu(121e12, 24),
    "rtx4090": Gpu(165e12, 24),
    "l40s": Gpu(362e12, 48),
    "a100": Gpu(312e12, 80),
    "h100": Gpu(989e12, 80),
    "h200": Gpu(989e12, 141),
}
UTILISATION = (0.25, 0.45)
"""Share of the peak that a training step of such a transformer reaches. Not measured here: what
others publish for models of this size on one node lies between.
"""
FRAMES_PER_CORE = 525.0
"""Pictures that a decoding process gives a second: docs/benchmarks.md, "The stream of samples",
210 samples of 5 pictures with 2 processes; AV1 of 640x480 with key frames 2 apart.
"""
UPLOAD_MB = 200.0
"""MB/s of a worker to storage. Not measured: ask your own."""
_AGAIN = 4 / 3
"""Arithmetic of a step in which the forward pass is taken twice."""


@dataclass(frozen=True)
class Assumed:
    """What a plan takes for granted; all of it can be told otherwise.

    utilisation: least and most; decode_rate: pictures a second of a core; upload_mb: MB/s of a
    worker; prices: name of a GPU, or `core` -> price of an hour
    """

    gpu: str = "h100"
    workers: int | None = None
    utilisation: tuple[float, float] = UTILISATION
    decode_rate: float = FRAMES_PER_CORE
    upload_mb: float = UPLOAD_MB
    prices: Mapping[str, float] | None = None

    @property
    def peak(self) -> float:
        """FLOP/s of a GPU. GwpError of an unknown one."""
        return self.found.bf16

    @property
    def found(self) -> Gpu:
        """The GPU. GwpError of an unknown one."""
        if self.gpu not in GPUS:
            raise GwpError(f"--gpu {self.gpu}: not known; choose one of {', '.join(GPUS)}")
        return GPUS[self.gpu]


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs. Ranges are (least, most).

    parameters:   of the transformer, by part
    memory:       of one GPU
    fitting:      ZeRO stage -> size of a GPU in GB -> samples at a time that it has room for, at
                  most a worker's share; 0: none
    refused:      why the job does not fit its GPUs; None: it does
    flop_sample:  of the model, forward and backward
    step_s, days, gpu_hours: of the arithmetic of the transformer alone
    samples_s:    of all workers
    decode_cores: for one GPU, at the rate that was taken
    store_mb_s:   into the object store, for all workers, at most
    checkpoint_gb: of all workers; checkpoint_s: until it is in storage, beside the steps
    kept_gb:      of the checkpoints that are kept, of one that is on its way, and of one that is judged
    judge:        what the process needs that judges them beside the steps; None: the workers do. Its
                  GPU is counted in gpu_hours and price
    price:        of the stage; None: no prices were given
    """

    stage: str
    gpu: str
    workers: int
    global_batch: int
    micro_batch: int
    parameters: dict[str, int]
    memory: Memory
    fitting: dict[int, dict[int, int]]
    refused: str | None
    flop_sample: float
    step_s: tuple[float, float]
    samples_s: tuple[float, float]
    days: tuple[float, float]
    gpu_hours: tuple[float, float]
    decode_cores: tuple[float, float]
    store_mb_s: float
    checkpoint_gb: float
    checkpoint_s: float
    kept_gb: float
    judge: str | None
    price: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """As plain data; of memory bytes by part."""
        return asdict(self) | {"memory": self.memory.parts | {"total": self.memory.total}}


def plan_stage(job: TrainJob, assumed: Assumed | None = None) -> StagePlan:
    """The plan of a job. GwpError of shapes that cannot be trained, and of what was assumed and
    is not known.
    """
    assumed = assumed or Assumed()
    workers = assumed.workers or job.cluster.min_workers
    config, shape, engine = job.model_config_, SampleShape.of(job), job.engine
    if workers > engine.global_batch:
        raise GwpError(
            f"{workers} workers for a batch of {engine.global_batch} samples: some have none; lower "
            "--workers, or raise engine.global_batch"
        )
    parameters = parameter_counts(config)
    count = sum(parameters.values())
    flop = shape.flop(job)

    share = job.share(workers)
    arithmetic = flop * share * (1 + (_AGAIN - 1) * engine.recomputed(config.num_layers))
    low, high = sorted(assumed.utilisation)
    if not 0 < low <= high <= 1:
        raise GwpError("--utilisation: give a least and a most between 0 and 1, such as 0.25,0.45")
    step = (arithmetic / (assumed.peak * high), arithmetic / (assumed.peak * low))
    samples = (engine.global_batch / step[1], engine.global_batch / step[0])
    hours = (step[0] * job.run.steps / 3600, step[1] * job.run.steps / 3600)

    judge = job.validation.worker if job.validation else None
    gpus = workers + (judge.gpus if judge else 0)
    cached = job.data.cache is not None
    pictures = 0 if cached else shape.frames * shape.views
    cores = [pictures * rate / workers / assumed.decode_rate for rate in samples]
    bytes_each = shape.stored if cached else shape.picture
    checkpoint = checkpoint_bytes(job, count, job.trained)
    return StagePlan(
        stage=job.stage,
        gpu=assumed.gpu,
        workers=workers,
        global_batch=engine.global_batch,
        micro_batch=min(engine.micro_batch or share, share),
        parameters=parameters,
        memory=memory_of(job, workers),
        fitting={
            stage: {gb: largest_micro_batch(job, gb, workers, stage) for gb in GPUS_GB}
            for stage in STAGES
        },
        refused=fits(job, assumed.found.memory_gb, workers),
        flop_sample=flop,
        step_s=step,
        samples_s=samples,
        days=(hours[0] / 24, hours[1] / 24),
        gpu_hours=(hours[0] * gpus, hours[1] * gpus),
        decode_cores=(cores[0], cores[1]),
        store_mb_s=bytes_each * samples[1] / 1e6,
        checkpoint_gb=checkpoint / 1e9,
        checkpoint_s=checkpoint / workers / (assumed.upload_mb * 1e6),
        kept_gb=checkpoint * (job.run.keep + (2 if judge else 1)) / 1e9,
        judge=judge.text if judge else None,
        price=_price(assumed, workers, hours, cores, judge) if assumed.prices else None,
    )


def checkpoint_bytes(job: TrainJob, parameters: int, trained: int | None = None) -> int:
    """Of a checkpoint of all ranks: weights as they are computed with; of those that train (None:
    all) fp32 masters and two moments, the average of weights.
    """
    engine = job.engine
    # Stage 0 has no masters beside its weights.
    optimiser = 8 if engine.zero_stage == 0 else 12
    weights = 2 if engine.precision == "bf16" else 4
    if engine.zero_stage == 3:
        # They follow from the masters, and are in no file.
        weights = 0
    average = 4 if engine.ema_decay else 0
    states = optimiser + average
    return parameters * weights + (parameters if trained is None else trained) * states


def _price(
    assumed: Assumed,
    workers: int,
    hours: tuple[float, float],
    cores: list[float],
    judge: ValidatorConfig | None,
) -> tuple[float, float]:
    prices = assumed.prices or {}
    if assumed.gpu not in prices:
        raise GwpError(f"--prices: no price of {assumed.gpu}; write `{assumed.gpu}: PRICE` there")
    of_core = prices.get("core", 0.0)
    beside = prices[assumed.gpu] * judge.gpus + of_core * judge.cpus if judge else 0.0
    # Fast steps need many decoders for a short time, slow ones few for a long one.
    each = [
        h * (workers * (prices[assumed.gpu] + of_core * c) + beside)
        for h, c in zip(hours, reversed(cores), strict=True)
    ]
    return each[0], each[1]

"""A stage as a whole: memory, time, decoding, traffic, checkpoints and price."""

from dataclasses import asdict, dataclass
from typing import Any

from gwp.errors import GwpError
from gwp.model.cost import parameter_counts
from pipelines.jobs.train_job import TrainJob
from pipelines.jobs.trained import parameters_named, shapes_of
from pipelines.jobs.validation import ValidatorConfig
from pipelines.plan.choice import Choice, cheaper, cheapest, fits
from pipelines.plan.machines import CARDS, Assumed
from pipelines.plan.memory import (
    GPUS_GB,
    Memory,
    largest_micro_batch,
    memory_of,
    usable_stages,
)
from pipelines.plan.sample import SampleShape
from pipelines.plan.time import StepTime, sent_bytes, step_flop, step_time


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs. Ranges are (least, most).

    parameters:   of the transformer, by part; trained: numbers that train, those of adapters too;
                  frozen: of the transformer, that do not
    zero_stage, micro_batch, passes, recomputed: of the file; micro-batches of a worker's share;
                  blocks that are computed again
    memory:       of one GPU
    fitting:      ZeRO stage -> size of a GPU in GB -> samples at a time that it has room for, at
                  most a worker's share; 0: none
    cards:        size of a GPU in GB -> what fits it and costs least; None: nothing fits
    refused:      why the job does not fit its GPUs, and what to set; None: it does
    cheaper:      `field=value` with which its steps are shorter; empty: none that are worth it
    tokens_step:  of a global batch, without those of the text
    flop_sample:  of the model, forward and backward; flop_step: of all GPUs, with what is computed
                  again and without gradients of what does not train
    sent_gb:      that a GPU sends in a step
    time:         of a step; step_s, days, gpu_hours: the transformer's, without the codec
    samples_s:    of all workers
    decode_cores: for one GPU, at the rate that was taken
    store_mb_s:   into the object store, for all workers, at most
    checkpoint_gb: of all workers; checkpoint_s: until it is in storage, beside the steps
    kept_gb:      of the newest checkpoints that are kept, of the best where they are judged, of one
                  that is on its way, and of one that is judged beside the steps
    judge:        what the process needs that judges them beside the steps; None: the workers do. Its
                  GPU is counted in gpu_hours and price
    price:        of the stage; None: no prices were given
    """

    stage: str
    gpu: str
    workers: int
    global_batch: int
    micro_batch: int
    zero_stage: int
    passes: int
    recomputed: float
    parameters: dict[str, int]
    trained: int
    frozen: int
    memory: Memory
    fitting: dict[int, dict[int, int]]
    cards: dict[int, Choice | None]
    refused: str | None
    cheaper: list[str]
    cheaper_s: tuple[float, float] | None
    tokens_step: float
    flop_sample: float
    flop_step: float
    sent_gb: float
    time: StepTime
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
        parts = self.memory.parts | {"total": self.memory.total}
        peaks = {"loading": self.memory.loading, "host_loading": self.memory.host}
        cards = {gb: choice and choice.to_json() for gb, choice in self.cards.items()}
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return found | {
            "memory": parts | peaks,
            "cards": cards,
            "time": asdict(self.time),
        }


def plan_stage(job: TrainJob, assumed: Assumed | None = None) -> StagePlan:
    """The plan of a job. GwpError of shapes that cannot be trained, and of what was assumed and
    is not known.
    """
    assumed = assumed or Assumed()
    gpu = assumed.found
    workers = assumed.workers or job.cluster.min_workers
    config, shape, engine = job.model_config_, SampleShape.of(job), job.engine
    if workers > engine.global_batch:
        raise GwpError(
            f"{workers} workers for a batch of {engine.global_batch} samples: some have none; lower "
            "--workers, or raise engine.global_batch"
        )
    parameters = parameter_counts(config)
    count = sum(parameters.values())
    share = job.share(workers)
    time = step_time(job, assumed, gpu, workers)
    step = time.range
    samples = (engine.global_batch / step[1], engine.global_batch / step[0])
    hours = (step[0] * job.run.steps / 3600, step[1] * job.run.steps / 3600)
    better = cheaper(job, assumed, workers)

    judge = job.validator
    gpus = workers + (judge.gpus if judge else 0)
    cached = job.data.cache is not None
    pictures = 0 if cached else shape.frames * shape.views
    cores = [pictures * rate / workers / assumed.decode_rate for rate in samples]
    bytes_each = shape.stored if cached else shape.picture
    checkpoint = checkpoint_bytes(job, count, job.trained)
    beside_newest = 1 + (job.validation is not None) + (judge is not None)
    return StagePlan(
        stage=job.stage,
        gpu=assumed.gpu,
        workers=workers,
        global_batch=engine.global_batch,
        micro_batch=min(engine.micro_batch or share, share),
        zero_stage=engine.zero_stage,
        passes=job.passes(workers),
        recomputed=engine.recomputed(config.num_layers) * config.num_layers,
        parameters=parameters,
        trained=job.trained,
        frozen=_frozen(job, count),
        memory=memory_of(job, workers),
        fitting={
            stage: {gb: largest_micro_batch(job, gb, workers, stage) for gb in GPUS_GB}
            for stage in usable_stages(job)
        },
        cards={gb: cheapest(job, assumed, assumed.speeds_of(gb), workers) for gb in CARDS},
        refused=fits(job, gpu.memory_gb, workers, assumed),
        cheaper=better.sets(job) if better else [],
        cheaper_s=better.time.range if better else None,
        tokens_step=shape.tokens * engine.global_batch,
        flop_sample=shape.flop(job),
        flop_step=step_flop(job, workers) * workers,
        sent_gb=sent_bytes(job, workers) / 1e9,
        time=time,
        step_s=step,
        samples_s=samples,
        days=(hours[0] / 24, hours[1] / 24),
        gpu_hours=(hours[0] * gpus, hours[1] * gpus),
        decode_cores=(cores[0], cores[1]),
        store_mb_s=bytes_each * samples[1] / 1e6,
        checkpoint_gb=checkpoint / 1e9,
        checkpoint_s=checkpoint / workers / (assumed.upload_mb * 1e6),
        kept_gb=checkpoint * (job.run.keep + beside_newest) / 1e9,
        judge=judge.text if judge else None,
        price=_price(assumed, workers, hours, cores, judge) if assumed.prices else None,
    )


def _frozen(job: TrainJob, count: int) -> int:
    if not job.lora:
        return count - job.trained
    config = job.model_config_
    # Adapters stand beside the weights; these train themselves.
    whole = parameters_named(config, job.lora.whole, "lora.whole")
    return count - sum(shapes_of(config)[name].numel() for name in whole)


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

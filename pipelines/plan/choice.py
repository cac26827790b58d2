"""What fits a GPU and costs least: samples at a time, ZeRO stage, blocks that are computed again."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.jobs.train_job import TrainJob
from pipelines.plan.machines import CARDS, GPUS, Assumed, Gpu
from pipelines.plan.memory import USABLE, Memory, memory_of, usable_stages
from pipelines.plan.time import StepTime, step_time

_WORTH = 0.05
"""Share of a step's time that is worth a change of the file."""


@dataclass(frozen=True)
class Choice:
    """How a job goes onto a GPU.

    job:    with these settings
    passes: micro-batches of a worker's share
    again:  blocks that are computed again
    """

    job: TrainJob
    gpu: str
    zero_stage: int
    micro_batch: int
    passes: int
    again: int
    memory: Memory
    time: StepTime

    def sets(self, other: TrainJob) -> list[str]:
        """`field=value` of what is another in `other`."""
        ours, theirs = self.job.engine, other.engine
        fields = ("zero_stage", "micro_batch", "gradient_checkpointing")
        return [
            f"engine.{name}={str(getattr(ours, name)).lower()}"
            for name in fields
            if _value(getattr(ours, name)) != _value(getattr(theirs, name))
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "gpu": self.gpu,
            "zero_stage": self.zero_stage,
            "micro_batch": self.micro_batch,
            "passes": self.passes,
            "recomputed_blocks": self.again,
            "memory": self.memory.peak,
            "step_s": self.time.range,
        }


def cheapest(
    job: TrainJob, assumed: Assumed, name: str, workers: int, gpu_gb: float | None = None
) -> Choice | None:
    """The settings whose step is shortest of those that a GPU has room for; None: none has.

    name: of the GPU; gpu_gb: another size than its own, 1e9 bytes
    """
    gpu = GPUS[name]
    size = gpu_gb or gpu.memory_gb
    fitting = [c for c in _choices(job, assumed, gpu, name, workers, size) if c.memory.fits(size)]
    # Of equals the one with fewer parts: a lower stage, and fewer passes.
    return min(fitting, key=lambda c: (c.time.middle, c.zero_stage, c.passes), default=None)


def cheaper(job: TrainJob, assumed: Assumed, workers: int) -> Choice | None:
    """Settings for the GPU of `assumed` whose step is shorter than the job's own, by what is worth
    a change; None: there are none, or the job is not for GPUs.
    """
    if not job.cluster.gpu:
        return None
    best = cheapest(job, assumed, assumed.gpu, workers)
    own = step_time(job, assumed, assumed.found, workers).middle
    return best if best and best.time.middle < own * (1 - _WORTH) else None


def fits(
    job: TrainJob, gpu_gb: float, workers: int | None = None, assumed: Assumed | None = None
) -> str | None:
    """None where a job's workers have room on GPUs of so many 1e9 bytes; else why not, and what
    would help, in one line.
    """
    workers = workers or job.cluster.min_workers
    found = memory_of(job, workers)
    if not job.cluster.gpu or found.fits(gpu_gb):
        return None
    when = " while weights are loaded" if found.loading == found.peak else ""
    return (
        f"a worker of {job.run.name} needs about {found.peak / 1e9:.0f} GB{when}, of a GPU of "
        f"{gpu_gb:g} GB {USABLE * gpu_gb:.0f} are usable: "
        f"{_advice(job, assumed or Assumed(), gpu_gb, workers)}"
    )


def _advice(job: TrainJob, assumed: Assumed, gpu_gb: float, workers: int) -> str:
    best = cheapest(job, assumed, assumed.speeds_of(gpu_gb), workers, gpu_gb)
    if best:
        return f"set {', '.join(best.sets(job))}"
    ways = []
    larger = (gb for gb in CARDS if gb > gpu_gb)
    enough = next((gb for gb in larger if cheapest(job, assumed, CARDS[gb], workers)), None)
    if enough:
        ways.append(f"GPUs of {enough} GB")
    more = workers * 2
    while more <= job.engine.global_batch:
        if cheapest(job, assumed, assumed.speeds_of(gpu_gb), more, gpu_gb):
            ways.append(f"{more} workers")
            break
        more *= 2
    if not job.lora:
        # What trains less needs less, whatever the machine.
        ways.append("recipe=lora, which trains less" if ways else "recipe=lora")
    return f"take {', or '.join(ways)}, and plan again" if ways else "take a smaller model"


def _choices(
    job: TrainJob, assumed: Assumed, gpu: Gpu, name: str, workers: int, size: float
) -> Iterator[Choice]:
    for stage in usable_stages(job):
        for micro in _micro_batches(job.share(workers)):
            made = _fewest_again(job, stage, micro, workers, size)
            yield Choice(
                job=made,
                gpu=name,
                zero_stage=stage,
                micro_batch=micro,
                passes=made.passes(workers),
                again=_blocks(made),
                memory=memory_of(made, workers),
                time=step_time(made, assumed, gpu, workers),
            )


def _micro_batches(share: int) -> Iterator[int]:
    """All of a share, then halves of it, down to one."""
    passes = 1
    while passes < share:
        yield -(-share // passes)
        passes *= 2
    yield 1


def _fewest_again(job: TrainJob, stage: int, micro: int, workers: int, size: float) -> TrainJob:
    """With as few blocks computed again as a GPU of this size has room for; all, where it has none."""
    low, high = 0, job.model_config_.num_layers
    while low < high:
        middle = (low + high) // 2
        if memory_of(_set(job, stage, micro, workers, middle), workers).fits(size):
            high = middle
        else:
            low = middle + 1
    return _set(job, stage, micro, workers, low)


def _set(job: TrainJob, stage: int, micro: int, workers: int, again: int) -> TrainJob:
    engine, layers = job.engine, job.model_config_.num_layers
    share = job.share(workers)
    # What comes to the same stays as the file has it.
    as_it_is = min(engine.micro_batch or share, share) == micro
    update = {
        "zero_stage": stage,
        "micro_batch": engine.micro_batch if as_it_is else micro,
        "gradient_checkpointing": {0: False, layers: True}.get(again, again),
    }
    return job.model_copy(update={"engine": engine.model_copy(update=update)})


def _blocks(job: TrainJob) -> int:
    layers = job.model_config_.num_layers
    return round(job.engine.recomputed(layers) * layers)


def _value(value: object) -> tuple[type, object]:
    # True is 1 to Python, and not to the file.
    return type(value), value

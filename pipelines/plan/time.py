"""How long a step takes, as a range: products, what is sent, what is read of memory.

The least is the longest of the three, each hidden behind it; the most is their sum, none hidden.
"""

from dataclasses import dataclass

from gwp.model.cost import parameter_counts
from pipelines.jobs.train_job import TrainJob
from pipelines.plan.machines import Assumed, Gpu
from pipelines.plan.sample import SampleShape

_ENGINE = {0: 0.95, 1: 1.0, 2: 1.0, 3: 1.13}
"""Time of a step over one of stage 1, of one worker: docs/benchmarks.md, "Training beside a bare
loop", small, 32 samples. Of a CPU; in what others publish of GPUs stage 1 or 2 is already.
"""


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step.

    products: of the transformer, (least, most); sent: between GPUs; memory: reading and writing
    weights, gradients and states of the optimiser
    """

    products: tuple[float, float]
    sent: float
    memory: float

    @property
    def range(self) -> tuple[float, float]:
        """Least and most."""
        least, most = self.products
        return max(least, self.sent, self.memory), most + self.sent + self.memory

    @property
    def middle(self) -> float:
        """Of the range: what is cheaper has less."""
        least, most = self.range
        return (least + most) / 2


def step_time(job: TrainJob, assumed: Assumed, gpu: Gpu, workers: int) -> StepTime:
    """Of a job with its own sharding, micro-batch and recomputation, on so many of these GPUs."""
    low, high = assumed.shares
    flop = step_flop(job, workers) * _ENGINE[job.engine.zero_stage]
    return StepTime(
        products=(flop / (gpu.bf16 * high), flop / (gpu.bf16 * low)),
        sent=sent_bytes(job, workers) / assumed.link(gpu, workers),
        memory=_memory_bytes(job, workers) / gpu.memory_rate,
    )


def step_flop(job: TrainJob, workers: int) -> float:
    """FLOP that a GPU computes in a step, what is computed again included. Weights that do not
    train have no gradients; those of activations go through them all the same.
    """
    trained = min(1.0, job.trained / sum(parameter_counts(job.model_config_).values()))
    again = job.engine.recomputed(job.model_config_.num_layers)
    # Forward, gradients of activations, gradients of weights: a third each.
    return SampleShape.of(job).flop(job) * job.share(workers) * (2 + trained + again) / 3


def sent_bytes(job: TrainJob, workers: int) -> float:
    """Bytes that a GPU sends in a step, and receives, by rings. As DeepSpeed 0.19 does it: stages
    1 and 2 take sums of gradients by an all-reduce, which is two rounds, and gather the weights
    that changed; stage 2 takes the sums of each micro-batch, and stage 3 gathers weights in each,
    forward and backward. Sums of several micro-batches are sent in the width of the weights, too.
    """
    wide = 2 if job.engine.precision == "bf16" else 4
    passes = job.passes(workers)
    every = sum(parameter_counts(job.model_config_).values())
    trained = job.trained
    numbers = {
        0: 2 * 4 * trained,
        1: (2 + 1) * wide * trained,
        2: (passes * 2 + 1) * wide * trained,
        3: passes * (2 * every + trained) * wide,
    }[job.engine.zero_stage]
    return numbers * (workers - 1) / workers


def _memory_bytes(job: TrainJob, workers: int) -> float:
    """Bytes of weights, gradients and states that pass through a GPU's memory in a step; those of
    activations are in what steps reach of the peak.
    """
    engine, config = job.engine, job.model_config_
    wide = 2 if engine.precision == "bf16" else 4
    passes, trained = job.passes(workers), job.trained
    again = engine.recomputed(config.num_layers)
    # Weights are read forward, backward and where a block is computed again; gradients written,
    # and added to their sum.
    weights = wide * (sum(parameter_counts(config).values()) * (2 + again) + trained)
    adding = 2 * 4 * trained if passes > 1 else 0
    # Masters and two moments, and the average of weights: read and written.
    states = 2 * 4 * (4 if engine.ema_decay else 3)
    part = trained if engine.zero_stage == 0 else trained / workers
    return passes * (weights + adding) + states * part

"""What a run tells Prometheus while it lasts; what stays of it is in MLflow and the run folder.

Rank 0 speaks for the run; each rank says where its time goes, and each decoding process what it
read. See `gwp.metrics.names`.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import ray.util.metrics

from gwp.metrics.meter import Meter
from gwp.metrics.names import (
    TRAIN_CHECKPOINT,
    TRAIN_CHECKPOINT_EVERY,
    TRAIN_CHECKPOINT_SECONDS,
    TRAIN_DATA_BOUND,
    TRAIN_EMA,
    TRAIN_ENCODER_FLOP,
    TRAIN_FLOP,
    TRAIN_GRADIENT,
    TRAIN_LOSS,
    TRAIN_MEMORY,
    TRAIN_MFU,
    TRAIN_PHASE,
    TRAIN_SAMPLES,
    TRAIN_SKIPPED,
    TRAIN_START,
    TRAIN_STEP,
    TRAIN_STEP_PHASE,
    TRAIN_STEP_SECONDS,
    TRAIN_STEPS_PLANNED,
    TRAIN_TOKENS,
    TRAIN_UNSAVED,
    TRAIN_WORKERS,
)

_GIB = float(1 << 30)
_GAUGES = {
    "speed/mfu": TRAIN_MFU,
    "data_wait_share": TRAIN_DATA_BOUND,
    "gradient_norm": TRAIN_GRADIENT,
    "ema_distance": TRAIN_EMA,
}
"""Figure -> the metric that it is."""


def meter_of(run: str, rank: int = 0) -> Meter:
    """For a process of Ray's that works for the run of this name."""
    return Meter(ray.util.metrics, run=run, rank=str(rank))


def losses_told(meter: Meter, losses: Mapping[str, float], validation: bool = False) -> None:
    """Give a meter the newest losses of a run, by name."""
    for name, value in losses.items():
        meter.set(TRAIN_LOSS, value, part=f"validation_{name}" if validation else name)


class Work(NamedTuple):
    """Of a step, or of several, on all ranks: samples, their tokens, the arithmetic of the model and
    of the video codec.
    """

    samples: int
    tokens: float
    flop: float
    encoder_flop: float

    def plus(self, other: "Work") -> "Work":
        """Of both."""
        return Work(
            self.samples + other.samples,
            self.tokens + other.tokens,
            self.flop + other.flop,
            self.encoder_flop + other.encoder_flop,
        )


class LiveRun:
    """A rank of a run; the training loop makes and feeds it."""

    def __init__(
        self, meter: Meter, rank: int, world: int, steps: int, checkpoint_every: int
    ) -> None:
        """meter: of `meter_of`; world: ranks; steps: of the whole run; checkpoint_every: steps"""
        self._meter = meter
        self._first = rank == 0
        self._step = self._saved = self._skipped = 0
        # When the newest step ended, and when a checkpoint was taken at a step.
        self._ended: float | None = None
        self._taken: dict[int, float] = {}
        if self._first:
            self._meter.set(TRAIN_WORKERS, world)
            self._meter.set(TRAIN_STEPS_PLANNED, steps)
            self._meter.set(TRAIN_CHECKPOINT_EVERY, checkpoint_every)
            self._meter.set(TRAIN_CHECKPOINT, time.time())

    def spent(self, phase: str, seconds: float) -> None:
        """This rank was in a phase for so long."""
        self._meter.add(TRAIN_PHASE, seconds, phase=phase)

    def begins(self, step: int) -> None:
        """The run is at `step`, with all of it in storage."""
        self._step = self._saved = step
        self._tell_steps()

    def stepped(self, step: int, work: Work, skipped: int) -> None:
        """A step was done. work: of the global batch; skipped: steps not taken, of this start"""
        if not self._first:
            return
        now = time.perf_counter()
        if self._ended is not None:
            self._meter.observe(TRAIN_STEP_SECONDS, now - self._ended)
        self._ended = now
        self._step = step
        self._meter.add(TRAIN_SAMPLES, work.samples)
        self._meter.add(TRAIN_TOKENS, work.tokens)
        self._meter.add(TRAIN_FLOP, work.flop)
        self._meter.add(TRAIN_ENCODER_FLOP, work.encoder_flop)
        self._meter.add(TRAIN_SKIPPED, skipped - self._skipped)
        self._skipped = skipped
        self._tell_steps()

    def losses(self, losses: Mapping[str, float], validation: bool = False) -> None:
        """The newest losses, by name."""
        if self._first:
            losses_told(self._meter, losses, validation)

    def figures(self, figures: Mapping[str, float]) -> None:
        """What was measured since the last time, by the names of `measure.account`."""
        if not self._first:
            return
        for name, value in figures.items():
            kind, _, rest = name.partition("/")
            if name in _GAUGES:
                self._meter.set(_GAUGES[name], value)
            elif kind == "loss":
                self._meter.set(TRAIN_LOSS, value, part=rest)
            elif kind == "memory":
                where = rest.removesuffix("_gib")
                self._meter.set(TRAIN_MEMORY, value * _GIB, where=where)

    def phases(self, seconds: Mapping[str, float]) -> None:
        """Seconds of the phases of steps, since the last time."""
        if self._first:
            self._meter.add_each(TRAIN_STEP_PHASE, seconds)

    def started(self, told: Mapping[str, float]) -> None:
        """The first step is done: `start/PART` -> seconds."""
        if self._first:
            for name, seconds in told.items():
                self._meter.set(TRAIN_START, seconds, part=name.partition("/")[2])

    def taken(self, step: int) -> None:
        """A checkpoint was begun at `step`: what it takes is no part of a step."""
        self._taken[step] = time.time()

    def resumes(self) -> None:
        """Steps go on behind a checkpoint."""
        self._ended = time.perf_counter()

    def committed(self, step: int) -> float | None:
        """The checkpoint of `step` is whole; the seconds that it took, where that is known. Called
        beside the steps.
        """
        if not self._first:
            return None
        now = time.time()
        begun = self._taken.pop(step, None)
        if begun is not None:
            self._meter.observe(TRAIN_CHECKPOINT_SECONDS, now - begun)
        self._meter.set(TRAIN_CHECKPOINT, now)
        self._saved = step
        self._tell_steps()
        return None if begun is None else now - begun

    def close(self) -> None:
        """Hand over what is left."""
        self._meter.close()

    def _tell_steps(self) -> None:
        if self._first:
            self._meter.set(TRAIN_STEP, self._step)
            self._meter.set(TRAIN_UNSAVED, max(0, self._step - self._saved))

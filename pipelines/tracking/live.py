"""What a run tells Prometheus while it lasts; what stays of it is in MLflow and the run folder.

Rank 0 speaks for the run; each rank says where its time goes, and each decoding process what it
read. See `gwp.metrics.names`.
"""

import time
from collections.abc import Mapping

import ray.util.metrics

from gwp.metrics.meter import Meter
from gwp.metrics.names import (
    TRAIN_CHECKPOINT,
    TRAIN_CHECKPOINT_EVERY,
    TRAIN_CHECKPOINT_SECONDS,
    TRAIN_FLOP,
    TRAIN_LOSS,
    TRAIN_PHASE,
    TRAIN_SAMPLES,
    TRAIN_SKIPPED,
    TRAIN_STEP,
    TRAIN_STEP_SECONDS,
    TRAIN_STEPS_PLANNED,
    TRAIN_UNSAVED,
    TRAIN_WORKERS,
)


def meter_of(run: str, rank: int = 0) -> Meter:
    """For a process of Ray's that works for the run of this name."""
    return Meter(ray.util.metrics, run=run, rank=str(rank))


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

    def stepped(self, step: int, samples: int, flop: float, skipped: int) -> None:
        """A step was done. samples, flop: of the global batch; skipped: steps not taken, of this
        start
        """
        if not self._first:
            return
        now = time.perf_counter()
        if self._ended is not None:
            self._meter.observe(TRAIN_STEP_SECONDS, now - self._ended)
        self._ended = now
        self._step = step
        self._meter.add(TRAIN_SAMPLES, samples)
        self._meter.add(TRAIN_FLOP, flop)
        self._meter.add(TRAIN_SKIPPED, skipped - self._skipped)
        self._skipped = skipped
        self._tell_steps()

    def losses(self, losses: Mapping[str, float], validation: bool = False) -> None:
        """The newest losses, by name."""
        if self._first:
            for name, value in losses.items():
                part = f"validation_{name}" if validation else name
                self._meter.set(TRAIN_LOSS, value, part=part)

    def taken(self, step: int) -> None:
        """A checkpoint was begun at `step`: what it takes is no part of a step."""
        self._taken[step] = time.time()

    def resumes(self) -> None:
        """Steps go on behind a checkpoint."""
        self._ended = time.perf_counter()

    def committed(self, step: int) -> None:
        """The checkpoint of `step` is whole. Called beside the steps."""
        if not self._first:
            return
        now = time.time()
        begun = self._taken.pop(step, None)
        if begun is not None:
            self._meter.observe(TRAIN_CHECKPOINT_SECONDS, now - begun)
        self._meter.set(TRAIN_CHECKPOINT, now)
        self._saved = step
        self._tell_steps()

    def close(self) -> None:
        """Hand over what is left."""
        self._meter.close()

    def _tell_steps(self) -> None:
        if self._first:
            self._meter.set(TRAIN_STEP, self._step)
            self._meter.set(TRAIN_UNSAVED, max(0, self._step - self._saved))

"""What the steps since the last logging came to. The step and the loop of a rank feed it; when the
loop logs, one sum over the ranks makes the figures of all of them.
"""

import resource
import sys
import time
from collections.abc import Mapping

import torch

from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.live import Work
from pipelines.training.engine.ema import Ema
from pipelines.training.engine.ranks import Ranks
from pipelines.training.measure.clock import Clock
from pipelines.training.measure.groups import GroupedLosses, source_names
from pipelines.training.measure.peak import peak_of

_GIB = float(1 << 30)
_NOTHING = Work(0, 0.0, 0.0, 0.0)


class Account:
    """Of one rank.

    clock:  where its time goes
    losses: by group
    peak:   FLOP/s of the device at most; 0 on ranks that do not tell
    work:   of the newest step
    norm:   of the newest gradient, before clipping
    phases: seconds of the steps that the newest figures are of
    """

    def __init__(self, job: TrainJob, ranks: Ranks, device: torch.device) -> None:
        """Rank 0 measures here what its device can do, where that is not published."""
        self._ranks = ranks
        self._device = device
        names = source_names([source.uri for source in job.data.sources])
        self.losses = GroupedLosses(job.objective, names)
        dtype = torch.bfloat16 if job.engine.precision == "bf16" else torch.float32
        self.peak = peak_of(device, dtype) if ranks.rank == 0 else 0.0
        self.work, self.norm = _NOTHING, 0.0
        self.phases: Mapping[str, float] = {}
        self.clock = Clock(device)
        self._clear()

    def _clear(self) -> None:
        self._begin = time.perf_counter()
        self._steps = 0
        self._sum = _NOTHING

    def restart(self) -> None:
        """Forget what has come so far: the first step begins now."""
        self.clock.read()
        self._clear()

    def stepped(self, work: Work, norm: float) -> None:
        """One step more."""
        self._steps += 1
        self._sum = self._sum.plus(work)
        self.work, self.norm = work, norm

    def figures(self, ema: Ema, broken: int) -> tuple[int, dict[str, float]]:
        """Of the steps since the last call: the broken samples of all ranks since they started,
        and the figures by name; those of speed and time on rank 0 alone. Collective. broken: of
        this rank
        """
        # First, for it reads from the device what the last step has left there.
        groups = self.losses.sums()
        self.phases = self.clock.read()
        now = time.perf_counter()
        share = self.phases["data"] / max(sum(self.phases.values()), 1e-9)
        sums = self._ranks.summed([float(broken), share, *ema.distance(), *groups])
        found = {"data_wait_share": sums[1] / self._ranks.world, "gradient_norm": self.norm}
        if sums[3] > 0:
            found["ema_distance"] = (sums[2] / sums[3]) ** 0.5
        if self._ranks.rank == 0:
            found |= self._speed(now - self._begin) | self._times() | memory(self._device)
        self._clear()
        self._begin = now
        return int(sums[0]), found | self.losses.told(sums[4:])

    def _times(self) -> dict[str, float]:
        steps = max(self._steps, 1)
        told = {f"time/{name}": seconds / steps for name, seconds in self.phases.items()}
        return told | {"time/step": sum(told.values())}

    def _speed(self, seconds: float) -> dict[str, float]:
        whole = max(seconds, 1e-9)
        each = self._sum.flop / whole / self._ranks.world
        return {
            "speed/samples_per_s": self._sum.samples / whole,
            "speed/tokens_per_s": self._sum.tokens / whole,
            "speed/tflop_per_s": each / 1e12,
            "speed/tflop_per_s_encoders": self._sum.encoder_flop / whole / self._ranks.world / 1e12,
            "speed/mfu": each / self.peak,
        }


def memory(device: torch.device) -> dict[str, float]:
    """The most that this process has had until now, GiB: its own, and of the GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # KiB on Linux.
    told = {"memory/process_gib": peak * (1 if sys.platform == "darwin" else 1024) / _GIB}
    if device.type == "cuda":
        told["memory/device_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return told

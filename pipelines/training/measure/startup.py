"""What passes between a command and its first step, in parts: of the driver, then of rank 0."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Part = Literal[
    "machines",
    "list",
    "statistics",
    "plan",
    "run folder",
    "workers",
    "weights",
    "first batch",
    "first step",
]
"""machines: Ray, and room for the run; list: of the samples, from their files; statistics: of
states and actions; plan: their order, or what an earlier start has left; run folder: codec, texts
and what else is written there; workers: until rank 0 runs; weights: those, engine, codec, a
checkpoint; first batch: what is left to wait for it then.
"""
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass
class StartUp:
    """The driver makes it and counts its parts; rank 0 gets what it has come to.

    seconds: of each part so far
    handed:  when it was handed to the workers, Unix time
    """

    seconds: dict[Part, float] = field(default_factory=dict)
    handed: float = 0.0
    _since: float = field(default_factory=lambda: time.perf_counter())

    def over(self, name: Part) -> None:
        """What has passed since the call before, or since this was made, was that part."""
        now = time.perf_counter()
        self.add(name, now - self._since)
        self._since = now

    def add(self, name: Part, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def hand_over(self) -> "StartUp":
        """What workers get that start now; those that start after them begin with nothing."""
        self.over("workers")
        handed = StartUp(dict(self.seconds), time.time())
        self.seconds.clear()
        return handed

    def again(self) -> None:
        """Those who worked have ended: what comes from now on is of the next start."""
        self.seconds.clear()
        self._since = time.perf_counter()

    def reached(self, ended: Sequence[float]) -> None:
        """Rank 0 runs. ended: when workers before it ended, Unix time: this start began with the
        last of them, if that is later, and the driver had no part in it.
        """
        newest = max(ended, default=0.0)
        if newest > self.handed:
            self.seconds.clear()
        # Clocks of machines differ a little.
        self.add("workers", max(0.0, time.time() - max(newest, self.handed)))
        self._since = time.perf_counter()

    def told(self) -> dict[str, float]:
        """Name in MLflow -> seconds, with their sum."""
        parts = {f"start/{n}": self.seconds[n] for n in PARTS if n in self.seconds}
        return parts | {"start/total": sum(self.seconds.values())}

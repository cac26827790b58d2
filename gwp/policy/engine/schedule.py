"""Who computes when: a pure scheduler with no clock, no tensors and no threads of its own.

Requests wait, then hold a row of the batch until their steps are done. Active requests hold the
rows `0 .. n-1` without gaps, so a batch is the first rows of some buffers; when one leaves, the
last moves into its place.

Admission is earliest deadline first. It may slow down those who are already active, but none of
them by more than `max_delay` times what a request takes alone: a robot's latency stays near
that of an idle machine, and whoever has to wait shares the next batch.
"""

import heapq
import itertools
import math
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

BUCKETS = (1, 2, 4, 8, 16, 32)


class BatchingConfig(BaseModel):
    """Robots stepped together, whatever step each of them is at."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    slots: int = Field(default=8, ge=1, le=BUCKETS[-1])
    """Most robots computed at once."""
    group: int = Field(default=4, ge=1, le=BUCKETS[-1])
    """Most observations encoded at once."""
    max_delay: float = Field(default=0.3, ge=0)
    """How much longer than alone a robot's chunk may take because others come in meanwhile, as
    a share of what it takes alone.
    """


def bucket_of(count: int) -> int:
    """The smallest batch shape that holds `count` rows."""
    return next(size for size in BUCKETS if size >= count)


@dataclass
class Costs:
    """Seconds of a prefix for n observations and of one step of a bucket, as running means of
    what was measured.
    """

    prefix: dict[int, float] = field(default_factory=dict)
    step: dict[int, float] = field(default_factory=dict)

    def measured(self, kind: str, size: int, seconds: float) -> None:
        table: dict[int, float] = getattr(self, kind)
        table[size] = seconds if size not in table else 0.8 * table[size] + 0.2 * seconds

    def of(self, kind: str, size: int) -> float:
        """The mean of the nearest measured size, in proportion; 0 before anything was measured."""
        table: dict[int, float] = getattr(self, kind)
        if not table:
            return 0.0
        nearest = min(table, key=lambda known: abs(math.log(known / size)))
        return table[nearest] * max(1.0, size / nearest)


@dataclass
class Request:
    """One request as the schedule sees it. `deadline`: time on the caller's clock after which
    an answer is worthless, or inf.
    """

    id: int
    deadline: float = math.inf
    step: int = 0
    delayed: float = 0.0


@dataclass(frozen=True)
class Move:
    """Row `source` takes the place of row `target`; applied in order, before anything is
    admitted.
    """

    source: int
    target: int


class Schedule:
    """State of the waiting line and the rows. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        slots: int,
        group: int,
        steps: int,
        max_delay: float = 0.3,
        costs: Costs | None = None,
        exact: bool = False,
    ) -> None:
        """`exact`: a batch may have any number of rows, else those of BUCKETS."""
        if not 1 <= slots <= BUCKETS[-1]:
            raise ValueError(f"slots {slots} must be between 1 and {BUCKETS[-1]}")
        self.slots, self.group, self.steps, self.max_delay = slots, group, steps, max_delay
        self.costs, self._exact = costs or Costs(), exact
        self.active: list[Request] = []
        self._line: list[tuple[float, int, Request]] = []
        self._order = itertools.count()

    @property
    def waiting(self) -> int:
        return len(self._line)

    def add(self, request: Request) -> None:
        heapq.heappush(self._line, (request.deadline, next(self._order), request))

    def sweep(self, now: float, cancelled: set[int]) -> tuple[list[Request], list[Move]]:
        """Take out those past their deadline (returned) and those cancelled, waiting or active."""
        expired = [r for _, _, r in self._line if r.deadline <= now and r.id not in cancelled]
        self._line = [
            entry
            for entry in self._line
            if entry[2].deadline > now and entry[2].id not in cancelled
        ]
        heapq.heapify(self._line)
        expired += [r for r in self.active if r.deadline <= now and r.id not in cancelled]
        return expired, self._leave(
            [i for i, r in enumerate(self.active) if r.deadline <= now or r.id in cancelled]
        )

    def admit(self) -> list[list[Request]]:
        """Groups that go in now, in the order of their rows, which follow the active ones."""
        held = list(self.active)
        groups: list[list[Request]] = []
        while self._line and len(self.active) < self.slots:
            room = min(len(self._line), self.slots - len(self.active), self.group)
            # Powers of two, so that prefixes have few shapes. Not fewer than could go: letting
            # them in one by one keeps the batch small for good, while those who hold them up
            # are done within a few steps and make room for all.
            size = max(size for size in BUCKETS if size <= room)
            if not self._bearable(size, held):
                break
            groups.append([heapq.heappop(self._line)[2] for _ in range(size)])
            for request in held:
                request.delayed += self._delay(size, request)
            self.active += groups[-1]
        return groups

    def stepped(self) -> list[Request]:
        """Every active request took one step; those that are done, still in their rows until
        `release`.
        """
        for request in self.active:
            request.step += 1
        return [r for r in self.active if r.step >= self.steps]

    def rows(self, count: int) -> int:
        """Rows of the batch that so many active requests are computed in."""
        return count if self._exact else bucket_of(count)

    def row(self, request: Request) -> int:
        return next(i for i, other in enumerate(self.active) if other is request)

    def release(self, requests: list[Request]) -> list[Move]:
        """Free the rows of these requests."""
        return self._leave([self.row(r) for r in requests])

    def _leave(self, rows: list[int]) -> list[Move]:
        moves = []
        # From the back: the last row is then never one that has to leave itself.
        for row in sorted(rows, reverse=True):
            last = len(self.active) - 1
            if row != last:
                moves.append(Move(last, row))
                self.active[row] = self.active[last]
            self.active.pop()
        return moves

    def _bearable(self, size: int, held: list[Request]) -> bool:
        alone = self.costs.of("prefix", 1) + self.steps * self.costs.of("step", 1)
        return all(r.delayed + self._delay(size, r) <= self.max_delay * alone for r in held)

    def _delay(self, size: int, request: Request) -> float:
        count = len(self.active)
        slower = self.costs.of("step", self.rows(count + size)) - self.costs.of(
            "step", self.rows(count)
        )
        return self.costs.of("prefix", size) + (self.steps - request.step) * max(0.0, slower)

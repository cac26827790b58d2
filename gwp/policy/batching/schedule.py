"""Who computes when: the scheduler of continuous batching. No clock, no tensors, no threads.

Requests wait, then hold a row of the batch until their steps are done. Active requests hold the
rows `0 .. n-1` without gaps, so a batch is the first rows of some buffers; when one leaves, the
last moves into its place.

Admission is earliest deadline first, where a robot that has nothing left to do counts as one
whose deadline has come. Nobody goes in who could not be done in time: under overload each row
would be spent on a chunk that comes just too late. Admission may slow down those who are already
active, but none of them by more than `max_delay` times what a request takes alone: a robot's
latency stays near that of an idle machine, and whoever has to wait shares the next batch.
"""

import heapq
import itertools
import math
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

BUCKETS = (1, 2, 4, 8, 16, 32)
"""Numbers of rows that a recorded step is made for."""


class BatchingConfig(BaseModel):
    """Continuous batching: robots are stepped together, whatever step each of them is at."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    slots: int = Field(default=8, ge=1, le=BUCKETS[-1])
    """Most robots computed at once."""
    group: int = Field(default=4, ge=1, le=BUCKETS[-1])
    """Most observations encoded at once."""
    max_delay: float = Field(default=0.3, ge=0)
    """How much longer a chunk may take because others come in, as a share of its time alone."""


def bucket_of(count: int) -> int:
    """The smallest batch shape that holds `count` rows."""
    return next(size for size in BUCKETS if size >= count)


@dataclass
class Costs:
    """Seconds of a prefix for n observations and of one step of n rows, as running means.

    The engine measures, the schedule reads.
    """

    prefix: dict[int, float] = field(default_factory=dict)
    step: dict[int, float] = field(default_factory=dict)

    def measured(self, kind: str, size: int, seconds: float) -> None:
        """Another measurement; kind: `prefix` or `step`."""
        table: dict[int, float] = getattr(self, kind)
        # Slow enough that one hiccup does not close the door, fast enough for a machine whose
        # clock changes.
        table[size] = seconds if size not in table else 0.8 * table[size] + 0.2 * seconds

    def of(self, kind: str, size: int) -> float:
        """What so many cost by what was measured; 0 before anything was.

        Fewer rows cost no more than many, and many no more than in proportion: so one that was
        measured in a bad moment and seldom since is put right by all others.
        """
        # A copy, which is one step of Python's: another thread may ask while the engine measures.
        table: dict[int, float] = dict(getattr(self, kind))
        if not table:
            return 0.0
        return min(cost * max(1.0, size / known) for known, cost in table.items())


@dataclass
class Request:
    """One request as the schedule sees it.

    The engine makes it and keeps its `Job` under the same id.

    deadline: time on the caller's clock after which an answer is worthless, or inf
    due:      time when its robot has nothing left to do, or inf; for the order alone
    step:     Euler steps taken
    delayed:  seconds that others cost it by coming in while it was active
    """

    id: int
    deadline: float = math.inf
    due: float = math.inf
    step: int = 0
    delayed: float = 0.0


Entry = tuple[float, int, Request]
"""One who waits: urgency, number of arrival, and the request."""


@dataclass(frozen=True)
class Move:
    """Row `source` replaces row `target`; applied in order, before anything is admitted."""

    source: int
    target: int


class Schedule:
    """State of the waiting line and the rows. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self,
        slots: int,
        group: int,
        steps: int,
        max_delay: float = 0.3,
        costs: Costs | None = None,
        exact: bool = False,
    ) -> None:
        """exact: a batch may have any number of rows, else those of BUCKETS."""
        if not 1 <= slots <= BUCKETS[-1]:
            raise ValueError(f"slots {slots} must be between 1 and {BUCKETS[-1]}")
        self.slots = slots
        self.group = group
        self.steps = steps
        self.max_delay = max_delay
        self.costs = costs or Costs()
        self.active: list[Request] = []
        self._exact = exact
        self._line: list[Entry] = []
        self._order = itertools.count()

    @property
    def pace(self) -> float:
        """Seconds that a chunk costs where all rows are taken; 0 before anything was measured."""
        group = min(self.group, self.slots)
        step = self.costs.of("step", self.rows(self.slots)) / self.slots
        return self.costs.of("prefix", group) / group + self.steps * step

    @property
    def stay(self) -> float:
        """Seconds that a request takes which goes in now; 0 where nobody is here."""
        return self._stay(1) if self.active or self._line else 0.0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def add(self, request: Request) -> None:
        """A new request joins the waiting line."""
        # The number in between: of equal deadlines who came first, and requests have no order.
        urgency = min(request.deadline, request.due)
        heapq.heappush(self._line, (urgency, next(self._order), request))

    def sweep(self, now: float, cancelled: set[int]) -> tuple[list[Request], list[Move]]:
        """Take out those who cannot be done by their deadline (returned) and those cancelled,
        waiting or active.
        """
        # Of the active ones only those past it: what is left of their time is best known by trying.
        latest = now + self._stay(1)
        gone = [entry for entry in self._line if _leaves(entry[2], latest, cancelled)]
        if len(gone) == len(self._line) and not self.active:
            # A machine that has nothing else to do tries one, and learns what it costs now.
            last = max(gone, key=lambda entry: entry[2].deadline, default=None)
            gone = [e for e in gone if e is not last or _leaves(e[2], now, cancelled)]
        self._take(gone)
        rows = [i for i, r in enumerate(self.active) if _leaves(r, now, cancelled)]
        leaving = [request for _, _, request in gone] + [self.active[row] for row in rows]
        return [r for r in leaving if r.id not in cancelled], self._free(rows)

    def admit(self, now: float) -> list[list[Request]]:
        """Groups that go in now, in the order of their rows, which follow the active ones."""
        held = list(self.active)
        going = self._going(now)
        groups: list[list[Request]] = []
        while going:
            # Powers of two, so that prefixes have few shapes. Not fewer than could go: letting
            # them in one by one keeps the batch small for good, while those who hold them up
            # are done within a few steps and make place for all.
            size = max(size for size in BUCKETS if size <= min(len(going), self.group))
            if not self._bearable(size, held):
                break
            self._take(going[:size])
            group = [request for _, _, request in going[:size]]
            going = going[size:]
            for request in held:
                request.delayed += self._delay(size, request)
            groups.append(group)
            self.active += group
        return groups

    def stepped(self) -> list[Request]:
        """Everyone active took one step; those that are done hold their rows until `release`."""
        for request in self.active:
            request.step += 1
        return [r for r in self.active if r.step >= self.steps]

    def rows(self, count: int) -> int:
        """Rows of the batch that so many active requests are computed in."""
        return count if self._exact else bucket_of(count)

    def row(self, request: Request) -> int:
        """The row that an active request holds."""
        return next(i for i, other in enumerate(self.active) if other is request)

    def release(self, requests: list[Request]) -> list[Move]:
        """Free the rows of these requests."""
        return self._free([self.row(r) for r in requests])

    def free_rows(self) -> set[int]:
        """Free all rows at once, whatever a call that broke off has left.

        Returns the ids of those who still wait.
        """
        self.active.clear()
        heapq.heapify(self._line)
        return {request.id for _, _, request in self._line}

    def clear(self) -> None:
        """Nobody waits and nobody is active."""
        self.active.clear()
        self._line.clear()

    def _going(self, now: float) -> list[Entry]:
        """Those who may go in, most urgent first: the most who are all in time together."""
        line = sorted(self._line)
        for count in range(min(len(line), self.slots - len(self.active)), 0, -1):
            latest = now + self._stay(count)
            fit = [entry for entry in line if entry[2].deadline >= latest]
            if len(fit) >= count:
                return fit[:count]
        return [] if self.active else line[-1:]

    def _stay(self, entering: int) -> float:
        """Seconds that each of so many takes at most which go in now, with what those who come
        later may cost them.
        """
        group = min(self.group, entering)
        prefixes = math.ceil(entering / group) * self.costs.of("prefix", group)
        rows = self.rows(min(len(self.active) + entering, self.slots))
        steps = self.steps * self.costs.of("step", rows)
        return prefixes + steps + self.max_delay * self._alone

    def _take(self, entries: list[Entry]) -> None:
        """They leave the line."""
        if entries:
            numbers = {number for _, number, _ in entries}
            self._line = [entry for entry in self._line if entry[1] not in numbers]
            heapq.heapify(self._line)

    def _free(self, rows: list[int]) -> list[Move]:
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
        """Whether none of those who are active would be delayed beyond the limit."""
        most = self.max_delay * self._alone
        return all(r.delayed + self._delay(size, r) <= most for r in held)

    @property
    def _alone(self) -> float:
        """Seconds of a request that has the machine for itself."""
        return self.costs.of("prefix", 1) + self.steps * self.costs.of("step", 1)

    def _delay(self, size: int, request: Request) -> float:
        """Seconds that `size` more cost a request: their prefix, and its slower steps to come."""
        count = len(self.active)
        after = self.costs.of("step", self.rows(count + size))
        slower = max(0.0, after - self.costs.of("step", self.rows(count)))
        return self.costs.of("prefix", size) + (self.steps - request.step) * slower


def _leaves(request: Request, now: float, cancelled: set[int]) -> bool:
    return request.deadline <= now or request.id in cancelled

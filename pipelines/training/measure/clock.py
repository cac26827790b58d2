"""Where the time of steps goes on one rank.

A mark ends one phase and begins the next, so phases add up to the whole. On a CPU a mark is a
moment. On a GPU it is an event in its stream: a phase then lasts as long as it kept the device, or
had it wait, and nothing waits for the device to tell.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Phase = Literal[
    "data",
    "transfer",
    "encode",
    "forward",
    "backward",
    "optimiser",
    "exchange",
    "validation",
    "checkpoint",
    "rest",
]
"""data: waiting for the next batch; transfer: its copy to the device; encode: codec and text;
optimiser: with clipping and the average of weights; exchange: what ranks tell each other beside
gradients, and waiting for the slowest there; rest: draws of noise, notes, and all else.
"""
PHASES: tuple[Phase, ...] = get_args(Phase)

# Marks in a stream that are kept until they are read.
_MOST = 1000


class Clock:
    """The phases of one rank; it begins in `rest`. All methods are for one thread."""

    def __init__(self, device: torch.device | None = None) -> None:
        """device: where the rank computes; None: the CPU"""
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._phase: Phase = "rest"
        self._events = _Events() if device is not None and device.type == "cuda" else None
        if self._events:
            self._events.mark("rest")
        self._since = time.perf_counter()

    def to(self, phase: Phase) -> Phase:
        """Another phase begins here; returns the one that ends."""
        over, self._phase = self._phase, phase
        if self._events:
            if self._events.waiting > _MOST:
                self._events.add_to(self._seconds)
            self._events.mark(phase)
            return over
        now = time.perf_counter()
        self._seconds[over] += now - self._since
        self._since = now
        return over

    @contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        """This phase for as long as the block takes, then the one before."""
        before = self.to(phase)
        try:
            yield
        finally:
            self.to(before)

    def read(self) -> dict[str, float]:
        """Seconds of each phase since the last reading. What a GPU has not done yet is part of the
        next one.
        """
        self.to(self._phase)
        if self._events:
            self._events.add_to(self._seconds)
        told, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return told


class _Events:
    """Marks in the stream of a GPU."""

    def __init__(self) -> None:
        self._marks: list[tuple[Phase, torch.cuda.Event]] = []
        # An event costs more to make than to record.
        self._spare: list[torch.cuda.Event] = []

    @property
    def waiting(self) -> int:
        """Marks that were not added yet."""
        return len(self._marks)

    def mark(self, phase: Phase) -> None:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def add_to(self, seconds: dict[str, float]) -> None:
        """Add the phases that are over on the device."""
        over = 0
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if not end.query():
                break
            seconds[phase] += begin.elapsed_time(end) / 1000
            over += 1
        self._spare += [event for _, event in self._marks[:over]]
        del self._marks[:over]

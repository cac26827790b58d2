"""The engine: one thread that steps all waiting robots together, whatever step each of them is
at.

    submit (any thread): check, compose, normalise, encode the instruction     -> the waiting line
    tick (the engine's thread): leave -> admit groups (latent and prefix) -> one Euler step of the batch -> answer those that are done

Decisions are the `Schedule`'s, numbers the `Solver`'s and the `Slots`'; this file joins them to
threads and clocks.

On the CPU no other thread of the process should compute with torch beside it (`gwp.threads`
says why); load the policy `apart`.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch

from gwp.errors import GwpError
from gwp.policy.engine.graphs import RecordedPrefix, graph_pool, recorded
from gwp.policy.engine.schedule import BUCKETS, BatchingConfig, Move, Request, Schedule
from gwp.policy.engine.slots import Slots, fill, step
from gwp.policy.inputs import Prepared
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from gwp.threads import apart

log = logging.getLogger("gwp.engine")


class ExpiredError(GwpError):
    """The deadline passed before the chunk was ready."""


class ClosedError(GwpError):
    """The engine was closed before the chunk was ready."""


@dataclass
class _Job:
    """A request with its answer to come."""

    prepared: Prepared
    future: "Future[ActionChunk]"
    began: float
    timings: dict[str, float] = field(default_factory=dict)


class Engine:
    """Answers any number of threads. Close it, or use it as a context manager: its thread holds
    the device.
    """

    def __init__(
        self,
        policy: Policy,
        settings: BatchingConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = settings or BatchingConfig()
        self.policy, self._clock = policy, clock
        self._solver = policy.solver
        exact = self._solver.model.any_batch
        self._schedule = Schedule(
            settings.slots, settings.group, self._solver.steps, settings.max_delay, exact=exact
        )
        self._jobs: dict[int, _Job] = {}
        self._ids = itertools.count()
        self._incoming: list[tuple[Request, _Job]] = []
        self._lock = threading.Condition()
        self._closed = False
        self._busy_since: float | None = None
        self.failures = 0
        self._settings, self._ready = settings, Future[None]()
        self._thread = threading.Thread(target=self._loop, name="gwp-engine", daemon=True)
        self._thread.start()
        self._ready.result()

    def submit(
        self, observation: Observation, deadline_s: float | None = None
    ) -> "Future[ActionChunk]":
        """The chunk to come. ObservationError at once when the observation does not fit, so
        that it never enters a batch.

        deadline_s: seconds from now after which the answer is worthless; None: the
        observation's own, if any. Then the future raises ExpiredError. Cancelling the future
        frees its place.
        """
        began = self._clock()
        prepared = self.policy.inputs.prepare(observation)
        checked = self._clock()
        prompt = prepared.observation.prompt
        if not self.policy.text.knows(prompt):
            # Not in the engine's thread: a new instruction must not hold up robots whose
            # instruction is known.
            apart(lambda: self.policy.text.lookup([prompt]))
        job = _Job(
            prepared,
            Future(),
            began,
            {"preprocess": (checked - began) * 1e3, "text": (self._clock() - checked) * 1e3},
        )
        asked = observation.deadline_s if deadline_s is None else deadline_s
        request = (
            Request(next(self._ids)) if asked is None else Request(next(self._ids), began + asked)
        )
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is closed")
            self._incoming.append((request, job))
            self._lock.notify()
        return job.future

    def act(self, observation: Observation, deadline_s: float | None = None) -> ActionChunk:
        """`submit` and wait."""
        return self.submit(observation, deadline_s).result()

    def warm_up(self, observations: Sequence[Observation]) -> None:
        """Answer each observation, then compute every batch shape, so that no robot pays for
        it, and learn what each costs.

        Raises what the policy raises when it cannot act.
        """
        for observation in observations:
            self.act(observation)
        for size in [b for b in BUCKETS if b <= self._schedule.slots]:
            with self._lock:
                # Held, so that they are taken in together.
                futures = [self.submit(observations[0]) for _ in range(size)]
            for future in futures:
                future.result()

    @property
    def busy_for(self) -> float:
        """Seconds that the current tick has taken; 0 between ticks. A device that hangs shows
        here.
        """
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    @property
    def load(self) -> tuple[int, int]:
        """Requests that wait, and those being computed."""
        return self._schedule.waiting + len(self._incoming), len(self._schedule.active)

    def close(self) -> None:
        """Stop; requests that are not done raise ClosedError."""
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loop(self) -> None:
        try:
            self._record()
        except Exception as error:  # the constructor raises it
            log.exception("the engine could not start")
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        while self._take_in():
            self._busy_since = self._clock()
            try:
                with torch.inference_mode():
                    self._tick()
            except (
                Exception
            ) as error:  # a broken device fails whoever was being computed, not the engine
                log.exception("a tick failed")
                self.failures += 1
                self._fail(list(self._schedule.active), error)
            self._busy_since = None
        for job in [*self._jobs.values(), *(job for _, job in self._incoming)]:
            _answer(job, ClosedError("the engine was closed"))

    @torch.inference_mode()
    def _record(self) -> None:
        """Buffers; a prefix per size of a group, and a step per batch shape, with promised
        actions or without.
        """
        slots, group, rows = (
            self._settings.slots,
            min(self._settings.group, self._settings.slots),
            self.policy.text.rows,
        )
        pool = graph_pool(self.policy.device)
        self._slots = Slots.empty(self._solver, self._schedule.rows(slots), rows)
        self._observe = RecordedPrefix(self._solver, group, rows, future=False)
        for count in [b for b in BUCKETS if b <= group]:
            self._observe.record(count)
        self._steps: dict[tuple[int, bool], Callable[[], object]] = {}
        whole = self._solver.acting(self._slots.prefix)
        for size in sorted({self._schedule.rows(n) for n in range(1, slots + 1)}):
            part = self._slots.rows(0, size)
            through = whole if self._solver.model.any_batch else self._solver.acting(part.prefix)
            for promised in (False, True):
                self._steps[size, promised] = recorded(
                    partial(step, self._solver, part, through, promised), self.policy.device, pool
                )

    def _take_in(self) -> bool:
        """Wait for something to do; False when the engine is closed."""
        with self._lock:
            while not (self._closed or self._incoming or self._jobs):
                self._lock.wait()
            for request, job in self._incoming:
                self._jobs[request.id] = job
                self._schedule.add(request)
            self._incoming.clear()
            return not self._closed

    def _tick(self) -> None:
        cancelled = {key for key, job in self._jobs.items() if job.future.cancelled()}
        expired, moves = self._schedule.sweep(self._clock(), cancelled)
        self._move(moves)
        for key in cancelled:
            del self._jobs[key]
        for request in expired:
            _answer(
                self._pop(request),
                ExpiredError(
                    "the deadline passed before the chunk was ready; allow more time or add replicas"
                ),
            )
        row = len(self._schedule.active)
        for group in self._schedule.admit():
            self._admit(group, row)
            row += len(group)
        self._drop_failed()
        if self._schedule.active:
            self._step()

    def _admit(self, group: Sequence[Request], row: int) -> None:
        begin = self._clock()
        try:
            self._fill([self._job(r) for r in group], row)
        except Exception as error:  # whatever it was: the others of the group must not pay for it
            if len(group) > 1:
                for i, request in enumerate(group):
                    self._admit([request], row + i)
                return
            log.exception("an observation could not be encoded")
            self.failures += 1
            _answer(self._job(group[0]), error)
            return
        self._schedule.costs.measured("prefix", len(group), self._clock() - begin)

    def _fill(self, jobs: list[_Job], row: int) -> None:
        policy, device = self.policy, self.policy.device
        begin = self._clock()
        batch = policy.inputs.batch([job.prepared for job in jobs], device)
        reference = policy.latents(batch.canvas)
        self._settle()
        encoded = self._clock()
        text = policy.text_keys([job.prepared.observation.prompt for job in jobs])
        fill(
            self._slots.rows(row, row + len(jobs)),
            batch,
            self._observe(batch.state, reference, text, batch.embodiment),
        )
        self._settle()
        done = self._clock()
        for job in jobs:
            job.timings |= {
                "queue": (begin - job.began) * 1e3 - sum(job.timings.values()),
                "vae": (encoded - begin) * 1e3,
                "prefix": (done - encoded) * 1e3,
            }

    def _step(self) -> None:
        begin = self._clock()
        active = self._schedule.active
        size = self._schedule.rows(len(active))
        promised = any(self._job(r).prepared.observation.delay for r in active)
        self._steps[size, promised]()
        self._settle()
        seconds = self._clock() - begin
        self._schedule.costs.measured("step", size, seconds)
        done = self._schedule.stepped()
        if not done:
            return
        # A copy, and one wait for the device for all who are done: their rows are taken by
        # others now.
        chunks = self._slots.x[[self._schedule.row(r) for r in done]].cpu().numpy()
        answers = [(self._pop(r), y) for r, y in zip(done, chunks, strict=True)]
        self._move(self._schedule.release(done))
        for job, y in answers:
            self._finish(job, y)
        self.failures = 0

    def _finish(self, job: _Job, y: Any) -> None:
        begin = self._clock()
        try:
            chunk = self.policy.chunk(job.prepared, y)
        except Exception as error:  # one robot's limits must not cost the others their answer
            log.exception("a chunk could not be put into robot units")
            _answer(job, error)
            return
        now = self._clock()
        before = sum(job.timings.values())
        timings = job.timings | {
            "denoise": (begin - job.began) * 1e3 - before,
            "postprocess": (now - begin) * 1e3,
        }
        _answer(job, replace(chunk, timings=timings | {"total": (now - job.began) * 1e3}))

    def _drop_failed(self) -> None:
        failed = [
            r
            for r in self._schedule.active
            if self._job(r).future.done() and not self._job(r).future.cancelled()
        ]
        self._move(self._schedule.release(failed))
        for request in failed:
            self._pop(request)

    def _fail(self, requests: list[Request], error: Exception) -> None:
        self._schedule.release(requests)
        for request in requests:
            if request.id in self._jobs:
                _answer(self._pop(request), error)

    def _move(self, moves: list[Move]) -> None:
        for move in moves:
            self._slots.move(move.source, move.target)

    def _settle(self) -> None:
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)

    def _job(self, request: Request) -> _Job:
        return self._jobs[request.id]

    def _pop(self, request: Request) -> _Job:
        return self._jobs.pop(request.id)


def _answer(job: _Job, answer: ActionChunk | Exception) -> None:
    try:
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
    except InvalidStateError:
        # Cancelled meanwhile: nobody waits.
        pass

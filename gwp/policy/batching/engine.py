"""The engine: continuous batching.

One thread steps all robots together, whatever step each of them is at.

    submit (any thread): check, compose, normalise, encode the instruction -> the waiting line
    tick (the engine's thread): leave -> admit groups (latent and prefix) -> one Euler step of
                                the batch -> answer those that are done

Decisions are the `Schedule`'s, numbers the `ModelRunner`'s; this file joins them to threads and
clocks.

Every request is answered exactly once, whatever fails. `_jobs` holds all that are not answered
yet. When a tick breaks off, nobody can say what stands in the rows, so all who hold one get the
error, and rows are free again; those who wait go on waiting. Only when the tick answered nobody
at all do they get it too: each failure ends somebody's wait, so none comes round for ever.

On the CPU no other thread of the process should compute with torch beside it (`gwp.threads`
says why); load the policy `apart`.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

import torch

from gwp.errors import ClosedError, ExpiredError, GwpError
from gwp.policy.batching.job import Job, as_exception
from gwp.policy.batching.pace import Pace
from gwp.policy.batching.runner import ModelRunner
from gwp.policy.batching.schedule import BUCKETS, BatchingConfig, Request, Schedule
from gwp.policy.composed import ComposedObservation
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation, dry_in_s
from gwp.threads import apart

log = logging.getLogger("gwp.engine")


class Engine:
    """Answers any number of threads.

    Close it, or use it as a context manager: its thread holds the device.

    failures: failed ticks and failed observations since the last chunk that was computed; several
        in a row mean a broken device
    """

    def __init__(
        self,
        policy: Policy,
        settings: BatchingConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises what fails while buffers are made. clock: seconds, for deadlines and timings."""
        settings = settings or BatchingConfig()
        solver = policy.solver
        self.policy = policy
        self.failures = 0
        self._clock = clock
        self._settings = settings
        self._schedule = Schedule(
            settings.slots,
            settings.group,
            1 if solver.with_future else solver.steps,  # with a future a step is a whole chunk
            settings.max_delay,
            exact=solver.model.any_batch,
        )
        self._ids = itertools.count()
        # Guards the three below; the schedule and the rows belong to the engine's thread.
        self._lock = threading.Condition()
        self._jobs: dict[int, Job] = {}
        self._incoming: list[Request] = []
        self._closed = False
        # Written by the engine's thread alone; others read one number, which is whole in Python.
        self._busy_since: float | None = None
        # Steps taken, and robots in them together.
        self._steps = self._rows = 0
        self._pace = Pace()
        # Whether the current tick has answered anybody.
        self._answered = False
        # Buffers and recordings belong to the engine's thread, so it makes them.
        self._ready = Future[None]()
        self._thread = threading.Thread(target=self._loop, name="gwp-engine", daemon=True)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            # Also when whoever waits is interrupted: nobody else could close it.
            self._ask_to_end()
            raise

    def submit(
        self,
        given: Observation | ComposedObservation,
        deadline_s: float | None = None,
    ) -> "Future[ActionChunk]":
        """The chunk to come, for an observation or for one that was composed elsewhere.

        ObservationError at once when the observation does not fit, so that it never enters a
        batch.

        The future raises ExpiredError when its deadline passes, ClosedError when the engine
        closes first, PolicyError when the chunk must not reach a robot, and what the device
        raised when it failed. Cancelling it frees its row.

        deadline_s: seconds from now after which the answer is worthless; None: the
            observation's own, if any
        """
        # In the caller's thread: what one robot sends costs the others nothing.
        began = self._clock()
        admitted = self.policy.inputs.admit(given)
        checked = self._clock()
        prompt = admitted.observation.prompt
        if not self.policy.text.knows(prompt):
            # Not in the engine's thread: a new instruction must not hold up robots whose
            # instruction is known.
            apart(lambda: self.policy.text.lookup([prompt]))
        timings = {"preprocess": (checked - began) * 1e3, "text": (self._clock() - checked) * 1e3}
        job = Job(admitted, Future(), began, timings)
        allowed_s = admitted.observation.deadline_s if deadline_s is None else deadline_s
        request = Request(next(self._ids))
        if allowed_s is not None:
            request.deadline = began + allowed_s
        request.due = began + dry_in_s(admitted.observation)
        with self._lock:
            if self._closed:
                raise ClosedError("the engine is closed")
            self._jobs[request.id] = job
            self._incoming.append(request)
            self._lock.notify()
        return job.future

    def act(self, observation: Observation, deadline_s: float | None = None) -> ActionChunk:
        """`submit` and wait."""
        return self.submit(observation, deadline_s).result()

    def warm_up(self, observations: Sequence[Observation]) -> None:
        """Answer each observation, then compute every batch shape, and learn what each costs.

        No robot pays for it then. Raises what the policy raises when it cannot act.
        """
        if not observations:
            raise GwpError("warming up needs at least one observation that fits the policy")
        for observation in observations:
            self.act(observation)
        for size in [b for b in BUCKETS if b <= self._schedule.slots]:
            with self._lock:
                # Held, so that they are taken in together. `submit` takes it once more, which a
                # condition's lock allows.
                futures = [self.submit(observations[0]) for _ in range(size)]
            for future in futures:
                future.result()

    @property
    def alive(self) -> bool:
        """Whether its thread runs; False after `close`, or after a fault of the engine itself."""
        return self._thread.is_alive()

    @property
    def busy_for(self) -> float:
        """Seconds that the current tick has taken; 0 between ticks.

        A device that hangs shows here.
        """
        # Read once: the engine's thread may clear it at any moment.
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    @property
    def load(self) -> tuple[int, int]:
        """Requests that wait, and those being computed."""
        return self._schedule.waiting + len(self._incoming), len(self._schedule.active)

    @property
    def batch(self) -> float:
        """Robots that were computed together, on average over all steps so far."""
        return self._rows / max(1, self._steps)

    @property
    def totals(self) -> tuple[int, int]:
        """Solver steps so far, and robots in them together."""
        return self._steps, self._rows

    @property
    def wait_s(self) -> float:
        """Seconds until a request that came now would be answered, by what others cost; about. 0
        where nobody is computed.
        """
        # From the line itself, when there is one: the rest of the process takes its share.
        pace = max(self._schedule.pace, self._pace.seconds)
        return self.load[0] * pace + self._schedule.stay

    def close(self) -> None:
        """Stop; requests that are not done raise ClosedError."""
        self._ask_to_end()
        # A callback of a chunk runs in the engine's thread, which cannot wait for itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_to_end(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()

    def _loop(self) -> None:
        try:
            self._runner = self._make_runner()
        except BaseException as error:
            log.exception("the engine could not start")
            # The constructor raises it.
            self._ready.set_exception(as_exception(error))
            return
        self._ready.set_result(None)
        try:
            while self._wait():
                self._run_tick()
        finally:
            self._end()

    @torch.inference_mode()
    def _make_runner(self) -> ModelRunner:
        slots = self._settings.slots
        sizes = {self._schedule.rows(count) for count in range(1, slots + 1)}
        return ModelRunner(self.policy, sizes, min(self._settings.group, slots), self._clock)

    def _wait(self) -> bool:
        """Wait for something to do; False when the engine is to end."""
        with self._lock:
            while not (self._closed or self._jobs):
                self._lock.wait()
            return not self._closed

    def _run_tick(self) -> None:
        self._answered = False
        try:
            self._busy_since = self._clock()
            with torch.inference_mode():
                self._tick()
        except BaseException as error:
            # A broken device fails whoever was being computed, not the engine.
            log.exception("a tick failed")
            self._recover(error)
        finally:
            self._busy_since = None

    def _recover(self, error: BaseException) -> None:
        """A tick broke off: answer all who hold a row, or left one without an answer."""
        self.failures += 1
        waiting = self._schedule.free_rows()
        with self._lock:
            waiting |= {request.id for request in self._incoming}
            lost = self._jobs.keys() - waiting
            if not lost and not self._answered:
                # Whatever failed comes before any row: it would fail again for as long as anybody
                # waits.
                self._schedule.clear()
                self._incoming.clear()
                lost = set(self._jobs)
            jobs = [self._jobs.pop(key) for key in lost]
        for job in jobs:
            job.answer(error)

    def _end(self) -> None:
        # Also when the loop itself has failed: nobody may be left waiting, or be let in.
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._incoming.clear()
        for job in jobs:
            job.answer(ClosedError("the engine was closed"))

    def _tick(self) -> None:
        self._leave(self._take_in())
        self._admit()
        if self._schedule.active:
            self._step()

    def _take_in(self) -> set[int]:
        """New requests join the waiting line. Returns the ids of all that were cancelled."""
        with self._lock:
            while self._incoming:
                self._schedule.add(self._incoming.pop(0))
            return {key for key, job in self._jobs.items() if job.future.cancelled()}

    def _leave(self, cancelled: set[int]) -> None:
        """Those who were cancelled or are too late go; the last rows move into theirs."""
        expired, moves = self._schedule.sweep(self._clock(), cancelled)
        # Answers come before the moves, which may fail: who was merely too late is not to be
        # told of a broken device.
        for request in expired:
            self._answer(request.id, _expired())
        for key in cancelled:
            self._answer(key, ClosedError("cancelled"))
        self._runner.move(moves)

    def _admit(self) -> None:
        row = len(self._schedule.active)
        refused: list[Request] = []
        for group in self._schedule.admit(self._clock()):
            refused += self._encode(group, row)
            row += len(group)
        # Only now: as long as groups go in, their rows must stay where the schedule says.
        self._runner.move(self._schedule.release(refused))

    def _encode(self, group: Sequence[Request], row: int) -> list[Request]:
        """Encode a group into the rows from `row` on.

        Returns those that could not be, already answered.
        """
        begin = self._clock()
        jobs = [self._jobs[request.id] for request in group]
        try:
            phases = self._runner.encode([job.admitted for job in jobs], row)
        except BaseException as error:
            if len(group) > 1:
                # Whatever it was: the others of the group must not pay for it.
                alone = [self._encode([request], row + i) for i, request in enumerate(group)]
                return list(itertools.chain.from_iterable(alone))
            log.exception("an observation could not be encoded")
            self.failures += 1
            self._answer(group[0].id, error)
            return list(group)
        for job in jobs:
            # What is left of the time since `submit` was spent waiting.
            queue = (begin - job.began) * 1e3 - sum(job.timings.values())
            job.timings |= {"queue": queue} | phases
        self._schedule.costs.measured("prefix", len(group), self._clock() - begin)
        return []

    def _step(self) -> None:
        begin = self._clock()
        active = self._schedule.active
        size = self._schedule.rows(len(active))
        committed = any(self._jobs[r.id].admitted.observation.delay for r in active)
        self._runner.step(size, committed)
        self._schedule.costs.measured("step", size, self._clock() - begin)
        self._steps += 1
        self._rows += len(active)
        done = self._schedule.stepped()
        if not done:
            return
        self._pace.measure(len(done), self._schedule.waiting > 0, self._clock())
        # Read before rows move into theirs.
        chunks = self._runner.chunks([self._schedule.row(request) for request in done])
        try:
            self._runner.move(self._schedule.release(done))
            self.failures = 0
        finally:
            # Their chunks are computed and read: what happens to the rows is no longer their
            # business.
            for request, chunk_pd in zip(done, chunks, strict=True):
                self._finish(request, chunk_pd)

    def _finish(self, request: Request, chunk_pd: Any) -> None:
        begin = self._clock()
        job = self._jobs[request.id]
        try:
            chunk = self.policy.chunk(job.admitted, chunk_pd)
        except BaseException as error:  # one robot's limits must not cost the others their answer
            log.exception("a chunk could not be put into robot units")
            self._answer(request.id, error)
            return
        now = self._clock()
        if now > request.deadline:
            # Its last step took longer than there was.
            self._answer(request.id, _expired())
            return
        denoise = (begin - job.began) * 1e3 - sum(job.timings.values())
        timings = job.timings | {"denoise": denoise, "postprocess": (now - begin) * 1e3}
        self._answer(
            request.id, replace(chunk, timings=timings | {"total": (now - job.began) * 1e3})
        )

    def _answer(self, key: int, answer: ActionChunk | BaseException) -> None:
        self._answered = True
        # In this order: what breaks off in between is answered a second time, which changes
        # nothing.
        self._jobs[key].answer(answer)
        with self._lock:
            del self._jobs[key]


def _expired() -> ExpiredError:
    return ExpiredError(
        "the deadline passed before the chunk was ready; allow more time or add replicas"
    )

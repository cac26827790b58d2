"""Chunks in, one action per control step out: the receding horizon, with or without waiting for
the network.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from gwp.client.buffering.fetch import Act, Beside, Fetch, Waiting
from gwp.client.buffering.rows import Grid, Plan
from gwp.client.buffering.tally import Tally
from gwp.client.connection.wire import ClientError
from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.report import Report

_AGAIN_S, _AGAIN_MAX_S = 0.05, 1.0


@dataclass(frozen=True)
class Executed:
    """What was given last.

    action: float32 `[d]`, robot units
    step:   control step
    row:    its row in the chunk; None when it is held
    held:   no chunk covered the step: the action is the last one again, with zeros for
            displacements and velocities
    age_s:  how long ago the observation behind it was made, seconds
    chunk:  the chunk it comes from, with its policy and flags
    """

    action: np.ndarray
    step: int
    row: int | None
    held: bool
    age_s: float
    chunk: ActionChunk


@dataclass(frozen=True)
class _Request:
    future: "Future[ActionChunk]"
    state: np.ndarray
    step: int
    seen: float
    delay: int


class ChunkBuffer:
    """Executes `replan` actions of a chunk, then asks again.

    act:     gives a chunk for an observation: `Client.act`, or `Policy.act` in the same process
    replan:  control steps between two observations
    delay:   0: no real-time chunking. Above: the next chunk is fetched beside the control loop
             while the current one goes on for `delay` more steps; those steps travel with the
             request as committed actions, so the new chunk continues them. Take the reply time in
             control steps.
    refill:  rows left at which the next chunk is asked for beside the control loop, though
             `replan` is not reached; None: `replan` alone decides. Without `delay` and `refill`
             the control loop waits for each chunk.
    blend:   rows over which a new chunk takes over gradually from the one before. One that comes to
             a robot that stood still takes over no faster than in as many rows as it missed.
    rate:    control rate, Hz. Chunks are then placed by the clock: rows whose time has passed are
             skipped, whatever made the loop late. None: calls are counted, and the world waits.
    wait_s:  longest time that `next_action` blocks for a chunk when it has no row left, seconds;
             then it holds. None: as long as it takes, and a failure is raised.
    zero:    `[d]`, true for displacements and velocities, which are zero when held; all else is
             repeated. Name them, or take the buffer from `client.describe()`.
    mixed:   `[d]`, true where values between two are values too (no gripper that is open or
             closed, no angle that wraps, no part of a quaternion); only those are blended
    relative: `[d]`, true where a foreign policy's rows are relative to the state of their
             observation, entry by entry. Rows of our endpoint never are: it adds the state of the
             observation that made the chunk, and nothing may be added here.

    Row i of a chunk belongs to the control step i after its observation. When a request fails,
    rows that are valid go on being executed and it is asked again, with growing pauses; `error`
    says why. When nothing valid is left, a failure that may pass (`ClientError.passing`) is held
    through if `wait_s` is set; any other is raised. Before the first chunk there is nothing to
    hold: ClientError with the code `dry`.

    late:    replies that took effect later than `delay` steps, or after the rows had run out, or
             came when all their rows had passed
    dry:     steps at which an action was held
    failed:  requests without a chunk
    seams:   chunks that took over from another, or from holding

    All of that goes to the endpoint with the next request (`Observation.report`), unless the
    observation has a report already.
    """

    def __init__(
        self,
        act: Act,
        replan: int,
        delay: int = 0,
        *,
        refill: int | None = None,
        blend: int = 0,
        rate: float | None = None,
        wait_s: float | None = None,
        zero: Sequence[bool] | None = None,
        mixed: Sequence[bool] | None = None,
        relative: Sequence[bool] | None = None,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if replan < 1 or min(delay, blend, refill or 0) < 0:
            raise GwpError(
                f"replan {replan}, delay {delay}, blend {blend} and refill {refill}: replan must be "
                "at least 1, the others at least 0 control steps"
            )
        if (rate is not None and not 0 < rate < np.inf) or (wait_s is not None and not wait_s >= 0):
            raise GwpError(f"rate {rate} Hz and wait_s {wait_s} s: give positive numbers or none")
        self._act = act
        self._replan = replan
        self._delay = delay
        self._refill = 0 if refill is None else refill
        self._blend = blend
        self._rate = rate
        self._wait_s = wait_s
        self._masks = zero, mixed, relative
        beside = delay > 0 or refill is not None
        self._fetch: Fetch = fetch or (Beside() if beside else Waiting())
        self._clock = clock
        self._grid = Grid(rate)
        self.late = self.dry = self.failed = self.seams = 0
        self._tally, self._skipped = Tally(), 0
        self.chunk: ActionChunk | None = None
        self.executed: Executed | None = None
        self.error: Exception | None = None
        self._plan: Plan | None = None
        self._pending: _Request | None = None
        # The last step that had a row.
        self._moved_at = 0
        # Failures since the last chunk, of which the caller has not been told the latest.
        self._failures, self._untold, self._again_at = 0, False, 0.0

    @property
    def skipped(self) -> int:
        """Control steps that passed without an action, because the loop was late."""
        return self._grid.skipped

    def next_action(
        self, observe: Callable[[], Observation], step: int | None = None
    ) -> np.ndarray:
        """The action of this control step, float32 `[d]`, robot units. Call it once a step.

        observe: gives the observation of this moment; called here, in the caller's thread, only
        when a chunk is asked for. `step`: its number, where the caller counts. Raises what `act`
        raised, when nothing is left to execute and holding would not help.
        """
        at = self._grid.step(self._clock(), step)
        self._catch_up(at)
        self._collect(at)
        asks = self._due(at)
        if asks:
            self._ask(observe, at)
            at = self._grid.waited(self._clock(), step)
            self._collect(at)
        if not self._left(at):
            at = self._wait(observe, at, step, asks)
        return self._give(at)

    def reset(self) -> None:
        """Forget the chunk and the action before, e.g. at the start of an episode. The answer to
        a request under way is dropped; nobody waits for it.
        """
        if self._pending is not None:
            # The endpoint reads its report all the same.
            self._tally.answered()
        self.chunk = self.executed = self.error = None
        self._plan = self._pending = None
        self._failures, self._untold, self._again_at = 0, False, 0.0
        self._grid.reset()

    def close(self) -> None:
        """Drop a request under way."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _left(self, at: int) -> int:
        return 0 if self._plan is None else self._plan.left(at)

    def _due(self, at: int) -> bool:
        if self._pending is not None or self._clock() < self._again_at:
            return False
        plan = self._plan
        return plan is None or at - plan.anchor >= self._replan or plan.left(at) <= self._refill

    def _ask(self, observe: Callable[[], Observation], at: int) -> None:
        seen, wall = self._clock(), time.time()
        observation = observe()
        left = self._left(at)
        # When all its rows have passed an answer is worth nothing: rather is it asked anew.
        worth_s = observation.max_age_s
        if worth_s is None and self._rate and self.chunk is not None:
            worth_s = len(self.chunk.actions) / self._rate
        request = replace(
            observation,
            max_age_s=worth_s,
            observed_at=wall if observation.observed_at is None else observation.observed_at,
            executed_action=None if self.executed is None else self.executed.action,
            steps_left=left,
            rate=self._rate,
            report=observation.report or self._report(),
        )
        # Near the end of a chunk fewer rows are left than the reply needs; only those can be
        # promised.
        delay = min(self._delay, left)
        if delay and self._plan is not None:
            # All that is left travels along; only the first `delay` of them are promised.
            promised = self._plan.rows[-left:] - self._base(observation.state)
            request = replace(request, prefix_actions=promised, delay=delay)
        future = self._fetch.submit(self._act, request)
        self._pending = _Request(future, np.asarray(observation.state), at, seen, delay)

    def _wait(
        self, observe: Callable[[], Observation], at: int, step: int | None, asked: bool
    ) -> int:
        """Wait for rows as long as is allowed; the step when that is over.

        asked: whether a request was made in this step
        """
        begin = self._clock()
        while not self._left(at):
            if self._pending is None:
                # What failed in an earlier step is tried once more before it is told.
                if self._wait_s is not None or asked:
                    break
                asked = True
                self._ask(observe, at)
            else:
                rest = None if self._wait_s is None else self._wait_s - (self._clock() - begin)
                if rest is not None and rest <= 0 and not self._pending.future.done():
                    break
                wait([self._pending.future], timeout=rest)
            at = self._grid.waited(self._clock(), step)
            self._collect(at)
        return at

    def _collect(self, at: int) -> None:
        """Take an answer that has come."""
        request = self._pending
        if request is None or not request.future.done():
            return
        error = request.future.exception()
        # An answer that is early waits: the promised actions are executed first.
        if error is None and at - request.step < request.delay and self._left(at):
            return
        self._pending = None
        if error is None:
            self._take(request.future.result(), request, at)
        elif isinstance(error, Exception):
            self._fail(error, request)
        else:
            raise error

    def _report(self) -> Report:
        skipped, self._skipped = self.skipped - self._skipped, self.skipped
        self._tally.add(Report(skipped=skipped))
        return self._tally.report()

    def _fail(self, error: Exception, request: _Request) -> None:
        self.failed += 1
        self._tally.add(Report(failed=1))
        self.error, self._untold = error, True
        # The first time at once: most failures are over by then.
        pause = min(_AGAIN_S * 2**self._failures, _AGAIN_MAX_S) if self._failures else 0.0
        # From the request on: one that took long has paused enough.
        self._again_at = request.seen + pause
        self._failures = min(self._failures + 1, 16)

    def _take(self, chunk: ActionChunk, request: _Request, at: int) -> None:
        row, p = at - request.step, len(chunk.actions)
        self._tally.answered()
        if row >= p:
            self._was_late()
            error = ClientError(
                f"the reply came at step {row} of {p} actions; lower the delay or use longer "
                "chunks",
                "stale",
            )
            self._fail(error, request)
            # A slow network passes, a chunk shorter than its delay does not.
            if p <= self._delay:
                raise error
            return
        was_dry = self.executed is not None and not self._left(at)
        waits = isinstance(self._fetch, Waiting)
        if row > request.delay if request.delay else was_dry and not waits:
            self._was_late()
        rows = np.asarray(chunk.actions, np.float32) + self._base(
            request.state, len(chunk.actions[0])
        )
        plan = Plan(rows, request.step, request.seen)
        self.seams += self.executed is not None
        still = self._still(rows[0] if self.executed is None else self.executed.action)
        # A robot that stood still while rows passed is that far behind: it catches up over as
        # many rows as it missed, instead of in one jump.
        missed = row if self.executed is None else min(row, at - self._moved_at - 1)
        over = max(self._blend if self.executed else 0, missed)
        mixed = self._mask(1, rows.shape[1], True)
        plan = plan.joined(self._plan, still, at, over, mixed)
        self._plan, self.chunk = plan, chunk
        self.error, self._untold, self._failures, self._again_at = None, False, 0, 0.0

    def _catch_up(self, at: int) -> None:
        """The robot kept its last target while the loop stood still: it goes on gradually, too."""
        plan, done = self._plan, self.executed
        if plan is None or done is None or done.held or not plan.left(at):
            return
        missed = at - self._moved_at - 1
        if missed > 0:
            mixed = self._mask(1, len(done.action), True)
            self._plan = plan.joined(None, self._still(done.action), at, missed, mixed)

    def _give(self, at: int) -> np.ndarray:
        plan, chunk, now = self._plan, self.chunk, self._clock()
        held = plan is None or not plan.left(at)
        if held:
            self._tell()
        if plan is None or chunk is None or (held and self.executed is None):
            why = f" (last: {self.error})" if self.error else ""
            raise ClientError(
                f"no chunk has come yet{why} and there is no action to hold; call again, it is "
                "asked for",
                "dry",
            )
        if held and self.executed is not None:
            action = self._still(self.executed.action)
        else:
            action = plan.at(at).copy()
        ran_dry = held and self.executed is not None and not self.executed.held
        self.dry += held
        self._moved_at = self._moved_at if held else at
        row = None if held else at - plan.anchor
        age_s = now - plan.seen
        self.executed = Executed(action, at, row, held, age_s, chunk)
        self._tally.add(
            Report(held=1, dry=int(ran_dry))
            if held
            else Report(executed=1, blended=int(at < plan.own), age_s=age_s)
        )
        return action

    def _was_late(self) -> None:
        self.late += 1
        self._tally.add(Report(late=1))

    def _tell(self) -> None:
        """Raise the latest failure, once, when holding would not help or is not wanted."""
        error = self.error
        if error is None or not self._untold:
            return
        passing = isinstance(error, ClientError) and error.passing
        if self._wait_s is not None and passing:
            return
        self._untold = False
        raise error

    def _still(self, last: np.ndarray) -> np.ndarray:
        """What holding is after an action `[d]`, float32 `[d]`."""
        return np.where(self._mask(0, len(last), False), np.float32(0), last).astype(np.float32)

    def _base(self, state: np.ndarray, width: int | None = None) -> np.ndarray:
        """What relative rows are added to, float32 `[d]`; zeros where they are not."""
        relative = self._masks[2]
        if relative is None:
            return np.float32(0) if width is None else np.zeros(width, np.float32)  # type: ignore[return-value]
        mask = np.asarray(relative, bool)
        base = np.zeros(len(mask), np.float32)
        base[mask] = np.asarray(state, np.float32)[: len(mask)][mask]
        return base

    def _mask(self, which: int, width: int, otherwise: bool) -> np.ndarray:
        given = self._masks[which]
        if given is None:
            return np.full(width, otherwise)
        if len(given) != width:
            raise GwpError(
                f"{('zero', 'mixed', 'relative')[which]} has {len(given)} entries, an action {width}"
            )
        return np.asarray(given, bool)

"""Chunks in, one action per control step out: the receding horizon, with or without waiting for
the network.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation


class ChunkBuffer:
    """Executes `replan` actions of a chunk, then asks again.

    act:     gives a chunk for an observation: `Client.act`, or `Policy.act` in the same process
    replan:  control steps between two observations
    delay:   0: the control loop waits for each chunk. Above 0: real-time chunking. The next
             chunk is fetched in a thread while the current one goes on for `delay` more steps;
             those steps travel with the request as committed actions, so the new chunk
             continues them and the robot never stops. Take the reply time in control steps.

    Row i of a chunk belongs to the control step i after its observation. A reply later than
    `delay` steps skips the rows whose time has passed (counted in `late`); when the current
    chunk runs out first, `next_action` waits.
    """

    def __init__(
        self, act: Callable[[Observation], ActionChunk], replan: int, delay: int = 0
    ) -> None:
        if replan < 1 or delay < 0:
            raise GwpError(
                f"replan {replan} and delay {delay}: replan must be at least 1, delay at least "
                "0 control steps"
            )
        self._act = act
        self._replan = replan
        self._delay = delay
        # One thread: there is never more than one request under way.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gwp-chunk") if delay else None
        self.late = 0
        self.chunk: ActionChunk | None = None
        self._row = 0
        self._pending: Future[ActionChunk] | None = None
        self._asked_at = 0

    def next_action(self, observe: Callable[[], Observation]) -> np.ndarray:
        """The action of this control step, float32 `[d]`, robot units. Call it once a step.

        observe: gives the observation of this moment; called here, in the caller's thread, only
        when a chunk is asked for. Raises what `act` raises.
        """
        if self.chunk is None:
            self._take(self._act(observe()), 0)
        elif self._pool is None:
            if self._row >= min(self._replan, len(self.chunk.actions)):
                self._take(self._act(observe()), 0)
        else:
            self._overlap(observe, self.chunk, self._pool)
        assert self.chunk is not None
        action: np.ndarray = self.chunk.actions[self._row]
        self._row += 1
        return action

    def reset(self) -> None:
        """Forget the current chunk, e.g. at the start of an episode. Waits for a request under
        way and drops its answer.
        """
        if self._pending is not None:
            # It waits, and raises nothing whatever became of the request.
            self._pending.exception()
        self.chunk = None
        self._pending = None
        self._row = 0

    def close(self) -> None:
        """End the fetching thread after the request under way."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _overlap(
        self, observe: Callable[[], Observation], chunk: ActionChunk, pool: ThreadPoolExecutor
    ) -> None:
        left = len(chunk.actions) - self._row
        if self._pending is None and self._row >= self._replan and left > 0:
            # Near the end of a chunk fewer rows are left than the reply needs; only those can
            # be promised.
            delay = min(self._delay, left)
            # All that is left travels along; only the first `delay` of them are promised.
            promised = chunk.actions[self._row :].copy()
            request = replace(observe(), prefix_actions=promised, delay=delay)
            self._pending = pool.submit(self._act, request)
            self._asked_at = self._row
        if self._pending is None:
            if left <= 0:
                self._take(self._act(observe()), 0)
            return
        # An answer that is early waits: the promised actions are executed first.
        elapsed = self._row - self._asked_at
        if left <= 0 or (elapsed >= self._delay and self._pending.done()):
            pending = self._pending
            # When it failed, this step raises why, and the next one asks anew.
            self._pending = None
            fresh = pending.result()
            self.late += elapsed > self._delay
            self._take(fresh, elapsed)

    def _take(self, chunk: ActionChunk, row: int) -> None:
        if row >= len(chunk.actions):
            raise GwpError(
                f"the reply came at step {row} of {len(chunk.actions)} actions; lower the "
                "delay or use longer chunks"
            )
        self.chunk = chunk
        self._row = row

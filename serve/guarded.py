"""The engine behind asyncio: what fails is a refusal, and a broken or hanging device is noticed."""

import asyncio
import logging
from concurrent.futures import Future

from gwp.errors import ClosedError, ExpiredError, GwpError, ObservationError
from gwp.policy.batching.engine import Engine
from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk
from serve.refusal import RefusedError

log = logging.getLogger("ray.serve")

# One failure may be the observation's; so many in a row are the device's.
MAX_FAILURES = 3


class GuardedEngine:
    """An `Engine` for event loops: the `Backend` of a gateway in the same process, and what
    stands behind a replica's link.

    stuck_after_s: a tick of the engine that takes longer counts as never ending, seconds
    """

    def __init__(self, engine: Engine, stuck_after_s: float) -> None:
        self._engine = engine
        self._stuck_after_s = stuck_after_s

    @property
    def ready(self) -> bool:
        """Whether the engine runs."""
        return self._engine.alive

    @property
    def load(self) -> int:
        """Requests that wait or are computed."""
        return sum(self._engine.load)

    @property
    def wait_s(self) -> float:
        """Seconds until a request that came now would be answered; about."""
        return self._engine.wait_s

    @property
    def batch(self) -> float:
        """Robots computed together, on average."""
        return self._engine.batch

    @property
    def totals(self) -> tuple[int, int]:
        """Solver steps so far, and robots in them together."""
        return self._engine.totals

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        """The chunk. RefusedError when there is none; cancelling frees its row in the batch."""
        try:
            return await asyncio.wrap_future(await self._submit(given, allowed_s))
        except ObservationError as error:
            raise RefusedError("observation", str(error)) from error
        except ExpiredError as error:
            raise RefusedError("deadline", str(error)) from error
        except ClosedError as error:
            raise RefusedError(
                "unavailable", "the replica is ending; try again in a moment", 0.1
            ) from error
        except GwpError as error:
            raise RefusedError("policy", str(error)) from error
        except Exception as error:
            log.exception("the policy failed on one observation")
            raise RefusedError(
                "internal", "the policy failed on this observation; see the log of the replica"
            ) from error

    def check_health(self) -> None:
        """Raises after repeated failures (a broken device), or when no tick ends or begins."""
        if not self._engine.alive:
            raise RuntimeError("the engine has ended")
        if self._engine.failures >= MAX_FAILURES:
            raise RuntimeError(f"the last {self._engine.failures} observations failed")
        if self._engine.busy_for > self._stuck_after_s:
            raise RuntimeError(f"one step takes longer than {self._stuck_after_s:g} s")

    def close(self) -> None:
        """End the engine; who waits is told."""
        self._engine.close()

    async def _submit(self, given: ComposedObservation, allowed_s: float) -> "Future[ActionChunk]":
        prompt = given.observation.prompt
        if self._engine.policy.text.knows(prompt):
            # Numbers of a state and a copy of a canvas: less than the way to a thread.
            return self._engine.submit(given, allowed_s)
        # A new instruction is encoded first, which may take a while. The thread cannot be
        # cancelled; what it submits after all is cancelled then.
        submission = asyncio.ensure_future(asyncio.to_thread(self._engine.submit, given, allowed_s))
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(_cancel_submitted)
            raise


def _cancel_submitted(submission: "asyncio.Future[Future[ActionChunk]]") -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()

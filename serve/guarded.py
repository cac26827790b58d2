"""The engine behind asyncio: refusals as values, and a broken or hanging device noticed."""

import asyncio
import logging
from concurrent.futures import Future

from gwp.errors import ClosedError, ExpiredError, GwpError, ObservationError
from gwp.policy.batching.engine import Engine
from gwp.protocol.messages import ActionChunk, Observation
from serve.dispatch import Refusal

log = logging.getLogger("ray.serve")

# One failure may be the observation's; so many in a row are the device's.
MAX_FAILURES = 3


class GuardedEngine:
    """An `Engine` for one event loop; the replica makes and asks it.

    stuck_after_s: a tick of the engine that takes longer counts as never ending, seconds
    """

    def __init__(self, engine: Engine, stuck_after_s: float) -> None:
        self._engine = engine
        self._stuck_after_s = stuck_after_s

    async def act(self, observation: Observation) -> ActionChunk | Refusal:
        """The chunk, or the reason why there is none.

        Cancelling frees the observation's row in the batch.
        """
        # As values: an exception would cross to the gateway inside one of Ray's.
        try:
            return await asyncio.wrap_future(await self._submit(observation))
        except ObservationError as error:
            return Refusal("observation", str(error))
        except ExpiredError as error:
            return Refusal("deadline", str(error))
        except ClosedError:
            return Refusal("unavailable", "the replica is ending; try again in a moment")
        except GwpError as error:
            return Refusal("policy", str(error))
        except Exception:
            log.exception("the policy failed on one observation")
            return Refusal(
                "internal", "the policy failed on this observation; see the log of the replica"
            )

    def check_health(self) -> None:
        """Raises after repeated failures (a broken device), or when no tick ends or begins."""
        if not self._engine.alive:
            raise RuntimeError("the engine has ended")
        if self._engine.failures >= MAX_FAILURES:
            raise RuntimeError(f"the last {self._engine.failures} observations failed")
        if self._engine.busy_for > self._stuck_after_s:
            raise RuntimeError(f"one step takes longer than {self._stuck_after_s:g} s")

    async def _submit(self, observation: Observation) -> "Future[ActionChunk]":
        # Composing the canvas takes milliseconds: health checks and other requests have to be
        # answered meanwhile. The thread cannot be cancelled; what it submits after all is
        # cancelled then.
        submission = asyncio.ensure_future(asyncio.to_thread(self._engine.submit, observation))
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(_cancel_submitted)
            raise


def _cancel_submitted(submission: "asyncio.Future[Future[ActionChunk]]") -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()

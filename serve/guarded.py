"""The engine behind asyncio: refusals as values, and a broken or hanging device noticed."""

import asyncio
import logging

from gwp.errors import GwpError, ObservationError
from gwp.policy.engine.engine import Engine, ExpiredError
from gwp.protocol.messages import ActionChunk, Observation
from serve.dispatch import Refusal

log = logging.getLogger("ray.serve")

MAX_FAILURES = 3


class GuardedEngine:
    """For one event loop.

    stuck_after_s: a tick of the engine that takes longer counts as never ending, seconds
    """

    def __init__(self, engine: Engine, stuck_after_s: float) -> None:
        self._engine, self._stuck_after_s = engine, stuck_after_s

    async def act(self, observation: Observation) -> ActionChunk | Refusal:
        """The chunk, or the reason why there is none. Cancelling frees the observation's place
        in the batch.
        """
        try:
            # Composing the canvas takes milliseconds: health checks and other requests have to
            # be answered meanwhile.
            future = await asyncio.to_thread(self._engine.submit, observation)
            return await asyncio.wrap_future(future)
        except ObservationError as error:
            return Refusal("observation", str(error))
        except ExpiredError as error:
            return Refusal("deadline", str(error))
        except GwpError as error:
            return Refusal("policy", str(error))
        except Exception:
            log.exception("the policy failed on one observation")
            return Refusal(
                "internal", "the policy failed on this observation; see the log of the replica"
            )

    def check_health(self) -> None:
        """Raises after repeated failures (a broken device) or when a tick never ends."""
        if self._engine.failures >= MAX_FAILURES:
            raise RuntimeError(f"the last {self._engine.failures} observations failed")
        if self._engine.busy_for > self._stuck_after_s:
            raise RuntimeError(f"one step takes longer than {self._stuck_after_s:g} s")

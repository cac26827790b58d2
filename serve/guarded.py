"""A policy that many robots share: one bad observation costs nobody else, and a broken device is noticed."""

import logging
import time

from gwp.errors import GwpError, ObservationError
from gwp.policy.policy import Policy
from gwp.protocol.messages import ActionChunk, Observation
from serve.dispatch import Refusal

log = logging.getLogger("ray.serve")

MAX_FAILURES = 3


class GuardedPolicy:
    """Computes batches in whatever thread it is called from, one batch at a time.

    stuck_after_s: a batch that takes longer counts as never ending, seconds
    """

    def __init__(self, policy: Policy, stuck_after_s: float) -> None:
        self._policy, self._stuck_after_s = policy, stuck_after_s
        self._failures = 0
        self._busy_since: float | None = None

    def act_batch(self, observations: list[Observation]) -> list[ActionChunk | Refusal]:
        """One chunk, or the reason why there is none, per observation."""
        self._busy_since = time.monotonic()
        try:
            return self._compute(observations)
        finally:
            self._busy_since = None

    def check_health(self) -> None:
        """Raises after repeated failures (a broken device) or when a batch never ends."""
        if self._failures >= MAX_FAILURES:
            raise RuntimeError(f"the last {self._failures} observations failed")
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._stuck_after_s:
            raise RuntimeError(f"one batch takes longer than {self._stuck_after_s:g} s")

    def _compute(self, observations: list[Observation]) -> list[ActionChunk | Refusal]:
        try:
            chunks: list[ActionChunk | Refusal] = list(self._policy.act_batch(observations))
        except Exception as error:  # noqa: BLE001 - whatever it was, the others of the batch must not pay for it
            if len(observations) > 1:
                return [self._compute([observation])[0] for observation in observations]
            return [self._refusal(error)]
        self._failures = 0
        return chunks

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, GwpError):
            return Refusal("observation" if isinstance(error, ObservationError) else "policy", str(error))
        self._failures += 1
        log.exception("the policy failed on one observation", exc_info=error)
        return Refusal("internal", "the policy failed on this observation; see the log of the replica")

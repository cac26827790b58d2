"""One copy of the model on Ray Serve: batches observations and computes them off the event loop."""

import asyncio
import logging
import time
from typing import Any

from ray import serve

from gwp.errors import GwpError, ObservationError
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import ActionChunk, Observation
from serve.config import ServeApp
from serve.dispatch import Refusal
from serve.warmup import observation_for

log = logging.getLogger("ray.serve")

_MAX_FAILURES = 3


@serve.deployment
class Replica:
    """Holds a `gwp.Policy` loaded from an immutable URI.

    uri:      the bundle, as resolved when the endpoint was deployed
    expected: the contract that the gateways announce; another bundle at the same URI is refused
    """

    def __init__(self, uri: str, expected: dict[str, Any], config: dict[str, Any]) -> None:
        import torch

        from gwp.policy.policy import Policy

        settings = ServeApp.model_validate(config)
        torch.set_num_threads(settings.replica.torch_threads)
        device = "cuda" if settings.replica.gpus else "cpu"
        self._policy = Policy.load(uri, device, getattr(torch, settings.replica.dtype))
        contract = PolicyContract.model_validate(expected)
        if self._policy.id != contract.policy_id:
            raise GwpError(f"{uri}: holds policy {self._policy.id}, {contract.policy_id} was deployed; deploy again")
        self._stuck_after_s = 5 * settings.limits.request_timeout_s
        self._failures = 0
        self._busy_since: float | None = None
        self._act_together.set_max_batch_size(settings.batch.max_size)
        self._act_together.set_batch_wait_timeout_s(settings.batch.wait_ms / 1e3)
        # A policy that cannot act must never take traffic, and the first robot must not pay for lazy start-up.
        for embodiment in contract.embodiments.values():
            self._policy.act(observation_for(embodiment))

    async def act(self, observation: Observation) -> ActionChunk | Refusal:
        """The chunk for one admitted observation, computed with others that arrive at the same time."""
        result: ActionChunk | Refusal = await self._act_together(observation)
        return result

    @serve.batch
    async def _act_together(self, observations: list[Observation]) -> list[ActionChunk | Refusal]:
        self._busy_since = time.monotonic()
        try:
            # In a thread: health checks and further requests have to be answered meanwhile.
            return await asyncio.to_thread(self._compute, observations)
        finally:
            self._busy_since = None

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

    def check_health(self) -> None:
        """Raises, so that Serve replaces this replica, after repeated failures (a broken device) or a batch that never ends."""
        if self._failures >= _MAX_FAILURES:
            raise RuntimeError(f"the last {self._failures} observations failed")
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._stuck_after_s:
            raise RuntimeError(f"one batch takes longer than {self._stuck_after_s:g} s")

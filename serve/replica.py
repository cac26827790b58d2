"""One copy of the model on Ray Serve: batches observations and computes them off the event loop."""

import asyncio
from typing import Any

from ray import serve

from gwp.errors import GwpError
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import ActionChunk, Observation
from serve.config import ServeApp
from serve.dispatch import Refusal
from serve.warmup import observation_for


@serve.deployment
class Replica:
    """Holds a `gwp.Policy` loaded from an immutable URI.

    uri:      the bundle, as resolved when the endpoint was deployed
    expected: the contract that the gateways announce; another bundle at the same URI is refused
    """

    def __init__(self, uri: str, expected: dict[str, Any], config: dict[str, Any]) -> None:
        import torch

        from gwp.policy.policy import Policy
        from serve.guarded import GuardedPolicy

        settings = ServeApp.model_validate(config)
        torch.set_num_threads(settings.replica.torch_threads)
        policy = Policy.load(uri, "cuda" if settings.replica.gpus else "cpu", getattr(torch, settings.replica.dtype))
        contract = PolicyContract.model_validate(expected)
        if policy.id != contract.policy_id:
            raise GwpError(f"{uri}: holds policy {policy.id}, {contract.policy_id} was deployed; deploy again")
        # A policy that cannot act must never take traffic, and the first robot must not pay for lazy start-up.
        for embodiment in contract.embodiments.values():
            policy.act(observation_for(embodiment))
        self._policy = GuardedPolicy(policy, stuck_after_s=5 * settings.limits.request_timeout_s)
        self._act_together.set_max_batch_size(settings.batch.max_size)
        self._act_together.set_batch_wait_timeout_s(settings.batch.wait_ms / 1e3)

    async def act(self, observation: Observation) -> ActionChunk | Refusal:
        """The chunk for one admitted observation, computed with others that arrive at the same time."""
        result: ActionChunk | Refusal = await self._act_together(observation)
        return result

    @serve.batch
    async def _act_together(self, observations: list[Observation]) -> list[ActionChunk | Refusal]:
        # In a thread: health checks and further requests have to be answered meanwhile.
        return await asyncio.to_thread(self._policy.act_batch, observations)

    def check_health(self) -> None:
        """Raises, so that Serve replaces this replica, when the model no longer works."""
        self._policy.check_health()

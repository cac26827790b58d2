"""One copy of the model on Ray Serve: the engine steps all its robots together, off the event
loop.
"""

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

        from gwp.policy.engine.engine import Engine
        from gwp.policy.policy import Policy
        from gwp.threads import apart
        from serve.guarded import GuardedEngine

        settings = ServeApp.model_validate(config)
        torch.set_num_threads(settings.replica.torch_threads)
        device, dtype = (
            "cuda" if settings.replica.gpus else "cpu",
            getattr(torch, settings.replica.dtype),
        )
        policy = apart(lambda: Policy.load(uri, device, dtype, settings.replica.steps))
        contract = PolicyContract.model_validate(expected)
        if policy.id != contract.policy_id:
            raise GwpError(
                f"{uri}: holds policy {policy.id}, {contract.policy_id} was deployed; deploy again"
            )
        engine = Engine(policy, settings.engine)
        # A policy that cannot act must never take traffic, and the first robot must not pay for
        # lazy start-up.
        engine.warm_up(
            [observation_for(embodiment) for embodiment in contract.embodiments.values()]
        )
        self._engine = GuardedEngine(engine, stuck_after_s=5 * settings.limits.request_timeout_s)

    async def act(self, observation: Observation) -> ActionChunk | Refusal:
        """The chunk for one admitted observation, stepped together with those of other robots."""
        return await self._engine.act(observation)

    def check_health(self) -> None:
        """Raises, so that Serve replaces this replica, when the model no longer works."""
        self._engine.check_health()

"""One copy of the model on Ray Serve: continuous batching of all its robots, off the event
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
    """Holds a `gwp.Policy` from an immutable URI. Gateways ask it, through a handle of Serve.

    uri:      the bundle, as resolved when the endpoint was deployed
    expected: the contract that the gateways announce; another bundle at the same URI is refused
    """

    def __init__(self, uri: str, expected: dict[str, Any], config: dict[str, Any]) -> None:
        # The gateway and the command line import this module too, and need no torch.
        import torch

        from gwp.policy import Engine, Policy
        from gwp.threads import apart
        from serve.guarded import GuardedEngine

        app = ServeApp.model_validate(config)
        torch.set_num_threads(app.replica.torch_threads)
        device = "cuda" if app.replica.gpus else "cpu"
        dtype = getattr(torch, app.replica.dtype)
        policy = apart(lambda: Policy.load(uri, device, dtype, app.replica.steps))

        # Gateways have checked observations against the contract that they announce.
        contract = PolicyContract.model_validate(expected)
        if policy.id != contract.policy_id:
            raise GwpError(
                f"{uri}: holds policy {policy.id}, {contract.policy_id} was deployed; deploy again"
            )

        engine = Engine(policy, app.engine)
        try:
            # A policy that cannot act must never take traffic, and the first robot must not pay
            # for lazy start-up.
            engine.warm_up([observation_for(robot) for robot in contract.embodiments.values()])
        except BaseException:
            engine.close()
            raise
        # Robots have given up long before.
        self._engine = GuardedEngine(engine, stuck_after_s=5 * app.limits.request_timeout_s)

    async def act(self, observation: Observation) -> ActionChunk | Refusal:
        """The chunk for one admitted observation, stepped together with those of other robots."""
        return await self._engine.act(observation)

    def check_health(self) -> None:
        """Raises, so that Serve replaces this replica, when the model no longer works."""
        self._engine.check_health()

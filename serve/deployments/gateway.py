"""The process that robots connect to, where it is not that of the model: access, decoding and
checks here, the model elsewhere.
"""

import asyncio
import time
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from gwp.policy.contract import PolicyContract
from serve.config import ServeApp
from serve.deployments.directory import ANSWER_S, ASK_S, Repeated
from serve.endpoint import Endpoint
from serve.identity import Identity
from serve.link.pool import ReplicaPool
from serve.loop import LoopThread
from serve.metrics import meter_of


@serve.deployment
class Gateway:
    """Begins to listen once a replica of its policy can answer.

    contract, identity, config: as plain maps, as `serve.app` binds them
    replica:   requests do not go through Serve's handle, but over links
    token:     the secret of the application's links
    directory: knows where replicas are
    """

    def __init__(
        self,
        contract: dict[str, Any],
        identity: dict[str, Any],
        config: dict[str, Any],
        token: str,
        replica: "DeploymentHandle[Any]",  # noqa: ARG002  named so that Serve deploys it
        directory: "DeploymentHandle[Any]",
    ) -> None:
        app = ServeApp.model_validate(config)
        checked = PolicyContract.model_validate(contract)
        self._policy_id = checked.policy_id
        self._directory = directory
        self._thread = LoopThread("gwp-loop")
        self._pool = ReplicaPool(token, window=2 * app.engine.slots, queue=app.limits.queue)
        self._looking = Repeated(self._look, ASK_S)
        # Serve calls this gateway ready when this returns, and ends those before it then.
        while not self._pool.ready:
            time.sleep(ASK_S / 5)
        who = Identity.model_validate(identity)
        self._meter = meter_of(app.name, who)
        self._endpoint = Endpoint(self._pool, checked, who, app, self._thread, self._meter)

    def check_health(self) -> None:
        """Raises, so that Serve replaces this gateway, when it no longer listens."""
        if not self._endpoint.alive:
            raise RuntimeError("the gateway has ended")

    async def __del__(self) -> None:
        """Serve ends this gateway: robots get their answers, and are told to come back."""
        self._looking.stop()
        await asyncio.wrap_future(self._thread.start(self._endpoint.close()))
        await asyncio.wrap_future(self._thread.start(self._pool.close()))
        self._meter.close()
        self._thread.close()

    def _look(self) -> None:
        found = self._directory.where.remote(self._policy_id).result(timeout_s=ANSWER_S)
        self._thread.loop.call_soon_threadsafe(self._pool.found, found)

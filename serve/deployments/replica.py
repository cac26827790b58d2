"""One copy of the model on Ray Serve: continuous batching of all its robots, off the event
loop.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from gwp.errors import GwpError
from gwp.policy.contract import PolicyContract
from serve.config import ServeApp
from serve.deployments.directory import ANSWER_S, SAY_S, UNANSWERED, Repeated
from serve.deployments.scaling import LOAD
from serve.endpoint import Endpoint
from serve.identity import Identity
from serve.loop import LoopThread
from serve.metrics import meter_of, watch_replica
from serve.warmup import observation_for

if TYPE_CHECKING:
    from serve.guarded import GuardedEngine
    from serve.link.server import LinkServer

_BEGIN_S = 30.0


@serve.deployment
class Replica:
    """Holds a `gwp.Policy` from an immutable URI. Gateways reach it over a link of their own; with
    `gateway: inline` robots talk to it themselves.

    uri:       the bundle, as resolved when the endpoint was deployed
    expected:  the contract that is announced to robots; another bundle at the same URI is refused
    identity, config: `Identity` and `ServeApp` as plain maps
    token:     the secret of the application's links
    directory: where gateways look for it; None: it is inline
    """

    def __init__(
        self,
        uri: str,
        expected: dict[str, Any],
        identity: dict[str, Any],
        config: dict[str, Any],
        token: str,
        directory: "DeploymentHandle[Any] | None",
    ) -> None:
        self._config = app = ServeApp.model_validate(config)
        contract = PolicyContract.model_validate(expected)
        self._engine = _load(uri, contract, app)
        self._directory = directory
        self._policy_id = contract.policy_id
        self._thread = LoopThread("gwp-loop")
        self._saying: Repeated | None = None
        who = Identity.model_validate(identity)
        self._meter = meter_of(app.name, who)
        engine = self._engine
        watch_replica(self._meter, lambda: engine.load, lambda: engine.totals)
        if directory is None:
            self._endpoint: Endpoint | None = Endpoint(
                self._engine, contract, who, app, self._thread, self._meter
            )
            self._links: LinkServer | None = None
            return
        self._endpoint = None
        self._links = _links(self._engine, token)
        host = _own_address()
        port = self._thread.run(self._links.listen(host), _BEGIN_S)
        self._address = f"{host}:{port}"
        self._saying = Repeated(self._say, SAY_S)

    def check_health(self) -> None:
        """Raises, so that Serve replaces this replica, when the model no longer works."""
        self._engine.check_health()
        if not self._thread.alive or (self._endpoint and not self._endpoint.alive):
            raise RuntimeError("the endpoint has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve's autoscaler, which cannot count what does not pass through it."""
        return {LOAD: self._links.load if self._links else float(self._engine.load)}

    async def __del__(self) -> None:
        """Serve ends this replica: whoever is being computed gets an answer."""
        if self._saying:
            self._saying.stop()
        if self._endpoint:
            await asyncio.wrap_future(self._thread.start(self._endpoint.close()))
        else:
            with contextlib.suppress(*UNANSWERED):
                await self._directory.leave.remote(self._address)  # type: ignore[union-attr]
            assert self._links
            leaving = self._links.leave(self._config.limits.drain_s)
            await asyncio.wrap_future(self._thread.start(leaving))
        self._engine.close()
        self._meter.close()
        self._thread.close()

    def _say(self) -> None:
        assert self._directory is not None
        self._directory.say.remote(self._address, self._policy_id).result(timeout_s=ANSWER_S)


def _load(uri: str, contract: PolicyContract, app: ServeApp) -> "GuardedEngine":
    """The policy, warm. Raises what is wrong with it."""
    # The gateway and the command line import this module too, and need no torch.
    import torch

    from gwp.policy import Engine, Policy
    from gwp.threads import apart
    from serve.guarded import GuardedEngine

    torch.set_num_threads(app.replica.torch_threads)
    device = "cuda" if app.replica.gpus else "cpu"
    dtype = getattr(torch, app.replica.dtype)
    policy = apart(lambda: Policy.load(uri, device, dtype, app.replica.steps, app.guard))
    # Gateways check observations against the contract that they announce.
    if policy.id != contract.policy_id:
        raise GwpError(
            f"{uri}: holds policy {policy.id}, {contract.policy_id} was deployed; deploy again"
        )
    engine = Engine(policy, app.engine)
    try:
        # A policy that cannot act must never take traffic, and the first robot must not pay for
        # lazy start-up.
        engine.warm_up([observation_for(robot) for robot in contract.embodiments.values()])
    except BaseException:
        engine.close()
        raise
    # Robots have given up long before.
    return GuardedEngine(engine, stuck_after_s=5 * app.limits.request_timeout_s)


def _links(engine: "GuardedEngine", token: str) -> "LinkServer":
    # As above: it knows the engine.
    from serve.link.server import LinkServer

    return LinkServer(engine, token)


def _own_address() -> str:
    """Of this node, where other nodes reach it."""
    own = ray.get_runtime_context().get_node_id()
    return next(str(n["NodeManagerAddress"]) for n in ray.nodes() if n["NodeID"] == own)

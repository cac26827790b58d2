"""The Ray Serve application of one `ServeApp`: autoscaled replicas, with gateways in front or with
doors of their own.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast
from urllib.error import URLError
from urllib.request import urlopen

from ray import serve
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ReplicaState

from gwp import storage
from gwp.errors import GwpError
from gwp.policy.contract import PolicyContract
from gwp.policy.locate import locate
from serve.config import ServeApp
from serve.deployments.directory import Directory
from serve.deployments.gateway import Gateway
from serve.deployments.replica import Replica
from serve.identity import Identity

# After Serve calls them running, gateways listen.
_ANSWER_S = 30.0

# What the decorator makes of a class, which type checkers do not see.
_REPLICA = cast("serve.Deployment", Replica)
_GATEWAY = cast("serve.Deployment", Gateway)
_DIRECTORY = cast("serve.Deployment", Directory)

_ENDING_S = 10.0
"""Beyond draining, before a process is ended that does not end."""
_HEALTH_S = 2.0


def build_app(config: ServeApp) -> Application:
    """The application of `config`.

    An alias in `policy` is resolved here, once: every replica loads the same bundle.

    Raises GwpError or BundleError when the policy cannot be found or is no bundle.
    """
    uri, registered = locate(config.policy)
    # Replicas have working directories of their own.
    uri = uri if storage.is_remote(uri) else os.path.abspath(uri.removeprefix("file://"))
    # Wrong bundles are found here, before anything on the cluster is touched.
    contract = PolicyContract.read(uri).guarded(config.guard)
    registered_id = registered.get("policy_id", contract.policy_id)
    if registered_id != contract.policy_id:
        raise GwpError(
            f"{config.policy}: registered as policy {registered_id}, {uri} holds "
            f"{contract.policy_id}; promote it again"
        )
    identity = Identity(
        policy_id=contract.policy_id,
        policy_version=registered.get("version", ""),
        policy_alias=registered.get("alias", ""),
        run_id=registered.get("run_id", ""),
    )
    # As plain maps, which the processes they travel to check anew.
    shared = {
        "identity": identity.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "token": secrets.token_hex(16),
    }
    expected = contract.model_dump(mode="json")
    separate = config.separate
    directory = _DIRECTORY.bind() if separate else None
    replica = _REPLICA.options(
        ray_actor_options=_process(config.replica.cpus, config.replica.pool, config.replica.gpus),
        autoscaling_config=config.autoscaling_options(),
        # A bundle that does not load will not load the twentieth time either.
        max_constructor_retry_count=3,
        max_surge_percent=config.replica.surge_percent,
        # Whoever is being computed gets an answer.
        graceful_shutdown_timeout_s=config.limits.drain_s + _ENDING_S,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_ENDING_S,
    ).bind(uri, expected, directory=directory, **shared)
    if separate is None:
        return replica
    return _GATEWAY.options(
        num_replicas=separate.replicas,
        ray_actor_options=_process(separate.cpus, separate.pool),
        graceful_shutdown_timeout_s=config.limits.drain_s + _ENDING_S,
        # Gateways cost next to nothing: the new ones listen before the old ones go.
        max_surge_percent=100,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_ENDING_S,
    ).bind(expected, replica=replica, directory=directory, **shared)


def build(args: dict[str, Any]) -> Application:
    """Entry point for `serve deploy` (`serve.app:build`). args: the fields of `ServeApp`."""
    return build_app(ServeApp.model_validate(args))


def render(config: ServeApp) -> dict[str, Any]:
    """The configuration file of Ray Serve for `config`: `serve deploy`, `serveConfigV2`."""
    return {
        # Robots talk to gateways themselves: no proxy stands between.
        "proxy_location": "Disabled",
        "applications": [
            {
                "name": config.name,
                "route_prefix": None,
                "import_path": "serve.app:build",
                "args": config.model_dump(mode="json", exclude_defaults=True),
            }
        ],
    }


def deploy(config: ServeApp, told: Callable[[str], object] = lambda _: None) -> str:
    """Deploy on the connected Ray cluster; once the policy answers, return its `ws://...`
    address. told: given what it waits for, in a line, when that takes half a minute or changes

    Deploying again under the same name is a rolling update; when the new version does not
    start, the old one goes on. Raises GwpError when the replicas do not come up within
    `start_timeout_s`, with their reason, or when something else listens on the port.
    """
    app = build_app(config)
    _refuse_foreign(config)
    # Robots talk to gateways themselves: no proxy stands between.
    serve.start(proxy_location="Disabled")
    # Waited for below: up to a limit, and with the reason when it fails.
    serve.run_many(
        [serve.RunTarget(app, name=config.name, route_prefix=None)],
        wait_for_applications_running=False,
    )
    _await_running(config.name, config.start_timeout_s, told)
    _await_answer(f"http://{_address(config)}/readyz")
    return f"ws://{_address(config)}/"


class ReplicaCounts(NamedTuple):
    """Copies of the policy: `running` ones answer, `starting` ones were asked for and load."""

    running: int
    starting: int


def replica_states(app_name: str) -> ReplicaCounts:
    """Replicas of the policy now; zeros when the application is not there."""
    app = serve.status().applications.get(app_name)
    deployment = app.deployments.get(_REPLICA.name) if app else None
    states = deployment.replica_states if deployment else {}
    return ReplicaCounts(states.get(ReplicaState.RUNNING, 0), states.get(ReplicaState.STARTING, 0))


def replica_counts(app_name: str) -> int:
    """Replicas of the policy that run now; 0 when the application is not there."""
    return replica_states(app_name).running


def _process(cpus: float, pool: str | None, gpus: float = 0) -> dict[str, Any]:
    """Resources and environment of one process that answers robots."""
    label = {"label_selector": {"gwp/pool": pool}} if pool else {}
    # Ray gives its processes niceness 15, but only once they have started: whatever starts on the
    # same cores, such as the next version, would leave those that answer a thirtieth of them.
    environment = {"env_vars": {"RAY_worker_niceness": "0"}}
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": environment} | label


def _await_running(app_name: str, timeout_s: float, told: Callable[[str], object]) -> None:
    deadline = time.monotonic() + timeout_s
    known = ""
    while True:
        app = serve.status().applications.get(app_name)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return
        if app is not None and app.status == ApplicationStatus.DEPLOY_FAILED:
            reason = _reason(app_name) or app.message
            raise GwpError(f"{app_name}: the policy did not start: {reason}")
        if time.monotonic() > deadline:
            reason = _reason(app_name) or "still loading"
            raise GwpError(
                f"{app_name}: not ready after {timeout_s:g} s: {reason}; see start_timeout_s"
            )
        reason = _reason(app_name)
        if reason and reason != known:
            known = reason
            told(reason)
        time.sleep(0.2)


def _reason(app_name: str) -> str:
    """The last line of what Serve reports about deployments that did not start."""
    app = serve.status().applications.get(app_name)
    for deployment in app.deployments.values() if app else ():
        lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
        if deployment.status.value != "HEALTHY" and lines:
            return lines[-1]
    return ""


def _asked_at(config: ServeApp) -> str:
    """The host for whoever asks from here."""
    # An address that stands for all is none to ask at.
    anywhere = config.host in ("0.0.0.0", "::")  # noqa: S104 - an address to compare with
    return "127.0.0.1" if anywhere else config.host


def _address(config: ServeApp) -> str:
    """`host:port` of a URL for whoever asks from here."""
    host = _asked_at(config)
    return f"[{host}]:{config.port}" if ":" in host else f"{host}:{config.port}"


def _refuse_foreign(config: ServeApp) -> None:
    """GwpError when something else listens on the port already."""
    with contextlib.suppress(RayServeException):
        # Itself, which is to be replaced; raised where no Serve runs yet.
        if config.name in serve.status().applications:
            return
    with (
        contextlib.suppress(OSError),
        socket.create_connection((_asked_at(config), config.port), timeout=1),
    ):
        raise GwpError(
            f"something listens on {_address(config)} already; choose another port, or the name "
            "of the application that is to be replaced"
        )


def _await_answer(url: str) -> None:
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            with urlopen(url, timeout=2) as reply:  # noqa: S310 - an http address of our own
                if reply.status == 200:
                    return
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise GwpError(
                    f"{url} does not answer ({error}); gateways listen on the machines where they "
                    "run: set `host: 0.0.0.0` and `gateway.pool`, or ask there"
                ) from error
        time.sleep(0.05)

"""Every private interface of Ray that the clusters need, with the reason.

`tests/unit/clusters/test_compat.py` notices when one changes with an update.
"""

from typing import Any


def reread_access() -> None:
    """Let Ray look at `RAY_AUTH_*` again.

    Ray reads them once, at import, and has no public way to look again. It does the same in its
    own `ray.init`.
    """
    # Compiled, and its stub lacks them.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def drain(address: str, node_id: str, deadline_ms: int) -> None:
    """Tell Ray that a node is taken away at that time (milliseconds since the epoch).

    Autoscalers do so when a spot machine is called back. `ray drain-node` does it too, and is
    hidden and not covered by Ray's promises; these are its calls.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    # Made at run time, so type checkers do not see it.
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    taken, why = GcsClient(address=address).drain_node(node_id, reason, "taken back", deadline_ms)
    if not taken:
        raise RuntimeError(f"Ray does not drain {node_id}: {why}")


def server_version(client: Any) -> str:
    """Version of Ray that the cluster of a `JobSubmissionClient` runs.

    The client asks for it when it is made, and keeps the answer to itself.
    """
    return str(client._server_ray_version)

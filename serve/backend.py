"""What stands behind the doors: a model in this process, or replicas elsewhere."""

from typing import Protocol

from gwp.policy.composed import ComposedObservation
from gwp.protocol.messages import ActionChunk


class Backend(Protocol):
    """Where a `Dispatcher` gets chunks: `GuardedEngine` in the same process, `ReplicaPool` across
    the network.
    """

    @property
    def ready(self) -> bool:
        """Whether a chunk could be computed now."""

    @property
    def wait_s(self) -> float:
        """How long a request that came now would wait for its answer, as far as that is known,
        seconds; 0 where nobody waits or is computed.
        """

    @property
    def batch(self) -> float:
        """Robots computed together, on average."""

    async def act(self, given: ComposedObservation, allowed_s: float) -> ActionChunk:
        """The chunk. RefusedError when there is none within `allowed_s` seconds; cancelling frees
        its place.
        """

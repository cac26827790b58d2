"""Where the replicas of an application are: they say so once a second, gateways ask."""

import logging
import threading
import time
from collections.abc import Callable

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

SAY_S = 1.0
"""How often a replica says where it is."""
ASK_S = 0.25
"""How often a gateway asks."""
_KEPT_S = 5.0
"""Who has not said so for so long is gone."""


log = logging.getLogger("ray.serve")
ANSWER_S = 2.0
"""How long the directory is waited for."""
UNANSWERED = (RayError, RayServeException, OSError, TimeoutError)
"""What a directory that is lost looks like to those who ask it."""


@serve.deployment(
    num_replicas=1,
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=0,
)
class Directory:
    """A list that may be lost: a new one is whole again after a second, and gateways keep the
    connections that they have.
    """

    def __init__(self) -> None:
        # Address -> (policy id, when it was last said).
        self._known: dict[str, tuple[str, float]] = {}

    async def say(self, address: str, policy_id: str) -> None:
        """A replica of this policy listens at `host:port`."""
        self._known[address] = (policy_id, time.monotonic())

    async def leave(self, address: str) -> None:
        """It does not any more."""
        self._known.pop(address, None)

    async def where(self, policy_id: str) -> list[str]:
        """Addresses of all replicas of this policy."""
        now = time.monotonic()
        self._known = {a: e for a, e in self._known.items() if now - e[1] < _KEPT_S}
        return [address for address, (policy, _) in self._known.items() if policy == policy_id]


class Repeated:
    """Asks the directory something again and again, in a thread, from now until it is stopped. An
    answer that does not come changes nothing.
    """

    def __init__(self, ask: Callable[[], None], every_s: float) -> None:
        self._ask = ask
        self._every_s = every_s
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="gwp-directory", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._ask()
            except UNANSWERED as error:
                log.warning("the directory does not answer: %s", error)
            self._stopped.wait(self._every_s)

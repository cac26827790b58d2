"""From an admitted observation to a chunk: deadline, one retry, refusals that say what to do."""

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from gwp.errors import GwpError
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import ActionChunk, Observation
from serve.access import Access
from serve.config import ServeApp

_LOST = (
    RayActorError,
    ReplicaUnavailableError,
    WorkerCrashedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
)
"""What the loss of a replica, of its process or of its node looks like from here."""


@dataclass(frozen=True)
class Refusal:
    """Why a replica gave no chunk, as a value: it crosses processes as it is, unlike an
    exception.

    `GuardedEngine` makes it, the `Dispatcher` raises it as RefusedError with the same `code`.
    """

    code: str
    message: str


class RefusedError(GwpError):
    """A request that gets no chunk.

    code: observation, policy, protocol, busy, unavailable, deadline, access, internal
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self))


class Dispatcher:
    """What every door needs: the contract, who may come in, and the way to a replica.

    The gateway makes one; all doors share it.
    """

    def __init__(
        self, replica: "DeploymentHandle[Any]", contract: PolicyContract, config: ServeApp
    ) -> None:
        self.contract = contract
        self.access = Access(config.api_keys_env)
        self.max_bytes = int(config.limits.max_message_mb * 2**20)
        self._timeout_s = config.limits.request_timeout_s
        self._replica = replica

    async def act(self, observation: Observation) -> ActionChunk:
        """The chunk for an admitted observation, from whichever replica is free.

        A request lost with its replica is sent once more: it carries all that the answer depends
        on. Raises RefusedError when there is no chunk in time.
        """
        allowed_s = observation.deadline_s
        budget_s = self._timeout_s if allowed_s is None else min(allowed_s, self._timeout_s)
        # One budget for both tries: a robot waits no longer because a replica was lost.
        clock = asyncio.get_running_loop().time
        deadline = clock() + budget_s
        for last_try in (False, True):
            try:
                result = await self._ask(observation, max(0.0, deadline - clock()))
            except TimeoutError as error:
                # Without a deadline of its own a robot may well ask again: a lost replica takes
                # longer than one request.
                raise RefusedError(
                    "unavailable" if allowed_s is None else "deadline",
                    f"no chunk within {budget_s:g} s; add replicas or allow more time "
                    "(deadline_s, request_timeout_s)",
                ) from error
            except BackPressureError as error:
                raise RefusedError(
                    "busy", "all replicas are busy and the queue is full; try again in a moment"
                ) from error
            except DeploymentUnavailableError as error:
                raise RefusedError(
                    "unavailable", "the policy failed to start; see the log of the replicas"
                ) from error
            except TaskCancelledError as error:
                raise RefusedError(
                    "unavailable", "the request was dropped by the endpoint; try again in a moment"
                ) from error
            except _LOST as error:
                # The handle chooses a replica anew.
                if last_try:
                    raise RefusedError(
                        "unavailable", "the replica was lost twice; try again in a moment"
                    ) from error
                continue
            if isinstance(result, Refusal):
                raise RefusedError(result.code, result.message)
            return result
        raise AssertionError("unreachable")

    async def _ask(self, observation: Observation, timeout_s: float) -> ActionChunk | Refusal:
        """One try. Given up, for whatever reason, its work is cancelled too."""
        response = self._replica.act.remote(observation)
        try:
            return await asyncio.wait_for(_result(response), timeout_s)
        except TimeoutError:
            _cancel(response)
            raise
        except asyncio.CancelledError as error:
            _cancel(response)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # The robot hung up, or the gateway ends.
                raise
            # Serve gave the request up; the robot still waits for an answer.
            raise TaskCancelledError(error_message="given up by Serve") from error


async def _result(response: Awaitable[Any]) -> ActionChunk | Refusal:
    # wait_for wants a coroutine; a response of Serve is only awaitable.
    result: ActionChunk | Refusal = await response
    return result


def _cancel(response: Any) -> None:
    # Cancelling a request that ends at this moment raises what it ended with.
    with contextlib.suppress(Exception):
        response.cancel()

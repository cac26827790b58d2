"""From an admitted observation to a chunk: deadline, one retry, and refusals that say what to
do.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError
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


@dataclass(frozen=True)
class Refusal:
    """Why a replica gave no chunk, as a value: an exception would fail every observation of its
    batch.
    """

    code: str
    message: str


class RefusedError(GwpError):
    """A request that gets no chunk. `code`: observation, policy, protocol, busy, unavailable,
    deadline, access, internal.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Desk:
    """What every door needs: the contract, who may come in, and the way to a replica."""

    def __init__(
        self, replica: "DeploymentHandle[Any]", contract: PolicyContract, config: ServeApp
    ) -> None:
        self.contract = contract
        self.access = Access(config.api_keys_env)
        self.max_bytes = int(config.limits.max_message_mb * 2**20)
        self._timeout_s = config.limits.request_timeout_s
        self._replica = replica

    async def act(self, observation: Observation) -> ActionChunk:
        """The chunk for an admitted observation, from whichever replica is free. RefusedError
        when there is none in time.

        A request lost with its replica is sent once more: it carries everything that the answer
        depends on.
        """
        asked = observation.deadline_s
        budget = self._timeout_s if asked is None else min(asked, self._timeout_s)
        clock = asyncio.get_running_loop().time
        deadline = clock() + budget
        for last_try in (False, True):
            response = self._replica.act.remote(observation)
            try:
                result = await asyncio.wait_for(_result(response), max(0.0, deadline - clock()))
            except TimeoutError as error:
                response.cancel()
                why = (
                    f"no chunk within {budget:g} s; add replicas or allow more time "
                    "(deadline_s, request_timeout_s)"
                )
                # Without a deadline of its own a robot may well ask again: a lost replica takes
                # longer than one request.
                raise RefusedError("unavailable" if asked is None else "deadline", why) from error
            except BackPressureError as error:
                raise RefusedError(
                    "busy", "all replicas are busy and the queue is full; try again in a moment"
                ) from error
            except DeploymentUnavailableError as error:
                raise RefusedError(
                    "unavailable", "the policy failed to start; see the log of the replicas"
                ) from error
            except (RayActorError, ReplicaUnavailableError) as error:
                if last_try:
                    raise RefusedError(
                        "unavailable", "the replica was lost twice; try again in a moment"
                    ) from error
                continue
            if isinstance(result, Refusal):
                raise RefusedError(result.code, result.message)
            return result
        raise AssertionError("unreachable")


async def _result(response: Awaitable[Any]) -> ActionChunk | Refusal:
    # wait_for wants a coroutine; a response of Serve is only awaitable.
    result: ActionChunk | Refusal = await response
    return result

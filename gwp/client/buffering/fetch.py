"""Who asks for chunks: the control loop itself, or a thread beside it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from gwp.protocol.messages import ActionChunk, Observation

Act = Callable[[Observation], ActionChunk]


class Fetch(Protocol):
    """As an executor of `concurrent.futures`: starts one request."""

    def submit(self, act: Act, observation: Observation, /) -> "Future[ActionChunk]":
        """What will be the chunk."""


def _run(act: Act, observation: Observation, future: "Future[ActionChunk]") -> None:
    try:
        future.set_result(act(observation))
    except BaseException as error:  # noqa: BLE001 - raised in the control loop
        future.set_exception(error)


class Waiting:
    """Asks in the caller's thread, which waits."""

    def submit(self, act: Act, observation: Observation, /) -> "Future[ActionChunk]":
        """As `Fetch`; done already."""
        future: Future[ActionChunk] = Future()
        try:
            future.set_result(act(observation))
        except Exception as error:  # noqa: BLE001 - raised where the chunk is taken
            # Ctrl-C and the like are the caller's.
            future.set_exception(error)
        return future


class Beside:
    """Asks in a thread of its own: a request that hangs holds up neither the next one nor the end
    of the program.
    """

    def submit(self, act: Act, observation: Observation, /) -> "Future[ActionChunk]":
        """As `Fetch`."""
        future: Future[ActionChunk] = Future()
        threading.Thread(
            target=_run, args=(act, observation, future), name="gwp-chunk", daemon=True
        ).start()
        return future

"""What robots talk to, in one process: the doors on a port, in front of a backend."""

import asyncio

from gwp.metrics.meter import Meter
from gwp.policy.contract import PolicyContract
from serve.backend import Backend
from serve.config import ServeApp
from serve.desk.dispatch import Dispatcher
from serve.doors.web import build_routes
from serve.identity import Identity
from serve.listener import Listener
from serve.loop import LoopThread

_DRAINED_S = 0.02


class Endpoint:
    """Listens from the start on, until it is closed. A gateway has one, and so has a replica that
    robots talk to without one.

    Raises GwpError when the port cannot be had, or the keys are not set.
    """

    def __init__(
        self,
        backend: Backend,
        contract: PolicyContract,
        identity: Identity,
        config: ServeApp,
        thread: LoopThread,
        meter: Meter | None = None,
    ) -> None:
        """meter: what is told of answers; None: nothing"""
        self._thread = thread
        self._drain_s = config.limits.drain_s
        self._dispatcher = Dispatcher(backend, contract, identity, config, meter)
        self._listener = Listener(
            build_routes(self._dispatcher),
            config.host,
            config.port,
            thread,
            max_bytes=self._dispatcher.max_bytes,
            uploads=self._dispatcher.uploads,
        )
        self._listener.await_started()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.port

    @property
    def alive(self) -> bool:
        """Whether it listens and its loop runs."""
        return self._thread.alive and self._listener.alive

    @property
    def robots(self) -> int:
        """Open websockets."""
        return self._dispatcher.sockets

    async def close(self) -> None:
        """Take no more robots; those who are here get the answer they wait for, and are told to
        come back elsewhere; then end. Runs in the loop of the thread.
        """
        await self._listener.refuse_new()
        self._dispatcher.draining.set()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_s
        while not self._dispatcher.empty and loop.time() < end:
            await asyncio.sleep(_DRAINED_S)
        await self._listener.end()
        self._dispatcher.close()

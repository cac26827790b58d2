"""The client for programs that are asynchronous themselves."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from gwp.client.connection.health import is_healthy
from gwp.client.connection.link import Link, Proxy
from gwp.client.connection.session import Episode, Session
from gwp.client.connection.steps import LinkLostError, Look, Pause, Step, Steps
from gwp.client.connection.wire import ClientError
from gwp.client.profile import Profile
from gwp.protocol.messages import ActionChunk, Observation


class AsyncClient:
    """As `Client`, awaited. Parameters are the same; the first call, or `async with`, connects.

    Tasks that share one take turns. A call that is cancelled gives its connection up, so that its
    answer meets no other request.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        embodiment: str | None = None,
        expect: Mapping[str, Any] | None = None,
        timeout_s: float = 30.0,
        reply_timeout_s: float = 10.0,
        max_age_s: float | None = None,
        proxy: Proxy = None,
    ) -> None:
        self._session = Session(
            url,
            api_key=api_key,
            embodiment=embodiment,
            expect=expect,
            timeout_s=timeout_s,
            reply_timeout_s=reply_timeout_s,
            max_age_s=max_age_s,
        )
        self._proxy = proxy
        self._link = Link(self._session.url, proxy)
        self._session.is_open = lambda: self._link.is_open
        self._lock = asyncio.Lock()

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        return self._session.url

    @property
    def metadata(self) -> dict[str, Any]:
        """As of `Client`; empty before the first connection."""
        return self._session.metadata

    @property
    def clock_offset_s(self) -> float:
        """As of `Client`."""
        return self._session.clock.offset_s

    async def connect(self) -> None:
        """Connect now: a wrong address, key or robot is found before the robot moves."""
        await self._drive(self._session.connect())

    async def act(
        self,
        observation: Observation | Callable[[], Observation | Awaitable[Observation]],
        *,
        max_age_s: float | None = None,
        timeout_s: float | None = None,
    ) -> ActionChunk:
        """As of `Client`; a function that observes may be asynchronous."""
        chunk: ActionChunk = await self._drive(self._session.act(observation, max_age_s, timeout_s))
        return chunk

    def episode(self, name: str = "") -> Episode:
        """As of `Client`."""
        return self._session.episode(name)

    def describe(self, embodiment: str | None = None) -> Profile:
        """As of `Client`."""
        return Profile.of(self.metadata, embodiment or self._session.embodiment)

    async def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """As of `Client`."""
        reply: dict[str, Any] = await self._drive(self._session.infer(dict(obs)))
        return reply

    async def healthz(self) -> bool:
        """As of `Client`."""
        wait = self._session.reply_timeout_s
        return await asyncio.to_thread(is_healthy, self.url, wait, self._proxy)

    async def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        await self._link.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _drive(self, steps: Steps) -> Any:
        await self._turn()
        try:
            result: Any = None
            lost: LinkLostError | ClientError | None = None
            while True:
                try:
                    step = steps.send(result) if lost is None else steps.throw(lost)
                except StopIteration as end:
                    return end.value
                result = lost = None
                try:
                    result = await self._do(step)
                except (LinkLostError, ClientError) as error:
                    lost = error
        finally:
            self._lock.release()

    async def _turn(self) -> None:
        wait = self._session.timeout_s
        try:
            async with asyncio.timeout(wait):
                await self._lock.acquire()
        except TimeoutError as error:
            raise ClientError(
                f"{self.url}: another call still waits after {wait:g} s; give each robot its own "
                "AsyncClient"
            ) from error

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Look):
            seen = step.observe()
            return await seen if inspect.isawaitable(seen) else seen
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await self._link.do(step)

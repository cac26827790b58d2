"""One robot's connection to the endpoint, kept alive through restarts, lost replicas and bad
networks.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self

from gwp.client.connection.health import is_healthy
from gwp.client.connection.link import Link, Proxy
from gwp.client.connection.session import Episode, Session
from gwp.client.connection.steps import LinkLostError, Look, Pause, Step, Steps
from gwp.client.connection.wire import ClientError
from gwp.client.profile import Profile
from gwp.protocol.messages import ActionChunk, Observation

_CLOSE_S = 1.0


class Client:
    """Sends observations, receives action chunks, over the openpi websocket protocol.

    url:               `ws://host:port`, `wss://...`, or just `host:port`
    api_key:           sent as `Authorization: Api-Key ...`
    embodiment:        name of this robot; needed when the policy serves several
    expect:            what this robot is: any of `fps` (Hz), `action_names`, `state_names`,
                       `cameras`. Both sides compare it with the policy at every (re)connection
                       and refuse a robot that does not match.
    timeout_s:         longest time one call may take, reconnections included
    reply_timeout_s:   longest wait for one reply before the observation is sent again. Requests
                       carry all that the answer depends on, so sending one twice is harmless. An
                       endpoint of ours is told, so that it computes nothing that nobody awaits,
                       and keeps the connection; a stock server's is given up.
    max_age_s:         oldest observation that is sent, and oldest whose answer is taken; None: what
                       the endpoint says, else 10 s. `math.inf`: any
    proxy:             address of a proxy; True: that of the environment; None: none, whatever
                       stands in the environment

    Every method raises ClientError with one line that says what to do. Safe to use from several
    threads; they take turns.
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
        self._session.is_open = lambda: self._link.is_open
        self._own()
        # At once: a wrong address, key or robot is found before the robot moves.
        try:
            self._drive(self._session.connect())
        except BaseException:
            self._loop.stop()
            raise

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        return self._session.url

    @property
    def embodiment(self) -> str | None:
        """Name of this robot, as given."""
        return self._session.embodiment

    @property
    def metadata(self) -> dict[str, Any]:
        """What the endpoint said of itself at the last handshake: `policy_id`, `action_names`,
        `fps`, `replan`, `cameras`, ...
        """
        return self._session.metadata

    @property
    def clock_offset_s(self) -> float:
        """By how much the endpoint's clock is ahead of this machine's, seconds; 0 when it does
        not tell its time.
        """
        return self._session.clock.offset_s

    def act(
        self,
        observation: Observation | Callable[[], Observation],
        *,
        max_age_s: float | None = None,
        timeout_s: float | None = None,
    ) -> ActionChunk:
        """The next chunk for `observation`. Reconnects and sends again until `timeout_s` is
        over.

        observation: its `observed_at` is a time of this machine's clock; it is translated. Without
            one, it was made now. When it gets older than `max_age_s` before it is (again) sent
            or answered, ClientError with the code `stale` is raised. A function that observes is
            called before each try, in this thread.
        max_age_s, timeout_s: for this call; None: those of the client

        Raises ClientError when the observation is refused (no retry: it would be refused again)
        or no answer came in time; with the code `gone` when another policy answers than the one
        that is asked for or that began the episode.
        """
        chunk: ActionChunk = self._drive(self._session.act(observation, max_age_s, timeout_s))
        return chunk

    def episode(self, name: str = "") -> Episode:
        """Begin an episode: the policy that answers first is the only one that answers until the
        next begins, also across reconnections. The name ("": a random one) travels along.
        """
        return self._session.episode(name)

    def describe(self, embodiment: str | None = None) -> Profile:
        """The robot's side as the endpoint declares it: names, units, rate, limits, and what to
        do about time. ClientError when it declares too little, as stock servers do.
        """
        return Profile.of(self.metadata, embodiment or self.embodiment)

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """As openpi's client: the raw observation map in, the raw reply map out. For code
        written against that client.
        """
        reply: dict[str, Any] = self._drive(self._session.infer(dict(obs)))
        return reply

    def get_server_metadata(self) -> dict[str, Any]:
        """As openpi's client: `metadata`."""
        return self.metadata

    def reset(self) -> None:
        """As openpi's client: nothing to do, the endpoint keeps no state of a robot."""

    def healthz(self) -> bool:
        """True when the endpoint answers its health check within `reply_timeout_s`."""
        return is_healthy(self.url, self._session.reply_timeout_s, self._proxy)

    def close(self) -> None:
        """Close the connection, and end a call that waits in another thread with a ClientError.
        The next call opens a new connection.
        """
        if os.getpid() != self._process:
            return
        self._closing.set()
        self._loop.soon(self._link.abort) if self._lock.locked() else self._loop.run(
            self._link.close()
        )
        # Not for ever: a signal's handler may run in the thread that waits. The call ends it then.
        if self._lock.acquire(timeout=_CLOSE_S):
            self._end()
            self._lock.release()

    def _end(self) -> None:
        self._loop.stop()
        self._closing.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _own(self) -> None:
        """What belongs to this process alone."""
        self._process = os.getpid()
        self._link = Link(self._session.url, self._proxy)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._loop = _Loop()

    def _drive(self, steps: Steps) -> Any:
        # A fork has the socket of its parent: both would read each other's answers.
        if os.getpid() != self._process:
            self._own()
        wait = self._session.timeout_s
        if not self._lock.acquire(timeout=wait):
            raise ClientError(
                f"{self.url}: another call still waits after {wait:g} s; give each robot its own "
                "Client"
            )
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
                    result = self._do(step)
                except (LinkLostError, ClientError) as error:
                    lost = error
        finally:
            if self._closing.is_set():
                self._end()
            self._lock.release()

    def _do(self, step: Step) -> Any:
        if isinstance(step, Look):
            # In the caller's thread: most robots' libraries want to be used from one.
            return step.observe()
        if self._closing.is_set():
            raise ClientError(f"{self.url}: closed while a call was waiting", "closed")
        if isinstance(step, Pause):
            self._closing.wait(step.seconds)
            return None
        try:
            return self._loop.run(self._link.do(step))
        except (LinkLostError, ClientError):
            raise
        except BaseException:
            # Interrupted: an answer that is under way must not meet the next request.
            self._loop.soon(self._link.abort)
            raise


class _Loop:
    """An event loop in a thread of its own, started when needed.

    It is what bounds every wait: blocking sockets know no time for a name look-up, for TLS or
    for sending.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` gives or raises."""
        if self._loop is None or self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_turn, args=(self._loop,), name="gwp-client", daemon=True
            )
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            # Of no effect unless the caller was interrupted.
            future.cancel()

    def soon(self, work: Callable[[], Any]) -> None:
        """Do it in the loop's thread; nobody waits."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(work)

    def stop(self) -> None:
        """End the thread."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=5)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()

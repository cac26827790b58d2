"""One robot's connection to the endpoint, kept alive through restarts, lost replicas and bad
networks.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from gwp.client.wire import ClientError, to_chunk, to_message
from gwp.protocol.handshake import FIELDS, mismatch
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb

_RETRYABLE = ("busy", "unavailable")
_BACKOFF_S, _BACKOFF_MAX_S = 0.1, 2.0
_MAX_REPLY_BYTES = 64 << 20


class Client:
    """Sends observations, receives action chunks, over the openpi websocket protocol.

    url:               `ws://host:port`, `wss://...`, or just `host:port`
    api_key:           sent as `Authorization: Api-Key ...`
    embodiment:        name of this robot; needed when the policy serves several
    expect:            what this robot is: any of `fps` (Hz), `action_names`, `state_names`,
                       `cameras`. Both sides compare it with the policy at every (re)connection
                       and refuse a robot that does not match.
    timeout_s:         longest time one call may take, reconnections included
    reply_timeout_s:   longest wait for one reply before the connection is given up and the
                       observation sent again. Requests carry all that the answer depends on, so
                       sending one twice is harmless.

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
    ) -> None:
        self._robot = dict(expect or {}) | ({"embodiment": embodiment} if embodiment else {})
        unknown = set(self._robot) - set(FIELDS)
        if unknown:
            raise ClientError(
                f"expect: unknown {', '.join(sorted(unknown))}; known: {', '.join(FIELDS)}",
                "handshake",
            )
        self.url = _websocket_url(url)
        self.embodiment: str | None = self._robot.get("embodiment")
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._lock = threading.Lock()
        self._socket: ClientConnection | None = None
        self._metadata: dict[str, Any] = {}
        # At once: a wrong address, key or robot is found before the robot moves.
        self._retrying(self._connected)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the endpoint said of itself at the last handshake: `policy_id`, `action_names`,
        `fps`, `replan`, `cameras`, ...
        """
        return self._metadata

    def act(self, observation: Observation) -> ActionChunk:
        """The next chunk for `observation`. Reconnects and sends again until `timeout_s` is
        over.

        Raises ClientError when the observation is refused (no retry: it would be refused again)
        or no answer came in time.
        """
        if observation.embodiment is None and self.embodiment:
            observation = replace(observation, embodiment=self.embodiment)
        return to_chunk(self._request(to_message(observation)))

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """As openpi's client: the raw observation map in, the raw reply map out. For code
        written against that client.
        """
        return self._request(dict(obs))

    def get_server_metadata(self) -> dict[str, Any]:
        """As openpi's client: `metadata`."""
        return self._metadata

    def reset(self) -> None:
        """As openpi's client: nothing to do, the endpoint keeps no state of a robot."""

    def healthz(self) -> bool:
        """True when the endpoint answers its health check within `reply_timeout_s`."""
        from urllib.error import URLError
        from urllib.request import urlopen

        parts = urlsplit(self.url)
        url = urlunsplit(
            ({"ws": "http", "wss": "https"}[parts.scheme], parts.netloc, "/healthz", "", "")
        )
        try:
            with urlopen(url, timeout=self._reply_timeout_s) as reply:  # noqa: S310 - the scheme was chosen above
                return int(reply.status) == 200
        except (URLError, OSError):
            return False

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        return self._retrying(lambda deadline: self._exchange(message, deadline))

    def _retrying(self, attempt: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
        # Threads take turns: the protocol has no numbers to tell replies apart by.
        deadline = time.monotonic() + self._timeout_s
        if not self._lock.acquire(timeout=self._timeout_s):
            raise ClientError(
                f"{self.url}: another call still waits after {self._timeout_s:g} s; give each "
                "robot its own Client"
            )
        try:
            backoff = _BACKOFF_S
            while True:
                try:
                    return attempt(deadline)
                except (OSError, WebSocketException, ProtocolError) as error:
                    self._drop()
                    last = ClientError(
                        f"{self.url}: no answer within {self._timeout_s:g} s (last: "
                        f"{type(error).__name__}: {error}); "
                        "check that `gwp serve` runs there and that the address and port are right"
                    )
                except ClientError as error:
                    if error.code not in _RETRYABLE:
                        raise
                    last = error
                # Jitter, or a fleet that lost its gateway together comes back together.
                pause = min(backoff, _BACKOFF_MAX_S) * random.uniform(0.5, 1.5)
                backoff *= 2
                if time.monotonic() + pause >= deadline:
                    raise last
                time.sleep(pause)
        finally:
            self._lock.release()

    def _exchange(self, message: dict[str, Any], deadline: float) -> dict[str, Any]:
        self._connected(deadline)
        assert self._socket is not None
        # With `endpoint`, our gateway says in the error whether trying again makes sense; a
        # stock server knows no such key.
        ours = "vllm-omni" in self._metadata.get("dialects", ())
        try:
            data = packb({"endpoint": "infer"} | message if ours else message)
        except ProtocolError as error:
            raise ClientError(str(error), "protocol") from error
        self._socket.send(data)
        reply = self._receive(deadline)
        if reply.get("type") == "error":
            raise ClientError(
                f"{self.url}: {reply.get('message')}", str(reply.get("code", "internal"))
            )
        return reply

    def _connected(self, deadline: float) -> dict[str, Any]:
        if self._socket is not None:
            return self._metadata
        query = parse_qsl(urlsplit(self.url).query) + [
            (name, _text(value)) for name, value in self._robot.items()
        ]
        target = urlunsplit(urlsplit(self.url)._replace(query=urlencode(query)))
        wait = max(0.1, min(self._reply_timeout_s, deadline - time.monotonic()))
        try:
            socket = connect(
                target,
                additional_headers=self._headers,
                # Deflating raw pictures takes longer than sending them over a robot's network.
                compression=None,
                max_size=_MAX_REPLY_BYTES,
                open_timeout=wait,
                close_timeout=1,
            )
        except InvalidStatus as error:
            raise _refused(self.url, error) from error
        self._socket = socket
        # The server speaks first.
        try:
            self._metadata = self._receive(deadline)
        except ClientError:
            # A connection without a handshake must not be taken for an open one.
            self._drop()
            raise
        # A stock server looks at no query, so both sides compare; what it does not state of its
        # policy cannot be compared.
        offer = self._metadata.get("embodiments", {}).get(self.embodiment, self._metadata)
        comparable = {name: value for name, value in self._robot.items() if name in offer}
        if wrong := mismatch(comparable, offer):
            self._drop()
            raise ClientError(f"{self.url}: {wrong}", "handshake")
        return self._metadata

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        frame = self._socket.recv(
            timeout=max(0.0, min(self._reply_timeout_s, deadline - time.monotonic()))
        )
        if isinstance(frame, str):
            # A stock server sends a traceback; its last line is what went wrong.
            raise ClientError(
                f"{self.url}: {(frame.strip().splitlines() or ['error without text'])[-1]}",
                "internal",
            )
        message = unpackb(frame)
        if not isinstance(message, dict):
            raise ClientError(
                f"{self.url}: the reply is no map; is this an openpi endpoint?", "protocol"
            )
        return message

    def _drop(self) -> None:
        # A late reply on the old connection would be taken for the answer to the next request.
        socket, self._socket = self._socket, None
        if socket is not None:
            try:
                socket.close()
            except (OSError, WebSocketException):
                return


def _websocket_url(url: str) -> str:
    # `host:port` alone has no scheme; `urlsplit` would take the host for one.
    if "://" not in url:
        url = f"ws://{url}"
    scheme, _, rest = url.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    parts = urlsplit(f"{scheme}://{rest}")
    try:
        valid = scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ClientError(f"{url}: not an endpoint address; write ws://host:port")
    return urlunsplit(parts._replace(path=parts.path or "/"))


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(value)
    return str(value)


def _refused(url: str, error: InvalidStatus) -> ClientError:
    status = error.response.status_code
    body = (error.response.body or b"").decode(errors="replace").strip()
    if status in (401, 403):
        return ClientError(f"{url}: {body or 'access refused'}; check the API key", "handshake")
    if status in (404, 405, 426):
        return ClientError(
            f"{url}: nothing speaks openpi at this path (HTTP {status}); use ws://host:port/",
            "handshake",
        )
    if status in (400, 409):
        return ClientError(f"{url}: {body or 'the endpoint refused this robot'}", "handshake")
    # A proxy whose gateway restarts, for instance: this passes, and is tried again.
    return ClientError(f"{url}: HTTP {status} {body}".strip(), "unavailable")

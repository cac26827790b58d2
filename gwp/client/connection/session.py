"""The rules of an exchange with the endpoint, without the network: what is sent when, what counts as
an answer, what is tried again, and what is never sent twice.

Each rule is a generator of steps; whoever drives it does them, waiting in its own way.
"""

import itertools
import math
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gwp.client.connection.address import announcing, websocket_url
from gwp.client.connection.clock import EndpointClock
from gwp.client.connection.steps import (
    Drop,
    Exchange,
    LinkLostError,
    Look,
    Open,
    Pause,
    ReplyLateError,
    Steps,
)
from gwp.client.connection.wire import ClientError, packed, refusal, to_chunk, to_message
from gwp.protocol.bounds import FROM_ENDPOINT
from gwp.protocol.handshake import FIELDS, mismatch
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.msgpack_numpy import ProtocolError, unpackb

MAX_AGE_S = 10.0
"""Oldest observation that is sent where neither robot nor endpoint sets a bound, seconds."""
_RETRYABLE = ("busy", "unavailable", "limit")
_BACKOFF_S, _BACKOFF_MAX_S = 0.1, 2.0
_CLOCK_MESSAGES, _CLOSE_ENOUGH_S = 3, 0.002
_TOLD = 0.9
"""Share of a wait that the endpoint is told: a refusal at its end still arrives."""
Source = Observation | Callable[[], Any]
"""An observation, or what makes one."""


@dataclass
class Episode:
    """One episode of a robot: within it only one policy answers.

    name:      what it is called in requests
    policy_id: the policy of its first answer; "" before
    """

    name: str
    policy_id: str = ""


@dataclass(frozen=True)
class _Seen:
    """An observation, and the moment (monotonic, seconds) at which it was made."""

    observation: Observation
    moment: float


class Session:
    """One robot's side of the wire. `metadata` is what the endpoint said of itself last."""

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
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._robot = dict(expect or {}) | ({"embodiment": embodiment} if embodiment else {})
        unknown = set(self._robot) - set(FIELDS)
        if unknown:
            raise ClientError(
                f"expect: unknown {', '.join(sorted(unknown))}; known: {', '.join(FIELDS)}",
                "handshake",
            )
        self.url = websocket_url(url)
        self.embodiment: str | None = self._robot.get("embodiment")
        self.timeout_s = timeout_s
        self.reply_timeout_s = reply_timeout_s
        self.metadata: dict[str, Any] = {}
        self.clock = EndpointClock(now, wall)
        self.current: Episode | None = None
        self.is_open: Callable[[], bool] = lambda: False
        self.dropped = 0
        """Replies that answered no request of this client."""
        self._max_age_s = max_age_s
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._now = now
        # Of this client alone: an operator finds its requests in the log of a fleet.
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def connect(self) -> Steps:
        """Connect, patiently."""
        return (yield from self._patiently(self._connected, self.timeout_s))

    def act(self, source: Source, max_age_s: float | None, timeout_s: float | None) -> Steps:
        """The chunk for an observation, or for what `source` sees when it is asked.

        max_age_s: never send one that is older, nor take an answer to it.
        """
        fixed = None if callable(source) else self._dated(source, self._now())

        def attempt(deadline: float) -> Steps:
            yield from self._connected(deadline)
            seen = fixed
            if seen is None:
                # Before the pictures are taken, not behind: an age is never understated.
                moment = self._now()
                seen = self._dated((yield Look(source)), moment)  # type: ignore[arg-type]
            return (yield from self._ask(seen, max_age_s, deadline))

        def allowed(pause: float, last: ClientError) -> None:
            if fixed is None:
                return
            # Also when only the pause makes it too old: what will not be sent is not waited for.
            self._check_age(fixed, max_age_s, pause, last)

        retryable = _RETRYABLE if fixed else (*_RETRYABLE, "stale")
        wait = self.timeout_s if timeout_s is None else timeout_s
        return (yield from self._patiently(attempt, wait, retryable, allowed))

    def infer(self, message: dict[str, Any]) -> Steps:
        """The reply map for a request map."""
        start = self._now()
        bound = MAX_AGE_S if self._max_age_s is None else self._max_age_s

        def attempt(deadline: float) -> Steps:
            yield from self._connected(deadline)
            return (yield from self._answer(dict(message), deadline))

        def allowed(pause: float, last: ClientError) -> None:
            age = self._now() + pause - start
            if age > bound:
                raise _stale(self.url, age, bound, last)

        return (yield from self._patiently(attempt, self.timeout_s, _RETRYABLE, allowed))

    def episode(self, name: str = "") -> Episode:
        """Begin an episode."""
        self.current = Episode(name or secrets.token_hex(8))
        return self.current

    @property
    def fields(self) -> tuple[str, ...]:
        """Request fields that the endpoint says it knows; none of a stock server."""
        fields = self.metadata.get("fields")
        return tuple(map(str, fields)) if isinstance(fields, (list, tuple)) else ()

    def _patiently(
        self,
        attempt: Callable[[float], Steps],
        timeout_s: float,
        retryable: tuple[str, ...] = _RETRYABLE,
        allowed: Callable[[float, ClientError], None] | None = None,
    ) -> Steps:
        deadline = self._now() + timeout_s
        backoff = _BACKOFF_S
        while True:
            wait = 0.0
            try:
                return (yield from attempt(deadline))
            except (LinkLostError, ProtocolError) as error:
                if not isinstance(error, ReplyLateError):
                    yield Drop()
                last = ClientError(
                    f"{self.url}: no answer within {timeout_s:g} s (last: {error}); "
                    "check that `gwp serve` runs there and that the address and port are right"
                )
            except ClientError as error:
                if error.code not in retryable:
                    raise
                wait = error.retry_after_s or 0.0
                last = error
            # Jitter, or a fleet that lost its gateway together comes back together; it only adds
            # to what the endpoint asked for.
            pause = max(backoff * random.uniform(0.5, 1.5), wait * random.uniform(1.0, 1.2))
            backoff = min(backoff * 2, _BACKOFF_MAX_S)
            if self._now() + pause >= deadline:
                raise last
            if allowed is not None:
                allowed(pause, last)
            yield Pause(pause)

    def _connected(self, deadline: float) -> Steps:
        if self.is_open():
            if "time" in self.metadata and self.clock.old:
                yield from self._ask_time([], deadline)
            return self.metadata
        begin = self._now()
        wait = max(0.1, min(self.reply_timeout_s, deadline - begin))
        yield Open(announcing(self.url, self._robot), self._headers, wait)
        try:
            # The server speaks first.
            self.metadata = self._map((yield Exchange(None, self._end(deadline) - self._now())))
            self._agree()
            theirs = self.metadata.get("time")
            if isinstance(theirs, (int, float)):
                yield from self._ask_time([(begin, self._now(), float(theirs))], deadline)
        except ClientError:
            # A connection without a handshake must not be taken for an open one.
            yield Drop()
            raise
        return self.metadata

    def _agree(self) -> None:
        # A stock server looks at no query, so both sides compare; what it does not state of its
        # policy cannot be compared.
        offer = self.metadata.get("embodiments", {}).get(self.embodiment, self.metadata)
        comparable = {name: value for name, value in self._robot.items() if name in offer}
        if wrong := mismatch(comparable, offer):
            raise ClientError(f"{self.url}: {wrong}", "handshake")

    def _ask_time(self, known: list[tuple[float, float, float]], deadline: float) -> Steps:
        """Learn the endpoint's clock of this connection: another gateway has another."""
        answers = list(known)
        for _ in range(_CLOCK_MESSAGES):
            sent = self._now()
            reply = yield from self._exchange({"endpoint": "clock"}, self._end(deadline))
            received = self._now()
            theirs = reply.get("time")
            if not isinstance(theirs, (int, float)):
                break
            answers.append((sent, received, float(theirs)))
            if received - sent < _CLOSE_ENOUGH_S:
                break
        if answers:
            self.clock.learn(answers)

    def _dated(self, observation: Observation, moment: float) -> _Seen:
        if observation.observed_at is not None:
            moment = self.clock.moment(observation.observed_at)
        return _Seen(observation, moment)

    def _bound(self, seen: _Seen, max_age_s: float | None) -> float:
        said = (
            max_age_s,
            seen.observation.max_age_s,
            self._max_age_s,
            self.metadata.get("max_age_s"),
        )
        return next((float(bound) for bound in said if bound is not None), MAX_AGE_S)

    def _check_age(
        self,
        seen: _Seen,
        max_age_s: float | None,
        ahead: float = 0.0,
        last: ClientError | None = None,
    ) -> None:
        age, bound = self._now() + ahead - seen.moment, self._bound(seen, max_age_s)
        if age > bound:
            raise _stale(self.url, age, bound, last)

    def _ask(self, seen: _Seen, max_age_s: float | None, deadline: float) -> Steps:
        self._check_age(seen, max_age_s)
        episode = self.current
        observation = self._request(seen, episode, max_age_s)
        reply = yield from self._answer(to_message(observation, self.fields), deadline)
        chunk = to_chunk(reply)
        self._attribute(chunk, observation.policy, episode)
        # A chunk for what was seen too long ago is none.
        self._check_age(seen, max_age_s)
        if chunk.observation_age_s is None:
            chunk = replace(chunk, observation_age_s=self._now() - seen.moment)
        return chunk

    def _request(
        self, seen: _Seen, episode: Episode | None, max_age_s: float | None
    ) -> Observation:
        observation, bound = seen.observation, self._bound(seen, max_age_s)
        return replace(
            observation,
            embodiment=observation.embodiment or self.embodiment,
            episode=observation.episode or (episode.name if episode else ""),
            policy=observation.policy or (episode.policy_id if episode else None) or None,
            observed_at=self.clock.at(seen.moment),
            max_age_s=bound if math.isfinite(bound) else None,
        )

    def _attribute(self, chunk: ActionChunk, pin: str | None, episode: Episode | None) -> None:
        # A stock server names no policy.
        if not chunk.policy_id:
            return
        if pin and not chunk.policy_id.startswith(pin):
            raise ClientError(
                f"{self.url}: policy {pin} is asked for, {chunk.policy_id} answered; end the "
                "episode, and begin one with the new policy",
                "gone",
            )
        if episode is not None and not episode.policy_id:
            episode.policy_id = chunk.policy_id

    def _answer(self, message: dict[str, Any], deadline: float) -> Steps:
        """The reply to one request map. ClientError when it is a refusal."""
        # With `endpoint`, our gateway says in the error whether trying again makes sense; a
        # stock server knows no such key.
        if "vllm-omni" in self.metadata.get("dialects", ()):
            message = {"endpoint": "infer"} | message
        end = self._end(deadline)
        told = self._tell_wait(message, end)
        reply = yield from self._exchange(message, end)
        if reply.get("type") != "error":
            return reply
        error = refusal(self.url, reply)
        if told and error.code == "deadline":
            # It is ours and not the robot's, who may wait for another try.
            raise ReplyLateError(str(error))
        raise error

    def _tell_wait(self, message: dict[str, Any], end: float) -> bool:
        """Say how long the reply is waited for: nothing is computed that nobody awaits. Whether
        the robot itself allowed more.
        """
        if "deadline_s" not in self.fields or "batch" in message:
            return False
        wait = _TOLD * (end - self._now())
        own = message.get("deadline_s")
        if wait <= 0 or not (own is None or (isinstance(own, (int, float)) and own > wait)):
            return False
        message["deadline_s"] = wait
        return True

    def _exchange(self, message: dict[str, Any], end: float) -> Steps:
        """The reply to a message, and to no other; an error is one, too."""
        number: str | int | None = None
        if "request_id" in self.fields:
            # `infer` may bring its own.
            message.setdefault("request_id", f"{self._name}-{next(self._numbers)}")
            number = message["request_id"]
        data: bytes | None = packed(message, self._max_bytes)
        while True:
            wait = max(0.0, end - self._now())
            reply = self._map((yield Exchange(data, wait, numbered=number is not None)))
            named = reply.get("request_id")
            # What could not be read has no number to be refused under.
            unnamed = named is None and reply.get("type") == "error"
            if number is None or named == number or unnamed:
                return reply
            self.dropped += 1
            data = None

    @property
    def _max_bytes(self) -> int | None:
        most = self.metadata.get("max_message_bytes")
        return most if isinstance(most, int) and most > 0 else None

    def _end(self, deadline: float) -> float:
        """Until when one reply is waited for."""
        return min(deadline, self._now() + self.reply_timeout_s)

    def _map(self, frame: bytes | str) -> dict[str, Any]:
        if isinstance(frame, str):
            # Of a stock server: a traceback.
            last = (frame.strip().splitlines() or ["error without text"])[-1]
            raise ClientError(f"{self.url}: {last}", "internal")
        message = unpackb(frame, bounds=FROM_ENDPOINT)
        if not isinstance(message, dict):
            raise ClientError(
                f"{self.url}: the reply is no map; is this an openpi endpoint?", "protocol"
            )
        return message


def _stale(url: str, age: float, bound: float, last: ClientError | None) -> ClientError:
    why = f" (last: {last})" if last else ""
    return ClientError(
        f"{url}: the observation is {age:.2f} s old, {bound:g} s are allowed{why}; look anew, or "
        "give `act` what observes and it asks for a fresh one before each try",
        "stale",
    )

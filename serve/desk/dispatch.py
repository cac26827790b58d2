"""From the bytes of a message to a chunk: who may ask, when it is too late, and which answer is
whose. Every door goes through here.
"""

import asyncio
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from gwp.errors import GoneError, ObservationError, ProtocolError
from gwp.metrics.meter import Meter
from gwp.policy.composed import ComposedObservation, compose_observation
from gwp.policy.contract import PolicyContract
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.msgpack_numpy import unpackb
from serve import metrics
from serve.backend import Backend
from serve.config import ServeApp
from serve.desk.access import Access
from serve.desk.ages import age_of, judge_age
from serve.desk.intake import Intake
from serve.desk.rates import Rates
from serve.desk.uploads import Uploads
from serve.identity import Identity
from serve.messages.glance import Glance, glance_at
from serve.messages.pictures import Pixels
from serve.messages.requests import to_observation
from serve.messages.together import Form, split
from serve.messages.values import request_id, text
from serve.refusal import RefusedError

_UPLOADS = 16
"""Messages of full size that may be arriving or waiting at once."""
_FRESH = 0.02
"""Weight of the newest request in the share of those that are refused."""


@dataclass
class Peer:
    """Whoever sends messages through a door; one for each connection.

    name:       for fair shares: those of one name share one
    key:        of its API key, as `Access` names it; "" without keys
    embodiment: announced at the handshake; used where a request names none
    allowed_s:  what its last request allowed: the next one is decoded in that order
    """

    name: str
    key: str = ""
    embodiment: str | None = None
    allowed_s: float = float("inf")


@dataclass(frozen=True)
class Item:
    """One observation of a message: checked and composed, or the refusal that it gets.

    request_id: comes back, with a refusal too
    """

    request_id: str | int | None
    given: ComposedObservation | RefusedError


@dataclass(frozen=True)
class Asked:
    """A message that was unpacked.

    endpoint:   as vLLM-Omni's clients name it, or None; where it needs no observation there is
                none
    request_id: of the whole message; comes back
    form:       one observation or several, and so how they are answered
    refusal:    what is wrong with the message as a whole
    """

    endpoint: str | None
    request_id: str | int | None = None
    form: Form = "one"
    items: tuple[Item, ...] = ()
    refusal: RefusedError | None = None


class Dispatcher:
    """What every door needs: the contract, who may come in, and the way to a chunk.

    The process that robots talk to makes one; all its doors share it. Lives in one event loop.

    uploads: what has arrived of messages that have not had their turn
    counts: answers by outcome (`ok` or the code of a refusal) and flags given, since the start
    """

    def __init__(
        self,
        backend: Backend,
        contract: PolicyContract,
        identity: Identity,
        config: ServeApp,
        meter: Meter | None = None,
    ) -> None:
        """meter: what is told of answers; None: nothing"""
        self.contract = contract
        self.identity = identity
        self.access = Access(config.api_keys_env)
        self.limits = config.limits
        self.max_bytes = int(config.limits.max_message_mb * 2**20)
        self.draining = asyncio.Event()
        self.counts: Counter[str] = Counter()
        self.uploads = Uploads(_UPLOADS * self.max_bytes)
        self._backend = backend
        self._noise = config.noise
        self._intake = Intake(config.limits.decoders, config.limits.queue)
        self._robots = Rates(config.limits.robot_hz)
        self._keys = Rates(config.limits.key_hz)
        self._sockets = self._asking = 0
        # Share of the latest requests that were refused for lack of time.
        self._refused = 0.0
        self._meter = meter or Meter()
        metrics.watch_gateway(
            self._meter, lambda: self.ready, lambda: self._sockets, lambda: self.wait_s
        )

    @property
    def wait_s(self) -> float:
        """How long a message that came now would wait for its answer; about, seconds."""
        return self._intake.wait_s + self._backend.wait_s

    @property
    def ready(self) -> bool:
        """Whether a chunk could be computed now, for those who send robots here."""
        return self._backend.ready and not self.draining.is_set()

    def metadata(self, embodiment: str | None = None) -> dict[str, Any]:
        """What a robot is told when it connects."""
        return self.contract.metadata(embodiment) | {
            **self.identity.model_dump(),
            "time": time.time(),
            "max_message_bytes": self.max_bytes,
            "max_age_s": self.limits.max_ages_s.get(embodiment or "", self.limits.max_age_s),
            "noise": self._noise,
        }

    def enter(self) -> None:
        """A robot wants to stay. RefusedError `busy` when there are too many; else it `leave`s."""
        if self._sockets >= self.limits.connections:
            raise RefusedError("busy", "too many connections (limits.connections)", 1.0)
        self._sockets += 1

    def leave(self) -> None:
        """A robot that had entered is gone."""
        self._sockets -= 1

    @property
    def sockets(self) -> int:
        """Robots that stay."""
        return self._sockets

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Somebody waits for one answer without staying."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    @property
    def empty(self) -> bool:
        """Whether nobody stays, and nobody waits for an answer."""
        return not (self._sockets or self._asking)

    async def ask(self, data: bytes, peer: Peer, arrival: float) -> Asked:
        """The message, unpacked and composed off the loop, or refused unread.

        arrival: when the message had come, on the loop's clock
        """
        seen = Glance()
        try:
            if wait_s := self._keys.wait_s(peer.key):
                raise RefusedError("limit", "this key asks too often (limits.key_hz)", wait_s)
            allowed_s = peer.allowed_s
            if self.wait_s:
                # Decoding what is refused after all would slow down those who are not.
                seen = glance_at(data)
                allowed_s = seen.deadline_s or allowed_s
                self._refuse_hopeless(self._left_s(arrival, allowed_s), self.wait_s)
            due = arrival + self._allowed_s(allowed_s)
            asked = await self._intake.run(peer.name, due, lambda: self._take(data, peer))
        except RefusedError as error:
            if seen == Glance():
                seen = glance_at(data)
            return Asked(seen.endpoint, seen.request_id, refusal=error)
        self._keys.owe(peer.key, len(asked.items) - 1)
        return asked

    async def act(self, item: Item, peer: Peer, arrival: float) -> ActionChunk:
        """The chunk of one observation. RefusedError when there is none in time, counted from
        its arrival.
        """
        if isinstance(item.given, RefusedError):
            raise item.given
        observation = item.given.observation
        peer.allowed_s = self._allowed_s(observation.deadline_s)
        if wait_s := self._robots.wait_s(observation.robot or peer.name):
            raise RefusedError("limit", "this robot asks too often (limits.robot_hz)", wait_s)
        left_s, _ = self._judge(observation, arrival)
        self._refuse_hopeless(left_s, self._backend.wait_s)
        self._refused -= _FRESH * self._refused
        try:
            async with asyncio.timeout(left_s):
                chunk = await self._backend.act(item.given, left_s)
        except TimeoutError as error:
            raise self._late(observation) from error
        # As old as it is now: it has waited and been computed meanwhile.
        _, flags = self._judge(observation, arrival)
        told = replace(
            chunk,
            policy_version=self.identity.policy_version,
            policy_alias=self.identity.policy_alias,
            run_id=self.identity.run_id,
            request_id=observation.request_id,
            observation_age_s=age_of(observation),
            flags=(*chunk.flags, *flags),
        )
        took_s = asyncio.get_running_loop().time() - arrival
        metrics.answered(self._meter, observation, told, took_s)
        return told

    def check_time(self, item: Item, arrival: float) -> None:
        """RefusedError where it is too late by now for the chunk of an observation."""
        if not isinstance(item.given, RefusedError):
            self._judge(item.given.observation, arrival)

    def count(self, outcome: str, flags: Sequence[str] = ()) -> None:
        """An observation, or a message that held none, was answered. outcome: `ok` or a code."""
        self.counts[outcome] += 1
        self.counts.update(flags)
        metrics.count(self._meter, outcome, flags)

    def stats(self) -> dict[str, Any]:
        """How it stands: counts, robots connected, what a newcomer would wait."""
        return {
            "policy_id": self.identity.policy_id,
            "ready": self.ready,
            "robots": self._sockets,
            "wait_s": self.wait_s,
            "batch": self._backend.batch,
            "counts": dict(self.counts),
        }

    def close(self) -> None:
        """End the threads that decode."""
        self._intake.close()

    def _take(self, data: bytes, peer: Peer) -> Asked:
        """In a thread of the intake."""
        endpoint = number = None
        try:
            message = unpackb(data, self.max_bytes)
            if isinstance(message, dict):
                endpoint, number = text(message, "endpoint"), request_id(message)
            if endpoint not in (None, "infer"):
                return Asked(endpoint, number)
            parts = split(message)
        except (ObservationError, ProtocolError) as error:
            return Asked(endpoint, number, refusal=_refusal(error))
        pixels = Pixels()
        items = tuple(self._item(request, peer, pixels) for request in parts.requests)
        return Asked(endpoint, number, parts.form, items)

    def _item(self, request: Any, peer: Peer, pixels: Pixels) -> Item:
        number = None
        try:
            number = request_id(request) if isinstance(request, dict) else None
            observation = to_observation(request, self.contract, peer.embodiment, pixels)
            if observation.seed is None and self._noise == "fresh":
                observation = replace(observation, seed=secrets.randbits(32))
            return Item(number, compose_observation(observation, self.contract))
        except (ObservationError, ProtocolError) as error:
            return Item(number, _refusal(error))

    def _judge(self, observation: Observation, arrival: float) -> tuple[float, tuple[str, ...]]:
        """Seconds that are left for an observation, and flags for its age. RefusedError where it
        is too late or too old.
        """
        left_s = self._left_s(arrival, observation.deadline_s)
        flags = judge_age(observation, self.limits)
        if left_s <= 0:
            raise self._late(observation)
        return left_s, flags

    def _left_s(self, arrival: float, allowed_s: float | None) -> float:
        """Seconds that are left of those that a request allows."""
        return arrival + self._allowed_s(allowed_s) - asyncio.get_running_loop().time()

    def _allowed_s(self, deadline_s: float | None) -> float:
        return min(deadline_s or math.inf, self.limits.request_timeout_s)

    def _late(self, observation: Observation) -> RefusedError:
        allowed_s = self._allowed_s(observation.deadline_s)
        code = "unavailable" if observation.deadline_s is None else "deadline"
        return RefusedError(
            code,
            f"no chunk within {allowed_s:g} s of the request's arrival; add replicas or allow more "
            "time (deadline_s, limits.request_timeout_s)",
            None if code == "deadline" else 0.1,
        )

    def _refuse_hopeless(self, left_s: float, wait_s: float) -> None:
        """Nobody is let in who would be told after his deadline: the others are answered sooner."""
        if wait_s > left_s:
            self._refused += _FRESH * (1 - self._refused)
            raise RefusedError(
                "busy",
                f"the endpoint is {wait_s:.2f} s behind and {left_s:.2f} s are left; try again, or "
                "add replicas",
                # The more are sent away the later they should come back, or all are here again at
                # once: to look at what is refused takes time from those who are let in.
                wait_s - left_s + wait_s * self._refused / (1 + _FRESH - self._refused),
            )


def _refusal(error: ObservationError | ProtocolError) -> RefusedError:
    code = "protocol" if isinstance(error, ProtocolError) else "observation"
    return RefusedError("gone" if isinstance(error, GoneError) else code, str(error))

"""An endpoint that does as it is told, for the rules of a client without a network: it turns the
clock, too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gwp.client import ActionChunk, Observation
from gwp.client.connection.session import Session
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
from gwp.protocol.msgpack_numpy import packb, unpackb

FIELDS = [
    "request_id",
    "observed_at",
    "max_age_s",
    "episode",
    "executed_action",
    "steps_left",
    "rate",
    "report",
    "policy",
]
OURS = {"dialects": ["vllm-omni"], "fields": FIELDS, "policy_id": "a" * 64}
SEEN = Observation({"top": np.zeros((4, 4, 3), np.uint8)}, np.zeros(2, np.float32), "go")
ABOUT = 1_700_000_000.0


class Endpoint:
    """Answers requests with what `answer` gives: a map, raised errors, or a list of frames of
    which the first is the answer's place.

    late: frames that come on the same connection before the next answer
    """

    def __init__(self, metadata: dict[str, Any], answer: Callable[[dict[str, Any]], Any]) -> None:
        self.now = 50.0
        self.ahead = 0.0
        self.latency = 0.01
        self.metadata = metadata
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.opened = 0
        self.pauses: list[float] = []
        self.connected = False
        self.frames: Iterator[Any] = iter(())
        self.late: list[Any] = []

    def session(self, **options: Any) -> Session:
        session = Session(
            "host:8000", now=lambda: self.now, wall=lambda: ABOUT + self.now, **options
        )
        session.is_open = lambda: self.connected
        return session

    def drive(self, steps: Steps) -> Any:
        result, lost = None, None
        while True:
            try:
                step = steps.send(result) if lost is None else steps.throw(lost)
            except StopIteration as end:
                return end.value
            result = lost = None
            try:
                result = self.do(step)
            except LinkLostError as error:
                lost = error

    def do(self, step: Any) -> Any:
        if isinstance(step, Look):
            return step.observe()
        if isinstance(step, Pause):
            self.pauses.append(step.seconds)
            self.now += step.seconds
        elif isinstance(step, Open):
            self.opened += 1
            self.connected = True
            self.frames = iter([self.metadata])
            self.late.clear()
        elif isinstance(step, Drop):
            self.connected = False
        else:
            return self.exchange(step)
        return None

    def exchange(self, step: Exchange) -> bytes:
        if step.data is not None:
            self.now += self.latency
            before = self.late[:]
            self.late.clear()
            request = unpackb(step.data)
            if request.get("endpoint") == "clock":
                named = {n: request[n] for n in ("request_id",) if n in request}
                reply: Any = {"time": ABOUT + self.now + self.ahead} | named
            else:
                self.requests.append(request)
                reply = self.answer(request)
            self.frames = iter([*before, *(reply if isinstance(reply, list) else [reply])])
            self.now += self.latency
        frame = next(self.frames, None)
        if frame is None:
            self.now += step.timeout_s
            raise (ReplyLateError if step.numbered else LinkLostError)("nothing came")
        if isinstance(frame, Exception):
            raise frame
        return packb(frame)


def chunk_for(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    reply = {"actions": np.zeros((4, 2)), "policy_id": "a" * 64}
    return reply | {n: request[n] for n in ("request_id",) if n in request} | more


def error(code: str, **more: Any) -> dict[str, Any]:
    return {"type": "error", "code": code, "message": "no"} | more


def act(endpoint: Endpoint, session: Session, source: Any = SEEN, **options: Any) -> ActionChunk:
    given = {"max_age_s": None, "timeout_s": None} | options
    chunk: ActionChunk = endpoint.drive(session.act(source, **given))
    return chunk

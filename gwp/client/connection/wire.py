"""Observations and chunks as the maps that travel on the openpi websocket."""

from collections.abc import Collection
from typing import Any

import numpy as np

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.msgpack_numpy import ProtocolError, packb
from gwp.protocol.report import Report

_OPTIONAL = ("embodiment", "prefix_actions", "seed", "policy", "deadline_s")
_UNLESS_EMPTY = ("delay", "robot", "session")
# Only for an endpoint that names them among its `fields`: a stock server hands what it does not
# know on to the policy's transforms, and an older one of ours has no use for them.
_DECLARED = (
    "observed_at",
    "max_age_s",
    "episode",
    "executed_action",
    "steps_left",
    "rate",
    "report",
    "request_id",
)

PASSING = frozenset(
    ("connection", "busy", "unavailable", "limit", "deadline", "stale", "internal", "dry")
)


class ClientError(GwpError):
    """The endpoint could not be reached, or refused what was sent. The line says what to do.

    code:          `observation`, `policy`, `busy`, `unavailable`, `limit`, `deadline`, `stale`,
                   `gone`, `access`, `protocol`, `internal` from the endpoint; `connection`,
                   `handshake`, `stale`, `gone`, `dry`, `closed` from this side.
    retry_after_s: what the endpoint asks to wait before another try, seconds; None: nothing.
    """

    def __init__(
        self, message: str, code: str = "connection", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """Whether asking again with a new observation may help; otherwise the robot, its
        observation or its policy has to change first.
        """
        return self.code in PASSING


def to_message(observation: Observation, fields: Collection[str] = ()) -> dict[str, Any]:
    """The request map of one observation; fields that say nothing are left out. A picture may
    be the bytes of a JPEG or PNG, too.

    fields: those that the endpoint says it knows.
    """
    pictures: dict[str, Any] = dict(observation.images)
    images = {
        name: picture if isinstance(picture, bytes) else np.ascontiguousarray(picture)
        for name, picture in pictures.items()
    }
    message: dict[str, Any] = {
        "images": images,
        "state": np.asarray(observation.state),
        "prompt": observation.prompt,
    }
    names = (*_OPTIONAL, *(name for name in _DECLARED if name in fields))
    values = {name: getattr(observation, name) for name in names}
    values |= {name: getattr(observation, name) or None for name in _UNLESS_EMPTY}
    if isinstance(report := values.get("report"), Report):
        values["report"] = report.to_map() or None
    # An episode without a name is none.
    return message | {n: v for n, v in values.items() if v is not None and not _no_text(v)}


def _no_text(value: Any) -> bool:
    return isinstance(value, str) and not value


def packed(message: dict[str, Any], max_bytes: int | None) -> bytes:
    """The frame of one request. ClientError when it cannot be sent, or is larger than the
    endpoint takes.
    """
    try:
        data = packb(message)
    except ProtocolError as error:
        raise ClientError(str(error), "protocol") from error
    if max_bytes is None or len(data) <= max_bytes:
        return data
    name, size, shape = _largest(message)
    raise ClientError(
        f"this request has {len(data) / 1e6:.1f} MB, the endpoint takes {max_bytes / 1e6:.1f}; the "
        f"largest part is {name}{shape} with {size / 1e6:.1f}: send pictures of the size that the "
        "policy looks at (`client.describe().sizes`), or as JPEG bytes",
        "protocol",
    )


def _largest(message: Any, name: str = "") -> tuple[str, int, str]:
    """Name, bytes and shape of the largest part of a request."""
    if isinstance(message, dict):
        parts = [_largest(value, f"{name}.{key}".strip(".")) for key, value in message.items()]
        return max(parts, key=lambda part: part[1], default=(name, 0, ""))
    if isinstance(message, np.ndarray):
        return name, message.nbytes, f" {list(message.shape)} {message.dtype}"
    return name, len(message) if isinstance(message, (bytes, str)) else 0, ""


def refusal(where: str, reply: dict[str, Any]) -> ClientError:
    """The error in a reply of the type `error`."""
    wait = reply.get("retry_after_s")
    # A number of seconds and no other kind of thing: it comes from outside.
    good = isinstance(wait, (int, float)) and not isinstance(wait, bool) and 0 <= wait < 3600
    text = str(reply.get("message", "refused without a reason"))
    return ClientError(
        f"{where}: {text}", str(reply.get("code", "internal")), float(wait or 0) if good else None
    )


def to_chunk(reply: dict[str, Any]) -> ActionChunk:
    """The chunk of one reply; also of a stock openpi server, which names no policy. ClientError
    when it holds no actions.
    """
    actions = reply.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2:
        raise ClientError(
            f"the reply has no `actions` array [p, d], only: {', '.join(map(str, reply)) or 'nothing'}",
            "protocol",
        )
    if not actions.size or actions.dtype.kind not in "fiu" or not np.isfinite(actions).all():
        raise ClientError(
            f"the reply's actions {list(actions.shape)} {actions.dtype} are empty or not finite; "
            "nothing of it is executed, look at the policy",
            "policy",
        )
    try:
        return _chunk(actions, reply)
    except (TypeError, ValueError) as error:
        raise ClientError(
            f"the reply says of itself what cannot be: {error}", "protocol"
        ) from error


def _chunk(actions: np.ndarray, reply: dict[str, Any]) -> ActionChunk:
    timing = reply.get("policy_timing")
    timings = (
        {str(name).removesuffix("_ms"): float(ms) for name, ms in timing.items()}
        if isinstance(timing, dict)
        else {}
    )
    # openpi's name for the whole is `infer`, ours `total`.
    if "infer" in timings:
        timings["total"] = timings.pop("infer")
    if isinstance(reply.get("server_timing"), dict) and "infer_ms" in reply["server_timing"]:
        timings["server"] = float(reply["server_timing"]["infer_ms"])
    age = reply.get("observation_age_s")
    return ActionChunk(
        actions=np.array(actions, np.float32),
        policy_id=_text(reply, "policy_id"),
        valid_from=int(reply.get("valid_from", 0)),
        timings=timings,
        flags=tuple(str(flag) for flag in reply.get("flags", ())),
        policy_version=_text(reply, "policy_version"),
        policy_alias=_text(reply, "policy_alias"),
        run_id=_text(reply, "run_id"),
        request_id=reply.get("request_id"),
        observation_age_s=float(age) if isinstance(age, (int, float)) else None,
    )


def _text(reply: dict[str, Any], name: str) -> str:
    value = reply.get(name)
    return "" if value is None else str(value)

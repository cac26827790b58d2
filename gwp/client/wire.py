"""Observations and chunks as the maps that travel on the openpi websocket."""

from typing import Any

import numpy as np

from gwp.errors import GwpError
from gwp.protocol.messages import ActionChunk, Observation

_OPTIONAL = ("embodiment", "prefix_actions", "seed", "policy", "deadline_s", "observed_at")


class ClientError(GwpError):
    """The endpoint could not be reached, or refused what was sent. The line says what to do.

    code: `observation`, `policy`, `busy`, `unavailable`, `deadline`, `protocol`, `internal`
          from the endpoint; `connection`, `handshake` from this side.
    """

    def __init__(self, message: str, code: str = "connection") -> None:
        super().__init__(message)
        self.code = code


def to_message(observation: Observation) -> dict[str, Any]:
    """The request map of one observation; fields that say nothing are left out."""
    message: dict[str, Any] = {
        "images": {name: np.ascontiguousarray(image) for name, image in observation.images.items()},
        "state": np.asarray(observation.state),
        "prompt": observation.prompt,
    }
    message |= {
        name: getattr(observation, name)
        for name in _OPTIONAL
        if getattr(observation, name) is not None
    }
    message |= {
        name: getattr(observation, name)
        for name in ("delay", "robot", "session")
        if getattr(observation, name)
    }
    return message


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
    return ActionChunk(
        actions=np.array(actions, np.float32),
        policy_id=str(reply.get("policy_id", "")),
        valid_from=int(reply.get("valid_from", 0)),
        timings=timings,
        flags=tuple(str(flag) for flag in reply.get("flags", ())),
    )

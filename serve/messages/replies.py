"""Reply maps: a chunk, an error, or those of several observations that came together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gwp.protocol.messages import ActionChunk
from serve.messages.together import Form


def to_reply(chunk: ActionChunk, infer_ms: float, previous_ms: float | None) -> dict[str, Any]:
    """The reply map of one chunk, with the keys of openpi first.

    policy_timing: `infer_ms` of the policy as a whole and one entry per phase
    server_timing: what the gateway saw
    """
    phases = {f"{name}_ms": ms for name, ms in chunk.timings.items() if name != "total"}
    server = {"infer_ms": infer_ms}
    if previous_ms is not None:
        server["prev_total_ms"] = previous_ms
    reply: dict[str, Any] = {
        "actions": chunk.actions,
        "policy_timing": {"infer_ms": chunk.timings.get("total", infer_ms)} | phases,
        "server_timing": server,
        "policy_id": chunk.policy_id,
        "policy_version": chunk.policy_version,
        "policy_alias": chunk.policy_alias,
        "run_id": chunk.run_id,
        "valid_from": chunk.valid_from,
        "flags": list(chunk.flags),
    }
    # Only where the robot asked for them.
    asked = {"request_id": chunk.request_id, "observation_age_s": chunk.observation_age_s}
    return reply | {name: value for name, value in asked.items() if value is not None}


def to_error(
    code: str,
    message: str,
    request_id: str | int | None = None,
    retry_after_s: float | None = None,
) -> dict[str, Any]:
    """The map of a refusal."""
    error = {"type": "error", "code": code, "message": message}
    more = {"request_id": request_id, "retry_after_s": retry_after_s}
    return error | {name: value for name, value in more.items() if value is not None}


def join(replies: Sequence[dict[str, Any]], form: Form) -> dict[str, Any]:
    """One answer to all observations of a message, in the form that they came in.

    replies: of `to_reply` and `to_error`, in order
    """
    if form == "one":
        return replies[0]
    if form == "batch" or any(reply.get("type") == "error" for reply in replies):
        return {"batch": list(replies)}
    first = replies[0]
    joined = first | {"actions": np.stack([reply["actions"] for reply in replies])}
    # In the order in which they were first met.
    joined["flags"] = list(dict.fromkeys(flag for reply in replies for flag in reply["flags"]))
    ages = [reply["observation_age_s"] for reply in replies if "observation_age_s" in reply]
    return joined | ({"observation_age_s": max(ages)} if ages else {})

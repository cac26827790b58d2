"""The request and reply maps that both doors share, and the way from one to the other."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from gwp.errors import ObservationError
from gwp.policy.contract import MAX_PROMPT, MAX_SIDE, PolicyContract
from gwp.protocol.handshake import short_name
from gwp.protocol.messages import ActionChunk, Observation
from gwp.protocol.msgpack_numpy import ProtocolError

_MAX_NAME = 256
_MAX_DEPTH = 3


def to_observation(
    message: object, contract: PolicyContract, embodiment: str | None = None
) -> Observation:
    """The observation in one request map, not yet checked against the contract.

    Cameras and state are read under their full key (`observation.images.top`), under
    `observation/top`, `images/top` or `top`, and in nested maps (`{"images": {"top": ...}}`).
    Images may be JPEG or PNG bytes. `embodiment` is used where the request names none. Raises
    ProtocolError or ObservationError naming the field.
    """
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ProtocolError("a request is one msgpack map with text keys")
    name = _text(message, "embodiment") or embodiment
    cameras = {short_name(key): key for key in contract.embodiment(name).cameras.values()}

    # Images and the state may stand anywhere in the map; of the others there is one place each.
    images: dict[str, Any] = {}
    state: Any = None
    for key, value in _flat(message):
        short = short_name(key)
        if short == "state":
            state = _state(value)
        elif short in cameras or _is_image(key, value):
            if short in images:
                raise ObservationError(
                    f"images: camera '{short}' came twice; send each camera once"
                )
            # Only cameras that the policy looks at are worth decoding.
            compressed = isinstance(value, bytes) and short in cameras
            images[short] = _decoded(short, value) if compressed else value
    if state is None:
        keys = ", ".join(sorted(message))[:200]
        raise ObservationError(
            f"state: missing (came: {keys}); send it as `state` or `observation.state`"
        )
    return Observation(
        images=images,
        state=state,
        prompt=_text(message, "prompt", MAX_PROMPT) or _text(message, "task", MAX_PROMPT) or "",
        embodiment=name,
        prefix_actions=message.get("prefix_actions"),
        delay=_integer(message, "delay") or 0,
        seed=_integer(message, "seed"),
        robot=_text(message, "robot") or "",
        session=_text(message, "session") or _text(message, "session_id") or "",
        policy=_text(message, "policy"),
        deadline_s=_seconds(message, "deadline_s"),
        observed_at=_seconds(message, "observed_at"),
    )


def to_reply(chunk: ActionChunk, infer_ms: float, previous_ms: float | None) -> dict[str, Any]:
    """The reply map of one chunk, with the keys of openpi first.

    policy_timing: `infer_ms` of the policy as a whole and one entry per phase
    server_timing: what the gateway saw
    """
    phases = {f"{name}_ms": ms for name, ms in chunk.timings.items() if name != "total"}
    server = {"infer_ms": infer_ms}
    if previous_ms is not None:
        server["prev_total_ms"] = previous_ms
    return {
        "actions": chunk.actions,
        "policy_timing": {"infer_ms": chunk.timings.get("total", infer_ms)} | phases,
        "server_timing": server,
        "policy_id": chunk.policy_id,
        "valid_from": chunk.valid_from,
        "flags": list(chunk.flags),
    }


def _flat(message: Mapping[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = []
    for key, value in message.items():
        if not isinstance(key, str):
            raise ProtocolError("maps need text keys")
        # A map nested without end would end Python's own stack.
        if isinstance(value, dict) and depth < _MAX_DEPTH:
            entries += _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            entries.append((prefix + key, value))
    return entries


def _is_image(key: str, value: object) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 2 and key != "prefix_actions"


def _state(value: object) -> Any:
    if isinstance(value, list):
        try:
            value = np.asarray(value, np.float32)
        except (ValueError, TypeError) as error:
            raise ObservationError(
                "state: got a list that is not all numbers; send float32 in robot units"
            ) from error
    # A batch of one, as LeRobot sends it.
    if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) == 1:
        return value[0]
    return value


def _decoded(name: str, data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            # The header's size is checked before a pixel is decoded.
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > MAX_SIDE * MAX_SIDE // 4:
                raise ObservationError(
                    f"images.{name}: got {width}x{height} pixels, expected less; scale it down"
                )
            return np.asarray(image.convert("RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        raise ObservationError(
            f"images.{name}: got {len(data)} bytes that are no JPEG or PNG image"
        ) from error


def _text(message: Mapping[str, Any], key: str, longest: int = _MAX_NAME) -> str | None:
    value = message.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > longest:
        raise ObservationError(
            f"{key}: got {type(value).__name__}, expected text of up to {longest} characters"
        )
    return value


def _integer(message: Mapping[str, Any], key: str) -> int | None:
    value = message.get(key)
    if value is None:
        return None
    # To Python True is the number 1.
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ObservationError(f"{key}: got {type(value).__name__}, expected a whole number")
    return int(value)


def _seconds(message: Mapping[str, Any], key: str) -> float | None:
    value = message.get(key)
    if value is None:
        return None
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not 0 < float(value) < float("inf"):
        raise ObservationError(f"{key}: expected a positive number of seconds")
    return float(value)

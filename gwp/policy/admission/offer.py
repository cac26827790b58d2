"""What an endpoint says of a policy at the handshake, as plain numbers, texts, lists and maps."""

from typing import Any

from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.errors import DataError
from gwp.model.config import ActionForm, Visibility
from gwp.policy.admission.plausible import units_of_state
from gwp.protocol.fields import FIELDS

DIALECTS = ("openpi", "vllm-omni")
"""Forms of request that the endpoint answers on its websocket."""
_JPEG_QUALITY = 95
_BLEND = 4
"""Control steps over which two chunks are blended where no real-time chunking was trained."""


def offer(
    policy_id: str,
    family: str,
    visibility: Visibility,
    actions: ActionForm,
    canvas: Canvas,
    run_id: str,
    trained_delay: int | None,
) -> dict[str, Any]:
    """What is the same for every robot of a policy."""
    return {
        "policy_id": policy_id,
        "family": family,
        "visibility": visibility,
        # Not `actions`, by which replies are known.
        "action_form": actions,
        # What robots share: each step, or whole requests, which come in between chunks.
        "batching": "steps" if visibility == "action-centred" else "requests",
        "run_id": run_id,
        "dialects": list(DIALECTS),
        "canvas": canvas.model_dump(mode="json"),
        "trained_delay": trained_delay,
        "fields": list(FIELDS),
    }


def describe(
    embodiment: Embodiment,
    limits: Limits | None,
    canvas: Canvas,
    chunk: int,
    trained_delay: int | None,
) -> dict[str, Any]:
    """What one robot has to know. limits: those that hold for it; chunk: actions per reply."""
    units = units_of_state(embodiment)
    # More steps than a chunk has behind `replan` cannot be promised.
    room = chunk - embodiment.replan
    return {
        "action_horizon": chunk,
        "action_dim": len(embodiment.action_names),
        "action_names": list(embodiment.action_names),
        "action_units": list(embodiment.action_units),
        "state_dim": len(embodiment.state_names),
        "state_names": list(embodiment.state_names),
        "state_units": list(units) if any(units) else [],
        # What a robot that holds repeats, and what it sets to zero; what it may blend, and not.
        "resample": list(embodiment.resampling),
        "kinds": sorted(embodiment.kinds),
        "fps": embodiment.fps,
        "rates": {"fps": embodiment.fps},
        "chunk": chunk,
        "replan": embodiment.replan,
        "cameras": list(embodiment.cameras.values()),
        "images": _images(embodiment, canvas),
        "limits": None if limits is None else _limits(limits),
        "recommend": {
            "jpeg_quality": _JPEG_QUALITY,
            # Pictures are scaled here as training did, to the same numbers.
            "resize": False,
            "delay": min(trained_delay or 0, room),
            "blend": 0 if trained_delay else min(_BLEND, room),
        },
    }


def _images(embodiment: Embodiment, canvas: Canvas) -> dict[str, dict[str, int]]:
    """Camera -> size of its part of the canvas: what the policy looks at."""
    try:
        boxes = canvas.boxes(embodiment.cameras)
    except DataError:
        # Such a policy cannot act; that is told where it is asked to.
        return {}
    sizes = {embodiment.cameras[slot]: box[2:] for slot, box in boxes.items()}
    return {camera: {"height": h, "width": w} for camera, (w, h) in sizes.items()}


def _limits(limits: Limits) -> dict[str, list[float] | None]:
    rows = {
        "lower": limits.lower,
        "upper": limits.upper,
        "velocity": limits.velocity,
        "acceleration": limits.acceleration,
        "jump": limits.jump,
    }
    return {name: None if row is None else list(row) for name, row in rows.items()}

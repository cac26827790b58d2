"""The one internal request and reply. Every door of the endpoint is a thin translation onto
these two.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What one robot sees and feels now, and what it is asked to do.

    images:         camera name (as in the embodiment) -> uint8 `[H, W, 3]`, RGB
    state:          float32 `[d_state]`, robot units
    prompt:         the instruction; "" means none
    prefix_actions: float32 `[k, d_action]`, robot units: actions already committed (real-time
    chunking), or None
    delay:          control steps until the reply can take effect; the first `delay` rows of `prefix_actions` are kept
    seed:           noise seed; the same seed and observation give the same chunk. None: 0
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    prompt: str = ""
    embodiment: str | None = None
    prefix_actions: np.ndarray | None = None
    delay: int = 0
    seed: int | None = None
    robot: str = ""
    session: str = ""
    policy: str | None = None
    deadline_s: float | None = None
    observed_at: float | None = None


@dataclass(frozen=True)
class ActionChunk:
    """The answer: `actions` float32 `[p, d_action]` in robot units, one row per control step
    from `valid_from` on.

    timings: milliseconds per phase (preprocess, vae, text, prefix, denoise, postprocess,
    total).
    flags:   what the safety envelope changed, e.g. "clipped:gripper"; empty when nothing.
    """

    actions: np.ndarray
    policy_id: str
    valid_from: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

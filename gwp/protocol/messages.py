"""The one internal request and reply. Every door of the endpoint is a thin translation onto
these two.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from gwp.protocol.report import Report


@dataclass(frozen=True)
class Observation:
    """What one robot sees and feels now, and what it is asked to do.

    images:         camera name (as in the embodiment) -> uint8 `[H, W, 3]`, RGB
    state:          float32 `[d_state]`, robot units
    prompt:         the instruction; "" means none
    prefix_actions: float32 `[k, d_action]`, robot units: actions already committed (real-time
                    chunking), or None
    delay:          control steps until the reply can take effect; the first `delay` rows of
                    `prefix_actions` are kept
    seed:           noise seed; the same seed and observation give the same chunk. None: 0
    robot, session, episode: who asks; text of the robot's choosing
    policy:         id of the only policy that may answer (sha256, or a prefix of it); None: any
    deadline_s:     seconds from the arrival after which the answer is worthless
    observed_at:    when the observation was made, seconds since the epoch, on the endpoint's clock
    max_age_s:      older than this when the chunk would become valid, it is refused, seconds
    executed_action: float32 `[d_action]`, robot units: what the robot executed last
    steps_left:     rows that the robot still has
    rate:           its control rate, Hz; with `steps_left` it says when the robot runs dry
    report:         what only the robot sees of itself, since the request before; None: nothing
    request_id:     comes back in the answer: text of up to 64 characters, or a number
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
    episode: str = ""
    executed_action: np.ndarray | None = None
    max_age_s: float | None = None
    steps_left: int | None = None
    rate: float | None = None
    report: Report | None = None
    request_id: str | int | None = None


@dataclass(frozen=True)
class ActionChunk:
    """The answer: `actions` float32 `[p, d_action]` in robot units, one row per control step
    from `valid_from` on.

    timings: milliseconds per phase (preprocess, vae, text, prefix, denoise, postprocess,
    total).
    flags:   what the safety envelope changed, e.g. "clipped:gripper"; empty when nothing.
    policy_version, policy_alias, run_id: where the policy comes from; "" when not known.
    request_id: that of the observation.
    observation_age_s: age of the observation when the chunk was ready, seconds; None: it did not
             say when it was made.
    """

    actions: np.ndarray
    policy_id: str
    valid_from: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    policy_version: str = ""
    policy_alias: str = ""
    run_id: str = ""
    request_id: str | int | None = None
    observation_age_s: float | None = None


def dry_in_s(observation: Observation) -> float:
    """Seconds until the robot has no action left, as it says; infinite where it does not."""
    if observation.steps_left is None or not observation.rate:
        return math.inf
    return observation.steps_left / observation.rate

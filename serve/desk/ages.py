"""How old an observation is, and what comes of it."""

import time

from gwp.protocol.messages import Observation
from serve.config import LimitsConfig
from serve.refusal import RefusedError


def age_of(observation: Observation) -> float | None:
    """Seconds since it was made, on this machine's clock; negative: it is yet to come. None: it
    does not say.
    """
    made = observation.observed_at
    return None if made is None else time.time() - made


def judge_age(observation: Observation, limits: LimitsConfig) -> tuple[str, ...]:
    """Flags for an observation as old as it is now: `stale`, `future`. RefusedError `stale`
    where the endpoint, or the robot itself, does not want such an answer.
    """
    age = age_of(observation)
    if age is None:
        return ()
    if age < -limits.max_ahead_s:
        return _found(
            limits,
            "future",
            f"observed_at: {-age:.3g} s in the future; set the robot's clock, or send what the "
            "`clock` endpoint tells (gwp.client does)",
        )
    own = observation.max_age_s
    if own is not None and age > own:
        raise RefusedError("stale", f"the observation is {age:.3g} s old, max_age_s is {own:g}")
    most = limits.max_ages_s.get(observation.embodiment or "", limits.max_age_s)
    if age > most:
        return _found(
            limits,
            "stale",
            f"the observation is {age:.3g} s old, the endpoint allows {most:g} "
            "(limits.max_age_s); observe again",
        )
    return ()


def _found(limits: LimitsConfig, flag: str, message: str) -> tuple[str, ...]:
    if limits.on_stale == "refuse":
        raise RefusedError("stale", message)
    return (flag,)

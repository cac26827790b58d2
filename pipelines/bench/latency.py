"""Acting against joint decoding on one observation."""

from dataclasses import dataclass

from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation


@dataclass(frozen=True)
class Latency:
    """Milliseconds of each call, interleaved in one run."""

    act_ms: list[float]
    joint_ms: list[float]


def latency(policy: Policy, observation: Observation, repeats: int) -> Latency:
    """Acting and joint decoding of the same observation, one after the other, after two untimed
    calls of each.
    """
    act_ms, joint_ms = [], []
    for i in range(repeats + 2):
        act = policy.act(observation).timings["total"]
        joint = policy.act_joint(observation)[0].timings["total"]
        if i >= 2:
            act_ms.append(act)
            joint_ms.append(joint)
    return Latency(act_ms, joint_ms)

"""A trained policy: load it, ask it for action chunks, and serve many robots with it at once.

    policy = Policy.load("s3://bucket/bundles/policy-1")
    chunk = policy.act(observation)                  one robot
    with Engine(policy) as engine:                   many robots: continuous batching
        future = engine.submit(observation)

    bundle, locate              the artefact, and where it is
    contract, composed, inputs  what a robot sends, checked, and as numbers
    admission                   the checks: of fields, and of what an endpoint asks beyond the bundle
    envelope                    what a robot gets, within limits
    solver, graphs              the numbers; they know of neither way to act
    policy                      acting for one robot
    batching                    acting for many

Names are imported on first use: a gateway reads `gwp.policy.contract` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# For type checkers and editors; at run time `__getattr__` below imports.
if TYPE_CHECKING:
    from gwp.policy.batching.engine import Engine
    from gwp.policy.batching.schedule import BatchingConfig
    from gwp.policy.bundle import Bundle, PolicyConfig, read_bundle
    from gwp.policy.contract import PolicyContract
    from gwp.policy.policy import Observed, Policy
    from gwp.protocol.messages import ActionChunk, Observation

__all__ = [
    "ActionChunk",
    "BatchingConfig",
    "Bundle",
    "Engine",
    "Observation",
    "Observed",
    "Policy",
    "PolicyConfig",
    "PolicyContract",
    "read_bundle",
]

# Public name -> the module that is imported when it is first asked for.
_MODULES = {
    "ActionChunk": "gwp.protocol.messages",
    "Bundle": "gwp.policy.bundle",
    "Engine": "gwp.policy.batching.engine",
    "BatchingConfig": "gwp.policy.batching.schedule",
    "Observation": "gwp.protocol.messages",
    "Observed": "gwp.policy.policy",
    "Policy": "gwp.policy.policy",
    "PolicyContract": "gwp.policy.contract",
    "PolicyConfig": "gwp.policy.bundle",
    "read_bundle": "gwp.policy.bundle",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'gwp.policy' has no attribute {name!r}")


def __dir__() -> list[str]:
    # For completion: what was not imported yet is no global.
    return sorted({*globals(), *__all__})

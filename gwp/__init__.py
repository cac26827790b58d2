"""GigaWorld-Policy: train, serve and talk to an action-centred world-action model.

`gwp.Policy` is imported on first use, so that `gwp.client` and `gwp.protocol` work on a robot
without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwp.policy.policy import Policy

__all__ = ["Policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Policy":
        from gwp.policy.policy import Policy

        return Policy
    raise AttributeError(f"module 'gwp' has no attribute {name!r}")

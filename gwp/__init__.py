"""GigaWorld-Policy: train, serve and talk to an action-centred world-action model.

Names are imported on first use, so that `gwp.client` and `gwp.protocol` work on a robot without
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gwp.errors import GwpError
    from gwp.policy import BatchingConfig, Engine, Policy
    from gwp.protocol.messages import ActionChunk, Observation

__all__ = ["ActionChunk", "BatchingConfig", "Engine", "GwpError", "Observation", "Policy"]
__version__ = "0.1.0"

_MODULES = {
    "ActionChunk": "gwp.protocol.messages",
    "Engine": "gwp.policy",
    "BatchingConfig": "gwp.policy",
    "GwpError": "gwp.errors",
    "Observation": "gwp.protocol.messages",
    "Policy": "gwp.policy",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'gwp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

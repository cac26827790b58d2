"""Weights that are no numbers, found before a robot is."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gwp.errors import BundleError

_SHOWN = 3


def check_finite(folder: Path, parts: Mapping[str, object]) -> None:
    """BundleError naming tensors that hold NaN or infinity.

    parts: name of a part of the bundle -> what was loaded of it; one that is no module, or has
    modules inside, is looked through. Every weight is read once, nothing is copied.
    """
    broken = [
        f"{part}/{name}"
        for part, loaded in parts.items()
        for name, tensor in _tensors(loaded)
        if tensor.is_floating_point() and not _finite(tensor)
    ]
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise BundleError(
            f"{folder}: NaN or infinity in {', '.join(broken[:_SHOWN])}{more}; the run diverged, "
            "so export an earlier checkpoint"
        )


def _tensors(loaded: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(loaded, nn.Module):
        yield from loaded.named_parameters()
        yield from loaded.named_buffers()
        return
    for name, value in vars(loaded).items() if hasattr(loaded, "__dict__") else ():
        if isinstance(value, nn.Module):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value))
        elif isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from ((n, tensor) for n, tensor in value.items() if isinstance(tensor, Tensor))


def _finite(tensor: Tensor) -> bool:
    # A sum is one pass without a second tensor, and NaN or infinite if a part of it is. Of large
    # finite numbers it may be infinite too: only then each is looked at.
    total = tensor.detach().sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())

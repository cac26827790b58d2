"""Codecs on disk: their descriptions, their weights, and the digest of those."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gwp import storage
from gwp.errors import GwpError
from gwp.model.shards import shard_names


def describe(folder: str | Path, name: str) -> dict[str, Any]:
    """What `codec.json` or `text.json` says about the codec in a local folder; GwpError when it
    is not there or says no `kind`.
    """
    if storage.is_remote(str(folder)):
        raise GwpError(f"{folder}: codecs load from a local folder; download it first")
    path = Path(folder) / name
    if not path.is_file():
        raise GwpError(f"{folder}: no {name}; this is not a folder that a codec was saved to")
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise GwpError(f"{path}: not JSON ({error}); save the codec again") from error
    if not isinstance(description, dict) or "kind" not in description:
        raise GwpError(f"{path}: names no 'kind'; save the codec again")
    return description


def pretrained(load: Callable[..., Any], folder: Path, all_used: bool, **options: Any) -> Any:
    """A diffusers or transformers model from a local folder of safetensors, every weight of it
    from there.

    Both libraries only warn about weights that are absent and leave them random. `all_used`:
    weights that the model does not take are refused too. GwpError for anything that is not a
    whole checkpoint.
    """
    # Neither library looks where the names in an index lead.
    for index in folder.glob("*.index.json"):
        shard_names(index)
    try:
        model, loading = load(
            str(folder),
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise GwpError(
            f"{folder}: does not load ({_first_line(error)}); copy config.json and its "
            "safetensors again"
        ) from error
    # Missing weights are random now; the model must not leave this function with them.
    _refuse(folder, loading["missing_keys"], "lack")
    if all_used:
        _refuse(folder, loading["unexpected_keys"], "do not belong to config.json:")
    return model


def _refuse(folder: Path, names: Iterable[str], what: str) -> None:
    if wrong := sorted(names):
        raise GwpError(
            f"{folder}: the weights {what} {wrong[0]}"
            + (f" and {len(wrong) - 1} more" if wrong[1:] else "")
            + "; copy config.json and its safetensors again"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def weights_digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 hex over a description and tensors with names, dtypes and shapes; independent of
    device and of order.
    """
    state = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        # As bytes: numpy has no bfloat16.
        numbers = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(numbers.view(torch.uint8).numpy().data)
    return state.hexdigest()

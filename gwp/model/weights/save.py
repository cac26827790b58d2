"""Checkpoint folders of the published form, written one tensor at a time."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.config import ModelConfig
from gwp.model.weights.files import FILE, STEM
from gwp.model.weights.names import published_name

_SHARD_BYTES = 8 << 30
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_weights(folder: str | Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint folder from parameters in our names."""
    named = {published_name(n, config.family): t.detach() for n, t in tensors.items()}
    write_folder(folder, config, named, named.__getitem__)


def write_folder(
    folder: str | Path,
    config: ModelConfig,
    plan: Mapping[str, Tensor],
    value: Callable[[str], Tensor],
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write config.json and safetensors, in shards of `shard_bytes` at most.

    plan:  published name -> a tensor of the shape and dtype to write; on the meta device when
           the values are yet to be made
    value: gives each tensor when its turn comes, so that no more than one needs to be in memory
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_published(), indent=1))
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in plan.items():
        if size and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        _write_file(folder / FILE, shards[0], value)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"{STEM}-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, value)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(t.nbytes for t in plan.values())
    (folder / f"{FILE}.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1)
    )


def _write_file(path: Path, plan: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> None:
    """One safetensors file. The library's own writer wants all tensors at once; the format is a
    length, a JSON header and the bytes.
    """
    # Widest numbers first: each tensor then starts at a multiple of its own width.
    ordered = dict(sorted(plan.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in ordered.items():
        if tensor.dtype not in _DTYPES:
            raise GwpError(
                f"{path}: {name} is {tensor.dtype}; checkpoints hold floating point only"
            )
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    # Padded, so that the numbers begin at a multiple of their width, too.
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Under its own name only when it is whole.
    scratch = path.with_suffix(f".part-{os.getpid()}")
    with open(scratch, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, planned in ordered.items():
            tensor = value(name).detach().to(device="cpu", dtype=planned.dtype).contiguous()
            if tensor.shape != planned.shape:
                raise ValueError(
                    f"{name}: planned {tuple(planned.shape)}, got {tuple(tensor.shape)}"
                )
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    scratch.replace(path)

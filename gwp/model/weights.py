"""Checkpoint folders: `config.json` and safetensors, single or sharded, in the published names.

Loading is strict: every missing, unexpected or misshapen tensor is named and refused.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.config import CLASS_NAMES, Family, ModelConfig
from gwp.model.transformer import WorldActionTransformer

FILE = "diffusion_pytorch_model.safetensors"
_SHARD_BYTES = 8 << 30
_RENAMES: dict[Family, tuple[tuple[str, str], ...]] = {
    "gwp0": (("conditions.shared.", "condition_embedder."), (".experts.shared.", "."), ("out_tables.shared.value", "scale_shift_table")),
    "gwp05": (
        ("conditions.visual.", "condition_embedder."),
        ("conditions.action.", "action_condition_embedder."),
        (".experts.visual.", ".visual_expert."),
        (".experts.action.", ".action_expert."),
        ("out_tables.visual.value", "scale_shift_table"),
        ("out_tables.action.value", "action_scale_shift_table"),
    ),
}


def published_name(name: str, family: Family) -> str:
    """Name of a parameter of ours in published checkpoints."""
    name = name.replace("scale_shift_table.value", "scale_shift_table")
    for ours, theirs in _RENAMES[family]:
        if ours in name:
            return name.replace(ours, theirs)
    return name


def read_config(folder: str | Path) -> ModelConfig:
    """Model configuration from a published `config.json`; GwpError when it is absent or of an unknown class."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise GwpError(f"{folder}: no config.json; give a checkpoint folder (config.json and safetensors)")
    raw: dict[str, Any] = json.loads(path.read_text())
    family = CLASS_NAMES.get(raw.get("_class_name", ""))
    if family is None:
        raise GwpError(f"{path}: _class_name {raw.get('_class_name')!r} is not one of {sorted(CLASS_NAMES)}")
    same = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "num_embodiments", "text_dim",
            "freq_dim", "patch_size", "rope_max_seq_len", "eps", "action_expert_dim", "action_ffn_dim")
    fields = {key: raw[key] for key in same if raw.get(key) is not None}
    return ModelConfig(family=family, action_channels=raw["in_action_channels"], **fields)


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, through the shard index when there is one."""
    folder = Path(folder)
    index = folder / f"{FILE}.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise GwpError(f"{folder}: shards named in the index are missing: {', '.join(missing)}")
        return [folder / n for n in names]
    if not (folder / FILE).is_file():
        raise GwpError(f"{folder}: neither {FILE} nor its shard index is there")
    return [folder / FILE]


def iterate_tensors(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint folder, one at a time, so that host memory stays near one tensor."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118  safe_open is no mapping
                yield name, handle.get_tensor(name)


def load_into(model: WorldActionTransformer, folder: str | Path) -> None:
    """Copy a checkpoint into `model`; GwpError lists every tensor that is missing, unexpected or of another shape."""
    targets = {published_name(n, model.config.family): p for n, p in model.named_parameters()}
    problems, seen = [], set()
    with torch.no_grad():
        for name, tensor in iterate_tensors(folder):
            seen.add(name)
            if name not in targets:
                problems.append(f"unexpected {name} {tuple(tensor.shape)}")
            elif targets[name].shape != tensor.shape:
                problems.append(f"misshapen {name}: file {tuple(tensor.shape)}, model {tuple(targets[name].shape)}")
            else:
                targets[name].copy_(tensor)
    problems += [f"missing {name}" for name in targets if name not in seen]
    if problems:
        raise GwpError(f"{folder} does not fit a {model.config.family} model:\n  " + "\n  ".join(problems))


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> WorldActionTransformer:
    """A model in eval mode from a checkpoint folder."""
    with torch.device("meta"):
        model = WorldActionTransformer(read_config(folder))
    model = model.to_empty(device=device).to(dtype)
    load_into(model, folder)
    return model.eval()


def build_model(config: ModelConfig, seed: int) -> WorldActionTransformer:
    """A freshly initialised model; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WorldActionTransformer(config)


def save_weights(folder: str | Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint folder from parameters in our names; sharded when it would pass 8 GiB a file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_published(), indent=1))
    named = {published_name(n, config.family): t.detach().contiguous() for n, t in tensors.items()}
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named.items():
        if size and size + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(named, folder / FILE)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(t.nbytes for t in named.values())
    (folder / f"{FILE}.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))

"""Checkpoints of every published form, made from a tiny model, with names written out here once
more.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gwp.model.config import ModelConfig
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights import published_name

STEM = "diffusion_pytorch_model"
NATIVE_TOP = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "patch_embedding": "patch_embedding",
}
NATIVE_BLOCK = {
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    **{
        f"{ours}.{a}": f"{theirs}.{b}"
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for a, b in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "o"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
}


def published(model: WorldActionTransformer) -> dict[str, Tensor]:
    return {
        published_name(n, model.config.family): p.detach().clone()
        for n, p in model.named_parameters()
    }


def wan(model: WorldActionTransformer) -> dict[str, Tensor]:
    """The dense model's trunk, as diffusers names it."""
    return {n: t for n, t in published(model).items() if not n.startswith("action_")}


def native(model: WorldActionTransformer) -> dict[str, Tensor]:
    """The dense model's trunk in the names of Wan's authors."""
    out = {}
    for name, tensor in wan(model).items():
        if name == "scale_shift_table":
            out["head.modulation"] = tensor
        elif not name.startswith("blocks."):
            stem, _, kind = name.rpartition(".")
            out[f"{NATIVE_TOP[stem]}.{kind}"] = tensor
        else:
            _, i, rest = name.split(".", 2)
            stem, _, kind = rest.rpartition(".")
            out[
                f"blocks.{i}.modulation"
                if rest == "scale_shift_table"
                else f"blocks.{i}.{NATIVE_BLOCK[stem]}.{kind}"
            ] = tensor
    return out


def march(model: WorldActionTransformer) -> dict[str, Tensor]:
    """A dense model of one embodiment with plain action projections."""
    out = wan(model)
    for side, shared in (("action_encoder", 0), ("action_decoder", 4)):
        module = getattr(model, side)
        for i, part in ((0, "in_proj"), (2, "mid_proj"), (4, "out_proj")):
            weight, bias = (
                getattr(getattr(module, part), kind).detach().clone() for kind in ("weight", "bias")
            )
            if i == shared:
                assert weight.shape[0] == bias.shape[0] == 1
                weight, bias = weight[0].T.contiguous(), bias[0]
            out |= {f"{side}.{i}.weight": weight, f"{side}.{i}.bias": bias}
    return out


def native_config(config: ModelConfig) -> dict[str, object]:
    return {
        "_class_name": "WanModel",
        "dim": config.width,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_channels,
        "out_dim": config.in_channels,
        "eps": config.eps,
        "text_len": 512,
        "model_type": "ti2v",
    }


def wan_config(config: ModelConfig) -> dict[str, object]:
    about = {
        k: v
        for k, v in config.to_published().items()
        if "action" not in k and k != "num_embodiments"
    }
    return about | {"_class_name": "WanTransformer3DModel"}


def control(model: WorldActionTransformer) -> dict[str, Tensor]:
    """Wan that is also shown a control video, a mask of four channels and a picture, whose channels
    stand behind the latents.
    """
    out = wan(model)
    weight = out["patch_embedding.weight"]
    more = torch.randn(weight.shape[0], 2 * weight.shape[1] + 4, *weight.shape[2:])
    return out | {"patch_embedding.weight": torch.cat([weight, more], dim=1)}


def control_config(config: ModelConfig) -> dict[str, object]:
    return wan_config(config) | {"in_channels": 3 * config.in_channels + 4}


def gigaworld(model: WorldActionTransformer) -> dict[str, Tensor]:
    """The same, with embeddings of past frames of three resolutions."""
    out = control(model)
    out["norm_out.scale_shift_table"] = out.pop("scale_shift_table")
    width, channels = out["patch_embedding.weight"].shape[0], model.config.in_channels
    for name, times in (("short", 1), ("mid", 2), ("long", 4)):
        patch = [times * side for side in model.config.patch_size]
        out[f"patch_{name}.weight"] = torch.randn(width, channels, *patch)
        out[f"patch_{name}.bias"] = torch.randn(width)
    return out


def gigaworld_config(config: ModelConfig) -> dict[str, object]:
    about = control_config(config)
    for key in ("image_dim", "rope_max_seq_len", "pos_embed_seq_len"):
        about.pop(key)
    return about | {
        "_class_name": "GigaworldTransformer3DModelFunCtrl",
        "rope_dim": [44, 42, 42],
        "rope_theta": 10000.0,
        "guidance_cross_attn": True,
        "zero_history_timestep": True,
        "has_multi_term_memory_patch": True,
        "is_amplify_history": False,
        "history_scale_mode": "per_head",
    }


def write(
    folder: Path,
    tensors: dict[str, Tensor],
    about: dict[str, object] | None,
    suffix: str = ".safetensors",
    shards: int = 1,
    index: bool = True,
    wrapper: str | None = None,
    stem: str = STEM,
) -> Path:
    """A folder of one or more weight files; returns it. `about` None: no config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if about is not None:
        (folder / "config.json").write_text(json.dumps(about))
    names = list(tensors)
    parts = [{n: tensors[n] for n in names[i::shards]} for i in range(shards)]
    files = [
        f"{stem}{suffix}" if shards == 1 else f"{stem}-{i:05d}-of-{shards:05d}{suffix}"
        for i in range(1, shards + 1)
    ]
    for file, part in zip(files, parts, strict=True):
        if suffix == ".safetensors":
            save_file({n: t.contiguous() for n, t in part.items()}, folder / file)
        else:
            torch.save({wrapper: part, "step": 7} if wrapper else part, folder / file)
    if shards > 1 and index:
        where = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        (folder / f"{stem}{suffix}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": where})
        )
    return folder

"""Names of tensors: ours, the published ones, and those of older and other releases.

The published July names are the common tongue: every checkpoint is read into them. Sources: the
released GWP-0.5, the two releases of GWP-0 (March: plain action projections; July: one per
embodiment), Wan 2.2 in diffusers' and in its authors' names, GigaWorld-1 (configuration, README and
names of open-gigaai/giga-world-1, Apache-2.0).
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gwp.errors import GwpError
from gwp.model.config import CLASS_NAMES, Family

GIGAWORLD = "GigaworldTransformer3DModelFunCtrl"
SourceFamily = Literal["gwp05", "gwp0", "wan"]
SOURCE_CLASSES: dict[str, SourceFamily] = {
    **CLASS_NAMES,
    "WanTransformer3DModel": "wan",
    "WanModel": "wan",
    GIGAWORLD: "wan",
}
PATCH = "patch_embedding.weight"
ACTION_IO = ("action_encoder.", "action_decoder.")

_OURS: dict[Family, tuple[tuple[str, str], ...]] = {
    "gwp0": (
        ("conditions.shared.", "condition_embedder."),
        (".experts.shared.", "."),
        ("out_tables.shared.value", "scale_shift_table"),
    ),
    "gwp05": (
        ("conditions.visual.", "condition_embedder."),
        ("conditions.action.", "action_condition_embedder."),
        (".experts.visual.", ".visual_expert."),
        (".experts.action.", ".action_expert."),
        ("out_tables.visual.value", "scale_shift_table"),
        ("out_tables.action.value", "action_scale_shift_table"),
    ),
}
_NATIVE = (
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+\.)self_attn\.", r"\1attn1."),
    (r"^(blocks\.\d+\.)cross_attn\.", r"\1attn2."),
    (r"^(blocks\.\d+\.attn[12]\.)([qkv])\.", r"\1to_\2."),
    (r"^(blocks\.\d+\.attn[12]\.)o\.", r"\1to_out.0."),
    # The affine norm before cross-attention is the third there and the second here.
    (r"^(blocks\.\d+\.)norm3\.", r"\1norm2."),
    (r"^(blocks\.\d+\.)ffn\.0\.", r"\1ffn.net.0.proj."),
    (r"^(blocks\.\d+\.)ffn\.2\.", r"\1ffn.net.2."),
    (r"^(blocks\.\d+\.)modulation$", r"\1scale_shift_table"),
)
# Its embeddings of past frames, in three resolutions; our first frame is embedded as all others.
_HISTORY = ("patch_short.", "patch_mid.", "patch_long.")
_MARCH = {".0.": ".in_proj.", ".2.": ".mid_proj.", ".4.": ".out_proj."}
# Those that July made embodiment-specific: stored [E, in, out], where a plain linear layer is
# [out, in].
_MARCH_SHARED = ("action_encoder.in_proj.", "action_decoder.out_proj.")


@dataclass(frozen=True)
class Form:
    """What a checkpoint is, and in whose names.

    channels: of a model that is shown more than the noisy latents (a control video, say): how many
              channels it takes, and how many of them, the first, are those latents; None: all are
    """

    family: SourceFamily
    naming: Literal["published", "march", "native", "gigaworld"] = "published"
    channels: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        if self.naming == "gigaworld":
            return "GigaWorld-1"
        if self.family == "wan":
            names = "Wan, native names" if self.naming == "native" else "Wan, diffusers names"
            return f"{names}, with control" if self.channels else names
        if self.family == "gwp0":
            return "GWP-0 (March)" if self.naming == "march" else "GWP-0 (July)"
        return "GWP-0.5"


def published_name(name: str, family: Family) -> str:
    """Name of a parameter of ours in published checkpoints."""
    # Ours is a module around the tensor (`ModulationTable`), theirs the tensor.
    name = name.replace("scale_shift_table.value", "scale_shift_table")
    for ours, theirs in _OURS[family]:
        if ours in name:
            return name.replace(ours, theirs)
    return name


def detect(config: dict[str, Any], names: Collection[str], source: str) -> Form:
    """Family by `_class_name` of config.json (`config`, may be empty), else by the names; naming
    by the names.

    GwpError, which names `source`, for a class that is not known, or when class and names
    contradict each other.
    """
    # Each release has names that no other has.
    mixture = any(".visual_expert." in n for n in names)
    march = any(re.match(r"action_(encoder|decoder)\.[024]\.", n) for n in names)
    july = any(n.startswith(("action_encoder.in_proj.", "action_decoder.in_proj.")) for n in names)
    native = any(".self_attn." in n for n in names)
    gigaworld = any(n.startswith(_HISTORY) for n in names)
    by_names: SourceFamily = "gwp05" if mixture else "gwp0" if march or july else "wan"
    name = config.get("_class_name")
    if name is None and not any(n.startswith("blocks.") for n in names):
        raise GwpError(
            f"{source}: no transformer blocks among its {len(names)} tensors; is this the "
            "transformer's folder?"
        )
    if name is not None and name not in SOURCE_CLASSES:
        raise GwpError(f"{source}: _class_name {name!r} is not one of {', '.join(SOURCE_CLASSES)}")
    family = by_names if name is None else SOURCE_CLASSES[name]
    if mixture != (family == "gwp05"):
        raise GwpError(
            f"{source}: config.json says {name}, but the weights "
            f"{'hold' if mixture else 'do not hold'} two experts a layer; "
            "put the config.json that belongs to the weights beside them"
        )
    channels = _channels(config) if family == "wan" else None
    if name == GIGAWORLD or (name is None and gigaworld):
        if not all(type(config.get(key)) is int for key in ("in_channels", "out_channels")):
            raise GwpError(
                f"{source}: no config.json with numbers for in_channels and out_channels, which tell "
                "how many channels of a GigaWorld-1 are latents; put the one of the weights beside "
                "them"
            )
        return Form(family, "gigaworld", channels)
    return Form(family, "march" if march else "native" if native else "published", channels)


def _channels(config: dict[str, Any]) -> tuple[int, int] | None:
    """`Form.channels`; without a configuration a model is one of latents alone."""
    taken = config.get("in_channels", config.get("in_dim"))
    made = config.get("out_channels", config.get("out_dim"))
    if isinstance(taken, int) and isinstance(made, int) and 0 < made < taken:
        return taken, made
    return None


def is_left_out(form: Form, name: str) -> bool:
    """Whether a tensor of a checkpoint has no place in a model of ours."""
    return form.naming == "gigaworld" and name.startswith(_HISTORY)


def canonical(form: Form, name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor of a checkpoint under its published name and in its published layout."""
    if form.naming == "gigaworld" and name == "norm_out.scale_shift_table":
        name = "scale_shift_table"
    if form.naming == "native":
        for pattern, replacement in _NATIVE:
            name = re.sub(pattern, replacement, name)
    elif form.naming == "march" and name.startswith(ACTION_IO):
        for march, july in _MARCH.items():
            name = name.replace(march, july)
        if name.startswith(_MARCH_SHARED):
            tensor = (tensor.T if tensor.ndim == 2 else tensor)[None].contiguous()
    if form.channels and name == PATCH and tensor.ndim == 5:
        taken, latents = form.channels
        # What the model makes of latents where all else that it may be shown is zero.
        if tensor.shape[1] == taken:
            tensor = tensor[:, :latents].contiguous()
    return name, tensor


def dense_name(name: str) -> str:
    """Name, in a dense checkpoint, of the tensor that a mixture's tensor is made from."""
    name = re.sub(r"\.(visual|action)_expert\.", ".", name)
    for mixture, dense in (
        ("action_condition_embedder.", "condition_embedder."),
        ("state_encoder.", "action_encoder."),
    ):
        if name.startswith(mixture):
            return dense + name.removeprefix(mixture)
    return "scale_shift_table" if name == "action_scale_shift_table" else name


def visual_name(name: str) -> str:
    """Name, in a mixture, of a dense checkpoint's tensor: the visual expert's."""
    return re.sub(r"^(blocks\.\d+\.)", r"\1visual_expert.", name)

"""A checkpoint as found: its family, its widths, and how it fits the key set of a model.

Widths come from the tensors. What tensors cannot tell (width of a head, epsilon, rotary extent)
comes from config.json, else from the released models, and is named as assumed.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gwp.errors import GwpError
from gwp.model.config import ModelConfig, visibility_named
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights.files import TensorFile, open_files, weight_files
from gwp.model.weights.names import (
    ACTION_IO,
    PATCH,
    Form,
    SourceFamily,
    canonical,
    detect,
    is_left_out,
    published_name,
)

_RELEASED_HEAD = 128
_UNSEEN = {"attention_head_dim": _RELEASED_HEAD, "eps": 1e-6, "rope_max_seq_len": 1024}
_SEEN = (
    "num_layers",
    "num_attention_heads",
    "ffn_dim",
    "in_channels",
    "text_dim",
    "freq_dim",
    "patch_size",
    "action_channels",
    "num_embodiments",
    "action_expert_dim",
    "action_ffn_dim",
)
# Names of the same widths in config.json, published and native Wan.
_ALIASES = {
    "in_action_channels": "action_channels",
    "num_heads": "num_attention_heads",
    "in_dim": "in_channels",
}
_BLOCK = re.compile(
    r"blocks\.(\d+)\.(?:(?:visual|action)_expert\.)?(?:attn[12]|norm2|ffn|scale_shift_table)\b"
)


@dataclass(frozen=True)
class Checkpoint:
    """See the module; nothing is read until `read` asks for it.

    path:          folder or file
    tensors:       published name -> tensor on the meta device
    widths:        fields of `ModelConfig`; without action channels and embodiments for plain Wan,
                   with visibility and form of the actions where config.json names them
    assumed:       the widths that neither the tensors nor config.json tell
    disagreements: where config.json contradicts the tensors, one line each
    left_out:      what it has beyond a model of ours, one line each
    """

    path: Path
    form: Form
    tensors: dict[str, Tensor]
    widths: dict[str, Any]
    assumed: tuple[str, ...]
    disagreements: tuple[str, ...]
    left_out: tuple[str, ...]
    _origin: dict[str, tuple[TensorFile, str]]

    @property
    def family(self) -> SourceFamily:
        return self.form.family

    @property
    def config(self) -> ModelConfig:
        """Configuration of the model in it; GwpError for plain Wan, which is none, and when
        config.json contradicts the weights.
        """
        self.require_model()
        if self.disagreements:
            raise GwpError(
                f"{self.path}: config.json does not belong to the weights; correct it:\n  "
                + "\n  ".join(self.disagreements)
            )
        return model_config(self.form.family, self.widths, str(self.path))

    def require_model(self) -> None:
        """GwpError when this is plain Wan, which cannot act."""
        if self.family == "wan":
            raise GwpError(
                f"{self.path}: plain Wan has no action projections; make a model of it: "
                f"gwp weights convert {self.path} --out DIR --to gwp05"
            )

    def read(self, name: str) -> Tensor:
        """One tensor by its published name, in the published layout, on the CPU."""
        file, stored_name = self._origin[name]
        return canonical(self.form, stored_name, file.read(stored_name))[1]

    def problems(
        self, allow_missing: Collection[str] = (), allow_unexpected: Collection[str] = ()
    ) -> list[str]:
        """Everything that keeps this checkpoint from being a whole one of its family; see
        `misfits` for the patterns.
        """
        wanted = key_set(self.family, self.widths, str(self.path))
        return [
            *self.disagreements,
            *misfits(wanted, self.tensors, allow_missing, allow_unexpected),
        ]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Look at a local checkpoint: a folder (config.json and weights) or a weight file. Reads
    headers only.

    GwpError for damaged or absent files, an unknown class, a tensor that is there twice, or
    widths that nothing tells.
    """
    path = Path(path)
    files = open_files(weight_files(path))
    published = _published_config(path)
    form = detect(published, [n for file in files for n in file.tensors], str(path))

    # Under one set of names from here on; each remembers where it is read from.
    tensors: dict[str, Tensor] = {}
    origin: dict[str, tuple[TensorFile, str]] = {}
    left_out: list[str] = []
    # Of a model that is shown more than those, and was cut to them.
    latents: int | None = None
    for file in files:
        for stored_name, meta in file.tensors.items():
            if is_left_out(form, stored_name):
                left_out.append(f"{stored_name} {tuple(meta.shape)}")
                continue
            name, tensor = canonical(form, stored_name, meta)
            if name in tensors:
                other, its_name = origin[name]
                raise GwpError(
                    f"{path}: {name} is there twice, as {its_name} in {other.path.name} and as "
                    f"{stored_name} in {file.path.name}; remove one"
                )
            tensors[name] = tensor
            origin[name] = (file, stored_name)
            if name == PATCH and tensor.shape != meta.shape:
                latents = tensor.shape[1]
                left_out.append(f"channels {latents} to {meta.shape[1] - 1} of {name}")

    claimed = _claimed(published, str(path))
    if latents is not None:
        claimed["in_channels"] = latents
    widths, assumed, disagreements = _widths(form.family, tensors, claimed, str(path))
    # No tensor tells them, and the published models, which have the defaults, do not name them.
    if "visibility" in published:
        widths["visibility"] = _visibility(published["visibility"], str(path))
    if "actions" in published:
        widths["actions"] = published["actions"]
    return Checkpoint(path, form, tensors, widths, assumed, disagreements, tuple(left_out), origin)


def read_config(path: str | Path) -> ModelConfig:
    """Configuration of the model in a checkpoint; see `Checkpoint.config` for the errors."""
    return open_checkpoint(path).config


def model_config(family: SourceFamily, widths: Mapping[str, Any], source: str) -> ModelConfig:
    """`ModelConfig` of these widths; a Wan trunk counts as dense. GwpError, which names
    `source`, when they are impossible.
    """
    try:
        return ModelConfig(family="gwp05" if family == "gwp05" else "gwp0", **widths)
    except ValidationError as error:
        raise GwpError(
            f"{source}: impossible widths; {'; '.join(e['msg'] for e in error.errors())}"
        ) from error


def key_set(
    family: SourceFamily, widths: Mapping[str, Any], source: str = "widths"
) -> dict[str, Tensor]:
    """Every tensor of a whole checkpoint: published name -> tensor on the meta device. Wan is
    GWP-0 without action projections.
    """
    if family != "wan":
        return parameters(model_config(family, widths, source))
    # A configuration has action channels; what they shape is left out again.
    dense = parameters(model_config(family, {**widths, "action_channels": 1}, source))
    return {name: tensor for name, tensor in dense.items() if not name.startswith(ACTION_IO)}


def parameters(config: ModelConfig) -> dict[str, Tensor]:
    """Published name -> parameter on the meta device, in the model's order."""
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    return {published_name(n, config.family): p.detach() for n, p in model.named_parameters()}


def misfits(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
) -> list[str]:
    """Every tensor that is unexpected, missing, misshapen or no floating point, one line each.

    allow_missing, allow_unexpected: patterns (`*`, `?`) of published names to be let through. A
    misshapen tensor never is.
    """
    lines = []
    for name, tensor in tensors.items():
        if name not in wanted:
            if not matches(name, allow_unexpected):
                lines.append(f"unexpected {name} {tuple(tensor.shape)}")
        elif wanted[name].shape != tensor.shape:
            lines.append(
                f"misshapen {name}: file {tuple(tensor.shape)}, model {tuple(wanted[name].shape)}"
            )
        elif not tensor.is_floating_point():
            lines.append(f"quantised {name}: {tensor.dtype}; take the weights in floating point")
    absent = [n for n in wanted if n not in tensors and not matches(n, allow_missing)]
    return lines + [f"missing {name} {tuple(wanted[name].shape)}" for name in absent]


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether one of the patterns (`*`, `?`) is this name's; capitals count."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _published_config(weights: Path) -> dict[str, Any]:
    """config.json beside the weights; empty when there is none."""
    path = (weights.parent if weights.is_file() else weights) / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise GwpError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(config, dict):
        raise GwpError(
            f"{path}: holds a {type(config).__name__}, not the configuration of a model; "
            "copy it again"
        )
    return config


def _visibility(value: Any, source: str) -> str:
    try:
        return visibility_named(value)
    except ValueError as error:
        raise GwpError(f"{source}: config.json: {error}") from error


def _claimed(published: dict[str, Any], source: str) -> dict[str, Any]:
    """The widths that config.json states, under our names."""
    named = {_ALIASES.get(key, key): value for key, value in published.items() if value is not None}
    claimed = {key: named[key] for key in (*_SEEN, *_UNSEEN, "dim") if key in named}
    # JSON has no tuples, and the widths of tensors are some.
    if isinstance(patch := claimed.get("patch_size"), list):
        claimed["patch_size"] = tuple(patch)
    for key, value in claimed.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(n, int | float) and n > 0 for n in numbers):
            raise GwpError(f"{source}: config.json has {key} {value!r}; expected a number above 0")
    # Native Wan states the width of the model instead of that of a head.
    width = claimed.pop("dim", None)
    if width is not None and "num_attention_heads" in claimed:
        claimed.setdefault("attention_head_dim", width // claimed["num_attention_heads"])
    return claimed


def _widths(
    family: SourceFamily, tensors: Mapping[str, Tensor], claimed: dict[str, Any], source: str
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Widths, what was assumed of them, and what config.json claims otherwise."""
    # The width of a head comes first: without it no tensor tells how many heads there are.
    assumed = tuple(f"{key} {value}" for key, value in _UNSEEN.items() if key not in claimed)
    widths: dict[str, Any] = {key: claimed.get(key, value) for key, value in _UNSEEN.items()}
    seen = _seen(family, tensors, widths["attention_head_dim"], source)
    # Layers that config.json counts and the weights lack are missing tensors, each of which
    # will be named.
    if claimed.get("num_layers", 0) > seen.get("num_layers", 0):
        seen["num_layers"] = claimed["num_layers"]

    # Widths that this family does not have are no less a contradiction than other numbers.
    disagreements = [
        f"{key}: config.json says {claimed[key]}, the weights {value}"
        for key, value in seen.items()
        if claimed.get(key, value) != value
    ]
    foreign = set(_SEEN) - set(_expected_widths(family))
    disagreements += [
        f"{key}: config.json says {claimed[key]}, the weights have none"
        for key in _SEEN
        if key in foreign & claimed.keys()
    ]

    # Tensors are believed before config.json, which is at times copied from another model.
    widths |= {key: value for key, value in claimed.items() if key not in foreign} | seen
    if lost := [key for key in _expected_widths(family) if key not in widths]:
        raise GwpError(
            f"{source}: neither config.json nor the tensors tell {', '.join(lost)}; are these "
            "all the weights?"
        )
    return widths, assumed, tuple(disagreements)


def _expected_widths(family: SourceFamily) -> tuple[str, ...]:
    # A dense model has no action expert, a Wan no action channels and embodiments either.
    return _SEEN if family == "gwp05" else _SEEN[:-2] if family == "gwp0" else _SEEN[:-4]


def _seen(
    family: SourceFamily, tensors: Mapping[str, Tensor], head: int, source: str
) -> dict[str, Any]:
    """The widths that tensors tell, each from one of them; the others must then fit."""
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expert = ".visual_expert" if family == "gwp05" else ""
    seen: dict[str, Any] = {}
    # The highest one, not their number: a layer that is gone is then named as missing.
    if layers := [int(match[1]) for name in tensors if (match := _BLOCK.match(name))]:
        seen["num_layers"] = max(layers) + 1
    if len(patch := shape.get("patch_embedding.weight", ())) == 5:
        seen |= {"in_channels": patch[1], "patch_size": patch[2:]}
    if len(inner := shape.get(f"blocks.0{expert}.attn1.norm_q.weight", ())) == 1:
        if inner[0] % head:
            raise GwpError(
                f"{source}: width {inner[0]} is no multiple of attention_head_dim {head}; state "
                "the right one in config.json"
            )
        seen["num_attention_heads"] = inner[0] // head
    for key, name, axis in (
        ("ffn_dim", f"blocks.0{expert}.ffn.net.0.proj.weight", 0),
        ("text_dim", "condition_embedder.text_embedder.linear_1.weight", 1),
        ("freq_dim", "condition_embedder.time_embedder.linear_1.weight", 1),
        ("action_ffn_dim", "blocks.0.action_expert.ffn.net.0.proj.weight", 0),
        ("action_expert_dim", "blocks.0.action_expert.ffn.net.0.proj.weight", 1),
        ("num_embodiments", "action_encoder.in_proj.weight", 0),
        ("action_channels", "action_encoder.in_proj.weight", 1),
    ):
        if len(shape.get(name, ())) > axis and key in _expected_widths(family):
            seen[key] = shape[name][axis]
    return seen

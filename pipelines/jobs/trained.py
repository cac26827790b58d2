"""Which parameters train, named as in published checkpoints."""

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from functools import cache

import torch

from gwp.errors import GwpError
from gwp.model.adapters import LoraConfig
from gwp.model.config import ModelConfig
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights.names import published_name

TEXT_PATH = (
    "*condition_embedder.text_embedder",
    "blocks.*.attn2.to_k",
    "blocks.*.attn2.to_v",
    "blocks.*.attn2.norm_k",
)
"""What makes keys and values of an instruction."""
ACTION_EXPERT = (
    "blocks.*.action_expert",
    "action_condition_embedder",
    "action_scale_shift_table",
    "action_encoder",
    "state_encoder",
    "action_decoder",
)
"""Whatever of a GWP-0.5 computes states and actions."""
_NEAR = 3


def trained_names(
    config: ModelConfig, only: Iterable[str] = (), freeze: Iterable[str] = ()
) -> frozenset[str]:
    """Names (ours) of the parameters of a model that train.

    only, freeze: patterns of published names, of a parameter or of a module with all that is below
    it; an empty `only` means all. GwpError for a pattern that names none, and when nothing is left.
    """
    chosen = parameters_named(config, only, "optimizer.only") or frozenset(shapes_of(config))
    chosen -= parameters_named(config, freeze, "optimizer.freeze")
    if not chosen:
        raise GwpError("optimizer.freeze leaves nothing to train; name less, or more in `only`")
    return chosen


# A plan asks some hundred times; the names of a model are more than a thousand.
@cache
def trained_count(config: ModelConfig, only: tuple[str, ...], freeze: tuple[str, ...]) -> int:
    """Numbers of the parameters that `trained_names` names."""
    shapes = shapes_of(config)
    return sum(shapes[name].numel() for name in trained_names(config, only, freeze))


@cache
def adapter_count(config: ModelConfig, lora: LoraConfig) -> int:
    """Numbers of a model's adapters, and of what trains beside them."""
    shapes = shapes_of(config)
    whole = parameters_named(config, lora.whole, "lora.whole")
    on = parameters_named(config, lora.on, "lora.on") - whole
    # Norms between the layers have one axis, and no adapter.
    matrices = (shapes[n] for n in on if n.endswith("weight") and len(shapes[n]) == 2)
    return sum(lora.rank * sum(shape) for shape in matrices) + sum(shapes[n].numel() for n in whole)


@cache
def shapes_of(config: ModelConfig) -> dict[str, torch.Size]:
    """Our name -> shape of every parameter, counted on the meta device."""
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def parameters_named(config: ModelConfig, patterns: Iterable[str], field: str) -> frozenset[str]:
    """Names (ours) of the parameters that the patterns of `field` name; GwpError for one that names
    none, with what is near it.
    """
    names = {published_name(name, config.family): name for name in shapes_of(config)}
    found: set[str] = set()
    for pattern in patterns:
        fits = {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not fits:
            raise GwpError(
                f"{field}: {pattern!r} names no part of this model{_near(pattern, names)}"
            )
        found |= {names[name] for name in fits}
    return frozenset(found)


def _near(pattern: str, names: Collection[str]) -> str:
    """`; near it: ...`, of what there is, with `*` for the number of a block."""
    parts: dict[str, None] = {}
    for name in names:
        steps = re.sub(r"^blocks\.\d+", "blocks.*", name).split(".")
        # A module, and every one that it is in.
        parts |= dict.fromkeys(".".join(steps[: i + 1]) for i in range(len(steps)))
    wanted = re.sub(r"^blocks\.\d+", "blocks.*", pattern)
    close = difflib.get_close_matches(wanted, parts, n=_NEAR, cutoff=0.5)
    return f"; near it: {', '.join(close)}" if close else "; see `gwp weights inspect`"

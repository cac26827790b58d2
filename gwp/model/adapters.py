"""LoRA: small matrices beside frozen weights, through `peft`.

An adapter is a folder: `adapter.json` (its form, and the digest of the weights that it was trained
beside) and `adapter.safetensors` (what trained, in published names). On other weights it means
nothing, so it is refused there.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gwp.errors import GwpError
from gwp.model.codecs.saved import weights_digest
from gwp.model.config import ModelConfig
from gwp.model.transformer import WorldActionTransformer
from gwp.model.weights.derive import begin_as, differences
from gwp.model.weights.load import named_parameters
from gwp.model.weights.names import published_name

_FILE, _NOTE = "adapter.safetensors", "adapter.json"
# Of peft's names: what a layer is wrapped as, and what stands beside it.
_BASE, _MARK = ".base_layer.", ".lora_"


class LoraConfig(BaseModel):
    """Adapters of low rank beside frozen weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(default=16, gt=0)
    """Inner width of each adapter."""
    alpha: float = Field(default=16.0, gt=0)
    """An adapter's product is added times `alpha / rank`."""
    on: tuple[str, ...] = ("blocks.*.attn1.to_*", "blocks.*.attn2.to_*", "blocks.*.ffn.net.*")
    """Linear layers that get one, in published names with `*`."""
    whole: tuple[str, ...] = ("*_encoder", "action_decoder")
    """What trains itself; by default the projections of states and actions, which a new robot
    needs.
    """


def add_adapters(
    model: WorldActionTransformer,
    config: LoraConfig,
    on: Collection[str],
    whole: Collection[str],
    seed: int = 0,
) -> None:
    """Put adapters into a model, which computes as before until they are trained, and let only
    them and `whole` train.

    on, whole: names (ours) of parameters; of `on` weights of linear layers count. The same seed
    gives the same adapters. GwpError where `on` names no linear layer, or `peft` is not installed.
    """
    # What trains whole needs no adapter, and would lose its name to one.
    targets = _linear(model, frozenset(on) - frozenset(whole))
    if not targets:
        raise GwpError(
            "lora.on names no linear layer; leave it out, or name some as `gwp weights inspect` "
            "lists them"
        )
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, lora_dropout=0.0
    )
    # The caller's own random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model, adapter_name="default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or name in whole)


def merged(config: LoraConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a plain model that computes what one with adapters and this state (names as
    there -> fp32) does.
    """
    plain = {n.replace(_BASE, "."): t for n, t in state.items() if not _is_adapter(n)}
    return _with_products(config, plain, state)


def base_digest(model: WorldActionTransformer) -> str:
    """sha256 hex of the weights of a plain model, in fp32."""
    tensors = {name: p.detach().float() for name, p in named_parameters(model).items()}
    return weights_digest(model.config.to_published(), tensors)


def save_adapter(
    folder: str | Path,
    model: ModelConfig,
    config: LoraConfig,
    state: Mapping[str, Tensor],
    whole: Collection[str],
    base: str,
) -> None:
    """Write what trained of a state. base: digest of the weights that it stands beside"""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {n: t.contiguous() for n, t in state.items() if _is_adapter(n) or n in whole}
    save_file({published_name(n, model.family): t for n, t in kept.items()}, folder / _FILE)
    note = {"base": base, "lora": config.model_dump(mode="json"), "model": model.model_dump()}
    (folder / _NOTE).write_text(json.dumps(note, indent=1))


def apply_adapter(folder: str | Path, model: WorldActionTransformer) -> dict[str, Tensor]:
    """The weights (our names) of `model` with the adapter in `folder`. GwpError when that is none,
    not whole, or was trained beside other weights.

    model: what the run of the adapter had as `init`; it becomes one of the run's configuration
    """
    folder = Path(folder)
    note, tensors = _read(folder)
    # A run may show its tokens something else than its `init` did: what is merged acts as the run.
    if not differences(model.config.model_dump(), note["model"]):
        begin_as(model, note["model"])
    own = base_digest(model)
    if note["base"] != own:
        raise GwpError(
            f"{folder}: this adapter was trained beside other weights (sha256 {note['base'][:12]}, "
            f"these are {own[:12]}); take the checkpoint that its run had as `init`"
        )
    family = model.config.family
    names = {published_name(name, family): name for name, _ in model.named_parameters()}
    adapters = {name: t for name, t in tensors.items() if _is_adapter(name)}
    whole = {name: t for name, t in tensors.items() if name not in adapters}
    stems = {name.partition(_MARK)[0] + ".weight" for name in adapters}
    if strange := sorted((stems | whole.keys()) - names.keys()):
        raise GwpError(f"{folder}: {strange[0]} is no part of these weights; copy it again")
    published = {name: model.get_parameter(ours).detach() for name, ours in names.items()}
    try:
        state = _with_products(note["lora"], published | whole, adapters)
    except (KeyError, RuntimeError, ValueError) as error:
        raise GwpError(f"{folder}: the adapter is not whole; copy it again") from error
    for name, tensor in state.items():
        if tensor.shape != published[name].shape:
            raise GwpError(
                f"{folder}: {name} is {list(tensor.shape)}, these weights have "
                f"{list(published[name].shape)}; copy it again"
            )
    return {names[name]: tensor for name, tensor in state.items()}


def _with_products(
    config: LoraConfig, weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`weights` with what the adapters add to them, in one set of names."""
    result = dict(weights)
    for name, low in adapters.items():
        stem, _, rest = name.partition(_MARK)
        if rest.startswith("A."):
            high = adapters[f"{stem}{_MARK}B.{rest.removeprefix('A.')}"]
            weight, product = result[f"{stem}.weight"], high @ low
            # One of a single number would be added everywhere.
            if product.shape != weight.shape:
                raise ValueError(stem)
            result[f"{stem}.weight"] = weight + config.alpha / config.rank * product
    return result


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        note = json.loads((folder / _NOTE).read_text())
        note["lora"] = LoraConfig.model_validate(note["lora"])
        note["model"] = ModelConfig.model_validate(note["model"])
        return note, load_file(folder / _FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GwpError(
            f"{folder}: no adapter ({type(error).__name__}); give the folder `final/adapter` of a "
            "run with `lora`"
        ) from error


def _linear(model: nn.Module, names: Collection[str]) -> list[str]:
    """Linear layers whose weights are among these names."""
    stems = (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    return [stem for stem in stems if isinstance(model.get_submodule(stem), nn.Linear)]


def _is_adapter(name: str) -> bool:
    return _MARK in name


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise GwpError("lora needs the package peft: pip install 'gwp[cluster]'") from error
    return peft
